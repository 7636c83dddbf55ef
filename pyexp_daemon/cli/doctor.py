"""`pyexpd doctor`: what is wrong, before anything runs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

import pyexp_daemon
from pyexp_daemon import exceptions, log
from pyexp_daemon.cli.context import Workplace, command, count_of, json_option, print_json
from pyexp_daemon.daemon.resources import count_slots, slot_settings, visible_gpus
from pyexp_daemon.model import Attempt, Claim, Status, make_token
from pyexp_daemon.store import daemons, reads, schema
from pyexp_daemon.store.sqlite import filesystem_of, is_network
from pyexp_daemon.worker.pool import Pool

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

CONNECTIONS_PER_DAEMON = 4
START_S = 60.0
MOST_CLOCK_S = 5.0
NEEDED_GRANTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "INDEX")
_DRIVERS = ("aiomysql", "PyMySQL", "aiosqlite", "anyio")


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


@command("doctor")
@json_option
def doctor_command(workplace: Workplace, *, as_json: bool) -> int:
    """Say what is wrong before anything runs.

    Looks at versions, configuration, file systems, database, table, clocks, and imports the function in a slot.
    Changes nothing. Exits with 0 when all is well, 1 with warnings, 2 with errors.
    """
    findings = []
    for finding in examine(workplace):
        findings.append(finding)
        if not as_json:
            _print(finding)
    levels = [finding.level for finding in findings]
    if as_json:
        print_json(
            {
                "findings": [dataclasses.asdict(finding) for finding in findings],
                "warnings": levels.count(Level.WARNING),
                "errors": levels.count(Level.ERROR),
            }
        )
    return 2 if Level.ERROR in levels else 1 if Level.WARNING in levels else 0


def examine(workplace: Workplace) -> Iterator[Finding]:
    """Everything that is looked at, in an order in which the first error explains those that follow."""
    yield _versions()
    try:
        config = workplace.config
    except exceptions.ConfigError as error:
        yield Finding.of("configuration", error)
        return
    yield Finding(Level.OK, "configuration", f"{config.path}")
    yield _space(workplace)
    yield from _places(workplace)
    yield _hardware(workplace)
    yield from _database(workplace)
    yield _function(workplace)


def _print(finding: Finding) -> None:
    colour = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}[finding.level]
    click.echo(f"{click.style(f'{finding.level:<8}', fg=colour)}{finding.check}: {finding.text}")
    if finding.hint:
        click.echo(f"{'':8}  {finding.hint}")


def _versions() -> Finding:
    drivers = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _DRIVERS)
    text = (
        f"pyexpd {pyexp_daemon.__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version},"
        f" {drivers}"
    )
    if _numbers(importlib.metadata.version("PyMySQL")) >= (1, 2):
        return Finding(
            Level.ERROR, "versions", text, "aiomysql does not work with PyMySQL 1.2: pip install 'PyMySQL<1.2'"
        )
    return Finding(Level.OK, "versions", text)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _space(workplace: Workplace) -> Finding:
    try:
        grid = workplace.grid()
    except exceptions.ConfigError as error:
        return Finding.of("experiments", error)
    return Finding(Level.OK, "experiments", f"{count_of(len(grid), 'experiment')} in the configuration")


def _places(workplace: Workplace) -> Iterator[Finding]:
    config = workplace.config
    yield _place("state", config.state, local=True)
    yield _place("logs", config.logs, local=False)


def _place(check: str, folder: Path, *, local: bool) -> Finding:
    """Whether a folder can be written, and, if it matters, whether it lies on a local disk."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding(Level.ERROR, check, f"{folder} cannot be written: {error.strerror}", f"Daemon.{check}")
    kind = filesystem_of(existing.resolve())
    if local and is_network(kind):
        text = f"{folder} lies on a network file system ({kind}), where locks cannot be trusted"
        return Finding(Level.WARNING, check, text, "Daemon.state: a folder on a local disk")
    return Finding(Level.OK, check, f"{folder}{f' ({kind})' if kind else ''}")


def _hardware(workplace: Workplace) -> Finding:
    slots = count_slots(workplace.config)
    gpus = visible_gpus(workplace.config)
    cpus = len(os.sched_getaffinity(0))
    shown = f"GPUs {', '.join(gpus)}" if gpus else "no GPU"
    return Finding(Level.OK, "slots", f"{count_of(slots, 'slot')}, {count_of(cpus, 'usable CPU')}, {shown}")


def _database(workplace: Workplace) -> Iterator[Finding]:
    try:
        warning = workplace.credentials_warning()
    except exceptions.ConfigError as error:
        yield Finding.of("credentials", error)
        return
    if warning:
        yield Finding(Level.WARNING, "credentials", warning)
    try:
        with workplace.store() as store:
            yield Finding(Level.OK, "database", store.describe())
            yield from _server(workplace, store)
            yield from _table(workplace, store)
    except exceptions.MissingTable as error:
        yield Finding.of("database", error, Level.WARNING)
    except exceptions.DatabaseError as error:
        yield Finding.of("database", error)


