"""Where the daemons of a table hold their names on this host."""

from __future__ import annotations

from pathlib import Path

from pyexp_daemon.cli.context import Workplace
from pyexp_daemon.store import mark_of


def names_folder(workplace: Workplace) -> Path:
    """The folder of the lock files, one for each name; the table's own, whoever else uses this host."""
    return workplace.config.state / "names" / mark_of(workplace.config, credentials=workplace.credentials)
