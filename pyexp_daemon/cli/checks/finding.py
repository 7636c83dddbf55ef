"""What a check of `pyexpd doctor` has to say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pyexp_daemon import exceptions


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    check: str
    text: str
    hint: str | None = None

    @classmethod
    def of(cls, check: str, error: exceptions.PyExperimenterError, level: Level = Level.ERROR) -> Finding:
        return cls(level, check, " ".join(str(error).split()), error.hint)


def ok(check: str, text: str) -> Finding:
    """It is as it should be."""
    return Finding(Level.OK, check, text)


def warning(check: str, text: str, hint: str | None = None) -> Finding:
    """Daemons work, and not as well as they could."""
    return Finding(Level.WARNING, check, text, hint)


def error(check: str, text: str, hint: str | None = None) -> Finding:
    """Daemons do not work."""
    return Finding(Level.ERROR, check, text, hint)
