"""The tests of pyexp_daemon."""
