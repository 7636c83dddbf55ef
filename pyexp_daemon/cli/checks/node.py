"""This node: versions, folders and the disks below them, CPUs and GPUs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyexp_daemon
from pyexp_daemon.cli.checks.finding import Finding, Level, error, ok, warning
from pyexp_daemon.cli.context import count_of
from pyexp_daemon.cli.sizes import show_size
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.resources import count_cpus, count_slots, own_allocation, visible_gpus
from pyexp_daemon.store.sqlite import filesystem_of, is_network

_DRIVERS = ("aiomysql", "PyMySQL", "aiosqlite", "anyio")


def versions() -> Finding:
    """Of ourselves, of Python and of the drivers."""
    drivers = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _DRIVERS)
    text = (
        f"pyexpd {pyexp_daemon.__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version},"
        f" {drivers}"
    )
    if _numbers(importlib.metadata.version("PyMySQL")) >= (1, 2):
        return error("versions", text, "aiomysql does not work with PyMySQL 1.2: pip install 'PyMySQL<1.2'")
    return ok("versions", text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def places(config: Config) -> Iterator[Finding]:
    """The folders a daemon writes to: whether it can, on what kind of file system, and how much room there is."""
    yield from _place("state", config.state, least=config.daemon.least_disk_bytes, local=True)
    yield from _place("logs", config.logs, least=config.daemon.least_disk_bytes, local=False)
    if config.database.provider == "sqlite":
        folder = nearest(config.database_path.parent)
        kind = filesystem_of(folder.resolve())
        if not is_network(kind):  # else the database is refused, below
            yield ok("file system", f"{config.database_path.parent}{_in_brackets(kind)}")
        yield from _room("database file", folder, config.daemon.least_disk_bytes)


def told(config: Config) -> Iterator[Finding]:
    """Whether the program is there that `Daemon.on_event` names; what a shell makes of a text is not known."""
    command = config.daemon.on_event
    if isinstance(command, tuple):
        # As a child that changes to the folder first finds it.
        program = command[0] if os.sep not in command[0] else str(config.project / command[0])
        if shutil.which(program) is None:
            yield warning(
                "on_event", f"there is no program {command[0]}", "Daemon.on_event: a program, then its arguments"
            )


def _place(check: str, folder: Path, *, least: int, local: bool) -> Iterator[Finding]:
    existing = nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as problem:
        yield error(check, f"{folder} cannot be written: {problem.strerror}", f"Daemon.{check}")
        return
    kind = filesystem_of(existing.resolve())
    if local and is_network(kind):
        text = f"{folder} lies on a network file system ({kind}), where locks cannot be trusted"
        yield warning(check, text, "Daemon.state: a folder on a local disk")
    elif is_network(kind):
        yield ok(check, f"{folder} ({kind}, a network file system: nodes may share it)")
    else:
        yield ok(check, f"{folder}{_in_brackets(kind)}")
    yield from _room(check, existing, least)


def _room(check: str, folder: Path, least: int) -> Iterator[Finding]:
    """Only what is too little, or will soon be."""
    free = shutil.disk_usage(folder).free
    if free < 2 * least:
        level = Level.ERROR if free < least else Level.WARNING
        text = f"{show_size(free)} are free in {folder}; with less than {show_size(least)} a daemon claims nothing"
        yield Finding(level, check, text, "pyexpd clean removes old logs; Daemon.least_disk sets the limit")


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _in_brackets(kind: str) -> str:
    return f" ({kind})" if kind else ""


def hardware(config: Config) -> Finding:
    """Slots, CPUs, and which GPU which slot gets."""
    allocation = own_allocation()
    slots, gpus = count_slots(config, allocation), visible_gpus(config, allocation)
    text = f"{count_of(slots, 'slot')}, {count_of(count_cpus(allocation), 'usable CPU')}"
    if gpus is None:
        return ok("slots", f"{text}, no GPU")
    if not gpus:
        return ok("slots", f"{text}, GPUs hidden from experiments")
    text += f", {'GPU' if len(gpus) == 1 else 'GPUs'} {', '.join(gpus)}"
    if slots > len(gpus):
        return warning("slots", f"{text}: slots share GPUs", f"Daemon.slots: {len(gpus)}")
    unused = f", {len(gpus) - slots} of them unused" if slots < len(gpus) else ""
    return ok("slots", f"{text}, one for each slot{unused}")