def _server(workplace: Workplace, store: BlockingStore) -> Iterator[Finding]:
    off = abs(store.read(reads.clock(workplace.table)) - time.time())
    if off > MOST_CLOCK_S:
        yield Finding(
            Level.WARNING,
            "clock",
            f"the clocks of the database and of this node differ by {off:.0f} s",
            "nothing depends on it but the times that people read",
        )
    if workplace.config.database.provider == "sqlite":
        yield Finding(Level.OK, "file system", filesystem_of(workplace.config.database_path.parent) or "unknown")
        return
    missing = missing_grants(store.read(reads.grants(workplace.table)), workplace.config.database.database)
    if missing:
        yield Finding(
            Level.WARNING,
            "grants",
            f"the account seems to lack {', '.join(missing)}",
            f"GRANT {', '.join(missing)} ON `{workplace.config.database.database}`.* TO …",
        )


def missing_grants(grants: list[str], database: str) -> list[str]:
    """Which of the needed privileges none of these lines of SHOW GRANTS gives on the database; roles count as all."""
    given: set[str] = set()
    for line in grants:
        found = re.match(r"GRANT (.+?) ON (.+?) TO ", line)
        if found is None:  # GRANT role TO account
            return []
        place = found[2].replace("`", "").replace("\\", "")
        if place in ("*.*", f"{database}.*") or "%" in place or place.startswith(f"{database}."):
            given |= {name.strip().upper() for name in found[1].split(",")}
    if given & {"ALL", "ALL PRIVILEGES"}:
        return []
    return [name for name in NEEDED_GRANTS if name not in given]


def _table(workplace: Workplace, store: BlockingStore) -> Iterator[Finding]:
    table = workplace.table
    state = store.read(schema.inspect(table))
    try:
        schema.check(table, state)
    except (exceptions.MissingTable, exceptions.SchemaVersionError) as error:
        yield Finding.of("table", error, Level.WARNING if (state.oldest or 0) <= schema.VERSION else Level.ERROR)
        return
    except exceptions.TableError as error:
        yield Finding.of("table", error)
        return
    counts = store.read(reads.count_by_status(table))
    yield Finding(
        Level.OK, "table", f"{table.name}, schema {state.version}, {count_of(sum(counts.values()), 'experiment')}"
    )
    unknown = sorted(set(counts) - set(Status))
    if unknown:
        yield Finding(
            Level.WARNING,
            "table",
            f"no daemon takes experiments of status {', '.join(repr(status) for status in unknown)}",
            "pyexpd list shows them; statuses are created, waiting, running, done, error, paused, cancelled",
        )
    live = len(store.read(daemons.look(table)))
    if workplace.config.database.provider == "mysql":
        yield _connections(store, workplace, live)


def _connections(store: BlockingStore, workplace: Workplace, live: int) -> Finding:
    most = store.read(reads.max_connections(workplace.table))
    needed = CONNECTIONS_PER_DAEMON * (live + 1)
    text = f"{most} are allowed; {count_of(live + 1, 'daemon')} may need {needed}"
    if needed > most:
        return Finding(Level.WARNING, "connections", text, "raise max_connections on the server")
    return Finding(Level.OK, "connections", text)


class _Nobody:
    """Hears what a pool without experiments has to say: nothing."""

    async def results(self, claim: Claim, results: dict[str, Any]) -> None:
        """Never called."""

    async def logs(self, claim: Claim, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        """Never called."""

    async def finished(self, attempt: Attempt) -> None:
        """Never called."""

    def progress(self, claim: Claim, fraction: float | None, description: str | None) -> None:
        """Never called."""


def _function(workplace: Workplace) -> Finding:
    function = workplace.config.function
    if function is None:
        return Finding(
            Level.WARNING,
            "function",
            "the configuration names none, so pyexpd run needs --function",
            "Function: my_project.train:run",
        )
    try:
        seconds = anyio.run(_import_in_a_slot, workplace, function)
    except TimeoutError:
        return Finding(Level.ERROR, "function", f"{function} is not imported within {START_S:g} s")
    except exceptions.PyExperimenterError as error:
        return Finding.of("function", error)
    return Finding(Level.OK, "function", f"{function} is imported by a slot in {seconds:.1f} s")


async def _import_in_a_slot(workplace: Workplace, function: str) -> float:
    """Start one child as a daemon does; how long it took.

    Raises:
        FunctionError, ChildrenCannotStart: it cannot run experiments.
        TimeoutError: it says nothing.
    """
    settings = dataclasses.replace(
        slot_settings(workplace.config, function=function, slots=1), incarnation=make_token()
    )
    log.set_up_for_command(silent=True)
    pool = Pool(settings, slots=1, events=_Nobody())
    began = time.monotonic()
    failure: exceptions.PyExperimenterError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run)
        with anyio.move_on_after(START_S) as patience:
            try:
                await pool.wait_ready()
            except exceptions.PyExperimenterError as error:
                failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if patience.cancelled_caught:
        raise TimeoutError
    return time.monotonic() - began
