"""pyexp_daemon: experiments as rows of a database table that you own, run exactly once by daemons on every node."""

__version__ = "0.1.0"
