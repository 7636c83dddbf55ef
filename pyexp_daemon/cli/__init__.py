"""The command `pyexpd`."""
