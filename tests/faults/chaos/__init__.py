"""A fleet of daemons under random faults: `python -m tests.faults.chaos --help`."""
