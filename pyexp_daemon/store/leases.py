"""The right to run an experiment: claimed, found again after a lost reply, handed back, taken back."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.model import Claim, Incarnation
from pyexp_daemon.store.budgets import uncharged
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import ADDED, CLAIM, OWNER, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit
from pyexp_daemon.store.values import local_time

FREED = "pyexpd_daemon = NULL, pyexpd_token = NULL, pyexpd_cancel = 0"
"""What every write that leaves `running` also sets, so that nothing stale survives an edit by hand."""

Mark = tuple[int, int]
"""An order and an experiment: a place in the claim index."""

FROM_MARK = " AND (pyexpd_order > ? OR (pyexpd_order = ? AND ID >= ?))"
"""The condition on what a claim takes that begins at a mark; the server makes two ranges of the index of it."""

WITHIN_ORDER = " AND pyexpd_order = ? AND ID >= ?"
"""The same, for a claim that takes nothing of a larger order."""


@unit
def waits(table: Table, *, queue: str) -> Steps[bool]:
    """Whether there is anything to claim: an idle daemon asks this, without a transaction, before it claims."""
    seen = yield Do(
        f"SELECT 1 FROM {table.main} {table.use(CLAIM)} WHERE status = 'created' AND pyexpd_queue = ? LIMIT 1", (queue,)
    )
    return bool(seen.rows)


@unit
def claim(
    table: Table,
    *,
    me: Incarnation,
    token: str,
    queue: str,
    limit: int,
    name: str = "",
    machine: str = "",
    at_random: bool = False,
    mark: Mark | None = None,
    same_order: bool = False,
    started: str | None = None,
) -> Steps[list[Claim]]:
    """Take up to `limit` created experiments, smallest order first; [] when nothing waits.

    A row locked by another session belongs to another daemon and is skipped. All rows taken carry `token`. With
    `at_random` they are those that follow a random one among the smallest order. With `mark` they are those from there
    on (with `same_order` up to the end of its order), or any when there are none. `started` is their start date (now).

    Raises:
        Fenced: this incarnation was declared dead, or the table got a keyfield that is none of ours; nothing was taken.
    """
    start_after: str = ""
    bound: tuple[int, ...] = ()
    if at_random:
        start_after, bound = yield from _random_start(table, queue)
    elif mark is not None and same_order:
        start_after, bound = WITHIN_ORDER, mark
    elif mark is not None:
        start_after, bound = FROM_MARK, (mark[0], *mark)
    picked = yield Do(_claimable(table, start_after), (queue, *bound, limit))
    if not picked.rows and start_after:
        picked = yield Do(_claimable(table, ""), (queue, limit))
    if not picked.rows:
        return []
    ids = sorted(row[0] for row in picked.rows)
    taken, claimed = yield Commit(
        [
            Do(
                f"{_take(table)} WHERE ID IN ({marks(ids)}) AND {_i_live(table)} AND {_keyfields_are_mine(table)}",
                (me.id, token, started or local_time(), name, machine, *ids, me.id, me.uuid, *_keyfields(table)),
            )
        ],
        then=[_read_claimed(table, ids, token)],
    )
    if not taken.changed:
        raise exceptions.Fenced(f"daemon {me.id} was declared dead, or the table has keyfields that it does not know")
    return _claims(table, claimed.rows, token)


def _claimable(table: Table, start_after: str) -> str:
    # Equality on every column before the order, the order of the index and nothing else: any other shape sorts,
    # and a sort locks every row that waits, which starves all other daemons without an error.
    return (
        f"SELECT ID FROM {table.main} {table.use(CLAIM)} WHERE status = 'created' AND pyexpd_queue = ?{start_after}"
        f" ORDER BY pyexpd_order, ID LIMIT ? {table.dialect.skip_locked}"
    )


def _random_start(table: Table, queue: str) -> Steps[tuple[str, tuple[int, ...]]]:
    """A place to start at, among those that wait with the smallest order."""
    where = f"FROM {table.main} {table.use(CLAIM)} WHERE status = 'created' AND pyexpd_queue = ?"
    first = yield Do(f"SELECT pyexpd_order, ID {where} ORDER BY pyexpd_order, ID LIMIT 1", (queue,))
    if not first.rows:
        return "", ()
    order, lowest = first.rows[0]
    last = yield Do(f"SELECT ID {where} AND pyexpd_order = ? ORDER BY ID DESC LIMIT 1", (queue, order))
    highest = last.rows[0][0] if last.rows else lowest
    return WITHIN_ORDER, (order, random.randint(lowest, highest))


@unit
def claim_one(
    table: Table,
    *,
    me: Incarnation,
    token: str,
    experiment_id: int,
    statuses: Sequence[str] = ("created", "waiting"),
    name: str = "",
    machine: str = "",
) -> Steps[Claim | None]:
    """Take this very experiment if it has one of these statuses, whatever its queue; None when it is not to be had."""
    return (yield from _take_one(table, me, token, experiment_id, statuses=statuses, name=name, machine=machine))


@unit
def add_claimed(
    table: Table, row: tuple[Sequence[Any], bytes], *, me: Incarnation, token: str, name: str = "", machine: str = ""
) -> Steps[Claim | None]:
    """Insert an experiment and take it, so that nobody else can; None when the table has one of these parameters.

    Args:
        row: the values of the keyfields in declared order, and their fingerprint.

    Raises:
        RowRefused: a value does not fit its column; nothing was inserted.
    """
    values, mark = row
    same = Do(f"SELECT ID FROM {table.main} WHERE pyexpd_fingerprint = ?", (mark,))
    if (yield same).rows:
        return None
    columns = [*map(quote, table.keyfields), "creation_date", "status"]
    added = yield Do(
        f"INSERT INTO {table.main} ({', '.join(columns)}, pyexpd_fingerprint)"
        f" VALUES ({marks(columns)}, ?) {table.dialect.ignore_duplicates}",
        (*values, local_time(), "created", mark),
    )
    if not added.changed:  # another was faster
        return None
    ((experiment_id,),) = (yield same).rows
    return (yield from _take_one(table, me, token, experiment_id, statuses=("created",), name=name, machine=machine))


def _take_one(
    table: Table, me: Incarnation, token: str, experiment_id: int, *, statuses: Sequence[str], name: str, machine: str
) -> Steps[Claim | None]:
    _, claimed = yield Commit(
        [
            Do(
                f"{_take(table)} WHERE ID = ? AND status IN ({marks(statuses)}) AND {_i_live(table)}"
                f" AND {_keyfields_are_mine(table)}",
                (
                    *(me.id, token, local_time(), name, machine, experiment_id, *statuses),
                    *(me.id, me.uuid, *_keyfields(table)),
                ),
            )
        ],
        then=[_read_claimed(table, [experiment_id], token)],
    )
    return next(iter(_claims(table, claimed.rows, token)), None)


def _take(table: Table) -> str:
    """The beginning of the UPDATE that makes experiments ours: daemon, token, date, name and machine are bound."""
    return (
        f"UPDATE {table.main} {table.dialect.primary} SET status = 'running', pyexpd_attempt = pyexpd_attempt + 1,"
        f" pyexpd_daemon = ?, pyexpd_token = ?, start_date = ?, name = ?, machine = ?,"
        f" end_date = NULL, error = NULL, pyexpd_cancel = 0, pyexpd_not_before = NULL"
    )


def _i_live(table: Table) -> str:
    """The condition that this incarnation (id and uuid are bound) was not declared dead."""
    return f"EXISTS (SELECT 1 FROM {table.daemons} WHERE id = ? AND incarnation = ? AND state = 'live')"


def _keyfields_are_mine(table: Table) -> str:
    """The condition that every keyfield that was added to the table is complete and among ours (`_keyfields`).

    Whoever adds one says so before the first experiment has it, so what is picked to be claimed cannot be ahead of it.
    """
    return (
        f"NOT EXISTS (SELECT 1 FROM {table.meta} WHERE SUBSTR(name, 1, {len(ADDED)}) = '{ADDED}'"
        f" AND LOWER(value) NOT IN ({marks(list(table.keyfields))}))"
    )


def _keyfields(table: Table) -> list[str]:
    return [name.lower() for name in table.keyfields]


@unit
def read_back(table: Table, *, me: Incarnation, token: str, started: str) -> Steps[list[Claim]]:
    """The rows a claim took whose answer was lost. Only after its connection is gone from the server.

    By its start date too: after an edit by hand PyExperimenter may run one, under the token that was left there.
    """
    held = yield Do(
        f"SELECT ID FROM {table.main} {table.use(OWNER)}"
        f" WHERE pyexpd_daemon = ? AND status = 'running' AND pyexpd_token = ?",
        (me.id, token),
    )
    if not held.rows:
        return []
    claimed = yield _read_claimed(table, sorted(row[0] for row in held.rows), token)
    return [claim for claim in _claims(table, claimed.rows, token) if claim.start_date == started]


def _read_claimed(table: Table, ids: Sequence[int], token: str) -> Do:
    # The token is part of the condition: between COMMIT and this read a row may have been edited by hand and
    # claimed by another daemon, and its attempt number is not ours then.
    return Do(
        f"SELECT ID, pyexpd_attempt, pyexpd_order, start_date, {table.parameters} FROM {table.main}"
        f" {table.dialect.primary} WHERE ID IN ({marks(ids)}) AND pyexpd_token = ?",
        (*ids, token),
    )


def _claims(table: Table, rows: Iterable[Sequence[Any]], token: str) -> list[Claim]:
    return [
        Claim(
            experiment_id=row[0],
            attempt=row[1],
            token=token,
            start_date=str(row[3]),
            keyfields=table.decode(row[4:]),
            order=row[2],
        )
        for row in sorted(rows, key=lambda row: (row[2], row[0]))
    ]


@unit
def release_unknown(table: Table, *, me: Incarnation, held: Sequence[tuple[int, str]]) -> Steps[int]:
    """Hand back, uncharged, rows the database says are ours under tokens we do not know; how many were.

    They come from a claim that was committed after it was given up, or from a restored database.
    """
    tokens = dict(held)
    ids = sorted(tokens)
    locked = yield Do(
        f"SELECT ID, pyexpd_token, pyexpd_cancel FROM {table.main} {table.dialect.primary}"
        f" WHERE ID IN ({marks(ids)}) AND status = 'running' AND pyexpd_daemon = ? {table.dialect.for_update}",
        (*ids, me.id),
    )
    back = [(row[0], "cancelled" if row[2] else "created") for row in locked.rows if tokens[row[0]] == row[1]]
    if back:
        yield Commit(free_rows(table, back))
    return len(back)


def free_rows(table: Table, rows: Sequence[tuple[int, str]]) -> list[Do]:
    """Statements that set locked running rows to a status each, without an owner; tries stay."""
    by_status: dict[str, list[int]] = defaultdict(list)
    for number, status in rows:
        by_status[status].append(number)
    return [
        Do(
            f"UPDATE {table.main} {table.dialect.primary} SET status = ?, start_date = NULL, name = NULL,"
            f" machine = NULL, {FREED} WHERE ID IN ({marks(ids)})",
            (status, *ids),
        )
        for status, ids in by_status.items()
    ]


@unit
def take_back(table: Table, claims: Sequence[Claim], *, me: Incarnation, token: str) -> Steps[list[Claim]]:
    """Get hold again of experiments that were requeued when a former incarnation of `me` was declared dead.

    Those that nobody took since (and those not requeued yet) become running again under `me` and `token`; their `lost`
    receipts are taken out and uncharged. The new claims are returned; what is missing from them was taken.

    After a lost reply it is called again with the same `token`. What the earlier call took back may have been requeued
    since, for the new incarnation was not heard of either.
    """
    by_id = {claim.experiment_id: claim for claim in claims}
    ids = sorted(by_id)
    locked, stored = yield [
        Do(
            f"SELECT ID, status, pyexpd_attempt, pyexpd_token, start_date, pyexpd_tries"
            f" FROM {table.main} {table.dialect.primary}"
            f" WHERE ID IN ({marks(ids)}) AND status IN ('created', 'running') {table.dialect.for_update}",
            ids,
        ),
        Do(
            f"SELECT experiment_id, attempt, token FROM {table.attempts}"
            f" WHERE experiment_id IN ({marks(ids)}) AND outcome = 'lost'",
            ids,
        ),
    ]
    lost = {tuple(row) for row in stored.rows}
    mine: dict[int, Claim] = {}
    not_lost: list[Claim] = []
    writes: list[Do] = []
    for number, status, attempt, held_token, start_date, tries in locked.rows:
        old = by_id[number]
        receipts = [each for each in (old, replace(old, token=token)) if (number, each.attempt, each.token) in lost]
        requeued = status == "created" and bool(receipts)
        # By its start date too: after an edit by hand PyExperimenter may run it, under the token that was left there.
        kept = status == "running" and held_token in (old.token, token) and str(start_date) == old.start_date
        if attempt != old.attempt or not (requeued or kept):
            continue
        mine[number] = replace(old, token=token)
        not_lost += receipts
        writes.append(
            Do(
                f"UPDATE {table.main} SET status = 'running', pyexpd_daemon = ?, pyexpd_token = ?, start_date = ?,"
                f" error = NULL, end_date = NULL, pyexpd_tries = ? WHERE ID = ?",
                (me.id, token, old.start_date, uncharged(tries) if requeued else tries, number),
            )
        )
    if mine:
        yield Commit([*writes, *take_out_losses(table, not_lost)])
    return list(mine.values())


def take_out_losses(table: Table, claims: Sequence[Claim]) -> list[Do]:
    """Statements that remove the `lost` receipts of claims that were not lost after all; uncharging is the caller's."""
    return [
        Do(
            f"DELETE FROM {table.attempts} WHERE experiment_id = ? AND attempt = ? AND token = ? AND outcome = 'lost'",
            (claim.experiment_id, claim.attempt, claim.token),
        )
        for claim in claims
    ]
