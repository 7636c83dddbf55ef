"""Child processes: the slots of a daemon and what runs in them. Knows no SQL."""
