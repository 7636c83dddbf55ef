"""`pyexpd doctor`: what is wrong, before anything runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.checks import function, grants, node, server
from pyexp_daemon.cli.checks.finding import Finding, Level, ok, warning
from pyexp_daemon.cli.context import Workplace, command, count_of, json_option, print_json
from pyexp_daemon.config.credentials import load_credentials
from pyexp_daemon.model import Status
from pyexp_daemon.store import daemons, migrations, reads, schema, structure
from pyexp_daemon.store import server as server_store
from pyexp_daemon.store.sqlite import BlockingSqlite

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.mysql import BlockingMysql

MOST_CLOCK_S = 5.0


@command("doctor")
@json_option
def doctor_command(workplace: Workplace, *, as_json: bool) -> int:
    """Say what is wrong before anything runs.

    Looks at versions, configuration, folders and disks, GPUs, database, account, table, clocks, and imports the
    function in a slot.
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
    yield node.versions()
    try:
        config = workplace.config
    except exceptions.ConfigError as problem:
        yield Finding.of("configuration", problem)
        return
    yield ok("configuration", f"{config.path}")
    yield _space(workplace)
    yield from node.places(config)
    yield from node.told(config)
    yield node.hardware(config)
    yield from _database(workplace)
    yield function.examine(config)


def _print(finding: Finding) -> None:
    colour = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}[finding.level]
    click.echo(f"{click.style(f'{finding.level:<8}', fg=colour)}{finding.check}: {finding.text}")
    if finding.hint:
        click.echo(f"{'':8}  {finding.hint}")


def _space(workplace: Workplace) -> Finding:
    try:
        grid = workplace.grid()
    except exceptions.ConfigError as problem:
        return Finding.of("experiments", problem)
    return ok("experiments", f"{count_of(len(grid), 'experiment')} in the configuration")


def _database(workplace: Workplace) -> Iterator[Finding]:
    try:
        unwise = workplace.credentials_warning()
    except exceptions.ConfigError as problem:
        yield Finding.of("credentials", problem)
        return
    if unwise:
        yield warning("credentials", unwise)
    try:
        with workplace.store() as store:
            if workplace.config.database.provider == "mysql" and (
                ssh := load_credentials(workplace.config, workplace.credentials).ssh
            ):
                yield server.tunnel(ssh)
            yield ok("database", store.describe())
            yield from _clock(workplace, store)
            if isinstance(store, BlockingSqlite):
                yield from _table(workplace, store)
            else:
                yield from _account(workplace, store)
                yield from _table(workplace, store)
                yield from _server(workplace, store)
    except exceptions.MissingTable as problem:
        yield Finding.of("database", problem, Level.WARNING)
    except exceptions.SshTunnelError as problem:
        yield Finding.of("tunnel", problem)
    except exceptions.DatabaseError as problem:
        yield Finding.of("database", problem)


def _clock(workplace: Workplace, store: BlockingStore) -> Iterator[Finding]:
    asked = time.time()
    there = store.read(reads.clock(workplace.table))
    off = abs(there - (asked + time.time()) / 2)
    if off > MOST_CLOCK_S:
        text = f"the clocks of the database and of this node differ by {off:.0f} s"
        yield warning("clock", text, "nothing depends on it but the times that people read")
    elif workplace.config.database.provider == "mysql":
        yield ok("clock", f"differs from the database's by {off:.1f} s")


def _account(workplace: Workplace, store: BlockingMysql) -> Iterator[Finding]:
    table = workplace.table
    try:
        is_made = store.read(structure.inspect(table)).version == migrations.VERSION
    except exceptions.DatabaseConnectionError:  # it may not even read: the grants say so
        is_made = False
    lines = store.read(server_store.grants(table))
    yield from grants.judge(
        lines,
        database=workplace.config.database.database,
        table=table,
        is_made=is_made,
        mariadb=store.server.mariadb,
    )


def _table(workplace: Workplace, store: BlockingStore) -> Iterator[Finding]:
    table = workplace.table
    oldest = None
    try:
        state = store.read(structure.inspect(table))
        oldest = state.oldest
        schema.check(table, state)
        counts = store.read(reads.count_by_status(table))
    except (exceptions.MissingTable, exceptions.SchemaVersionError) as problem:
        yield Finding.of("table", problem, Level.WARNING if (oldest or 0) <= migrations.VERSION else Level.ERROR)
        return
    except exceptions.DatabaseError as problem:
        yield Finding.of("table", problem)
        return
    yield ok("table", f"{table.name}, schema {state.version}, {count_of(sum(counts.values()), 'experiment')}")
    unknown = sorted(set(counts) - set(Status))
    if unknown:
        yield warning(
            "table",
            f"no daemon takes experiments of status {', '.join(repr(status) for status in unknown)}",
            f"pyexpd list shows them; statuses are {', '.join(Status)}",
        )


def _server(workplace: Workplace, store: BlockingMysql) -> Iterator[Finding]:
    table = workplace.table
    try:
        live = len(store.read(daemons.look(table)))
    except exceptions.DatabaseError:  # no such table yet, or not for this account: said above
        live = 0
    credentials = load_credentials(workplace.config, workplace.credentials)
    yield from server.examine(store, table, credentials, live=live)
