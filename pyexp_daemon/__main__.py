"""`python -m pyexp_daemon` is `pyexpd`."""

from pyexp_daemon.cli.main import main

if __name__ == "__main__":
    main()
