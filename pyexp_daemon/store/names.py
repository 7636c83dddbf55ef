"""Names that reach SQL: checked here, quoted here, nowhere else."""

from __future__ import annotations

import functools
import re

from pyexp_daemon import exceptions

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SCHEMA = re.compile(r"[^\x00-\x1f`/\\.]{1,64}")


@functools.lru_cache(maxsize=1024)
def quote(name: str) -> str:
    """The name in backticks, which both MySQL and SQLite understand.

    Raises:
        InvalidColumnError: it is not a plain name of letters, digits and underscores (at most 64).
    """
    if not _NAME.fullmatch(name):
        raise exceptions.InvalidColumnError(f"{name!r} is not a name: letters, digits and _, at most 64 characters")
    return f"`{name}`"


def quote_schema(name: str) -> str:
    """The name of a MySQL database in backticks; more characters are allowed there than in our own names."""
    if not _SCHEMA.fullmatch(name):
        raise exceptions.InvalidConfigError(f"{name!r} is not the name of a database")
    return f"`{name}`"
