"""The statuses a user's function may return, under PyExperimenter's import path."""

from enum import Enum


class ExperimentStatus(Enum):
    """What an experiment function may return: DONE (the same as None), ERROR, PAUSED, or CREATED, "again please".

    The other members name the remaining statuses a row can have; ALL is a wildcard for resetting, never stored.
    """

    CREATED = "created"
    RUNNING = "running"
    DONE = "done"
    ERROR = "error"
    PAUSED = "paused"
    WAITING = "waiting"
    CANCELLED = "cancelled"
    ALL = "all"
