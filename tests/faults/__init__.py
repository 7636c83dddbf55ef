"""Faults of every kind, and what must hold all the same; docs/reliability.md says which test shows what."""
