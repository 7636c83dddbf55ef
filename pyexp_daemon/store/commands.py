"""Commands to daemons: asked for by anybody who may write to the table, heard with the heartbeat, answered once.

They are addressed to an incarnation, not to the number of a row, which comes back when a database is restored.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pyexp_daemon.model import Command
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit


@unit
def ask(
    table: Table, *, incarnations: Sequence[str], command: str, asked_by: str, token: str
) -> Steps[dict[str, Command]]:
    """Ask these daemons to do something; they hear it with their next beat.

    The commands, by incarnation. Repeated with the same token, after a lost reply, it only reads them.
    """
    mine = _read(table, "token = ?", (token,))
    there = yield mine
    if not there.rows:
        inserted = Do(
            f"INSERT INTO {table.commands} (incarnation, command, token, asked_by, asked)"
            f" VALUES (?, ?, ?, ?, {table.dialect.now})",
            [(uuid, command, token, asked_by) for uuid in incarnations],
            many=True,
        )
        _, there = yield Commit([inserted], then=[mine])
    return {row[0]: _command(row) for row in there.rows}


@unit
def asked(table: Table, *, token: str) -> Steps[dict[str, Command]]:
    """What became of the commands that `ask` made, by incarnation."""
    found = yield _read(table, "token = ?", (token,))
    return {row[0]: _command(row) for row in found.rows}


@unit
def latest(table: Table, *, incarnations: Sequence[str]) -> Steps[dict[str, Command]]:
    """The last command to each of these incarnations, with the answer if there is one."""
    if not incarnations:
        return {}
    last = f"SELECT MAX(id) FROM {table.commands} WHERE incarnation IN ({marks(incarnations)}) GROUP BY incarnation"
    found = yield _read(table, f"id IN ({last})", incarnations)
    return {row[0]: _command(row) for row in found.rows}


def unanswered(table: Table, incarnations: Collection[str]) -> Do:
    """The statement that reads what a process, under any of its incarnations, was asked and has not answered."""
    uuids = list(incarnations)
    return _read(table, f"incarnation IN ({marks(uuids)}) AND answered IS NULL ORDER BY id", uuids)


def heard(rows: Sequence[Sequence[Any]]) -> list[Command]:
    """The commands of rows that `unanswered` read."""
    return [_command(row) for row in rows]


@unit
def answer(table: Table, *, token: str, incarnations: Collection[str], text: str) -> Steps[None]:
    """Acknowledge a command: it is done, or refused, as the text says."""
    uuids = list(incarnations)
    yield Commit([_answered(table, f"token = ? AND incarnation IN ({marks(uuids)})", (text, token, *uuids))])


@unit
def close(table: Table, *, incarnations: Collection[str]) -> Steps[None]:
    """Answer what came too late for a daemon that ends."""
    uuids = list(incarnations)
    yield Commit([_answered(table, f"incarnation IN ({marks(uuids)})", ("it ended", *uuids))])


def _answered(table: Table, condition: str, values: Sequence[object]) -> Do:
    return Do(
        f"UPDATE {table.commands} SET answered = {table.dialect.now}, answer = ? WHERE {condition}"
        f" AND answered IS NULL",
        values,
    )


def _read(table: Table, condition: str, values: Sequence[object]) -> Do:
    epoch = table.dialect.epoch
    return Do(
        f"SELECT incarnation, token, command, asked_by, {epoch('asked')}, {epoch('answered')}, answer"
        f" FROM {table.commands} WHERE {condition}",
        values,
    )


def _command(row: Sequence[Any]) -> Command:
    return Command(
        token=row[1],
        name=row[2],
        asked_by=row[3],
        asked=float(row[4]),
        answered=None if row[5] is None else float(row[5]),
        answer=row[6],
    )
