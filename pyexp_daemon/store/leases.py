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
from pyexp_daemon.store.tables import CLAIM, OWNER, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit
from pyexp_daemon.store.values import local_time

FREED = "pyexpd_daemon = NULL, pyexpd_token = NULL, pyexpd_cancel = 0"
"""What every write that leaves `running` also sets, so that nothing stale survives an edit by hand."""


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
) -> Steps[list[Claim]]:
    """Take up to `limit` created experiments, smallest order first; [] when nothing waits.

    A row locked by another session belongs to another daemon and is skipped. All rows taken carry `token`. With
    `at_random` they are those that follow a random one among the smallest order.

    Raises:
        Fenced: this incarnation was declared dead; nothing was taken.
    """
    start_after: str = ""
    bound: tuple[int, ...] = ()
    if at_random:
        start_after, bound = yield from _random_start(table, queue)
    picked = yield Do(_claimable(table, start_after), (queue, *bound, limit))
    if not picked.rows and at_random:
        picked = yield Do(_claimable(table, ""), (queue, limit))
    if not picked.rows:
        return []
    ids = sorted(row[0] for row in picked.rows)
    started = local_time()
    taken, claimed = yield Commit(
        [
            Do(
                f"{_take(table)} WHERE ID IN ({marks(ids)}) AND {_i_live(table)}",
                (me.id, token, started, name, machine, *ids, me.id, me.uuid),
            )
        ],
        then=[_read_claimed(table, ids, token)],
    )
    if not taken.changed:
        raise exceptions.Fenced(f"daemon {me.id} was declared dead")
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
    return " AND pyexpd_order = ? AND ID >= ?", (order, random.randint(lowest, highest))


@unit
def claim_one(
    table: Table, *, me: Incarnation, token: str, experiment_id: int, name: str = "", machine: str = ""
) -> Steps[Claim | None]:
    """Take this very experiment if it is created or waiting, whatever its queue; None when it is not to be had."""
    _, claimed = yield Commit(
        [
            Do(
                f"{_take(table)} WHERE ID = ? AND status IN ('created', 'waiting') AND {_i_live(table)}",
                (me.id, token, local_time(), name, machine, experiment_id, me.id, me.uuid),
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


@unit
def read_back(table: Table, *, me: Incarnation, token: str) -> Steps[list[Claim]]:
    """The rows a claim took whose answer was lost. Only after its connection is gone from the server."""
    held = yield Do(
        f"SELECT ID FROM {table.main} {table.use(OWNER)}"
        f" WHERE pyexpd_daemon = ? AND status = 'running' AND pyexpd_token = ?",
        (me.id, token),
    )
    if not held.rows:
        return []
    claimed = yield _read_claimed(table, sorted(row[0] for row in held.rows), token)
    return _claims(table, claimed.rows, token)


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
            experiment_id=row[0], attempt=row[1], token=token, start_date=str(row[3]), keyfields=table.decode(row[4:])
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
    """
    by_id = {claim.experiment_id: claim for claim in claims}
    ids = sorted(by_id)
    locked, stored = yield [
        Do(
            f"SELECT ID, status, pyexpd_attempt, pyexpd_token, pyexpd_tries FROM {table.main} {table.dialect.primary}"
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
    writes: list[Do] = []
    for number, status, attempt, held_token, tries in locked.rows:
        old = by_id[number]
        requeued = status == "created" and (number, old.attempt, old.token) in lost
        kept = status == "running" and held_token in (old.token, token)  # `token`: an earlier call whose reply was lost
        if attempt != old.attempt or not (requeued or kept):
            continue
        mine[number] = replace(old, token=token)
        writes.append(
            Do(
                f"UPDATE {table.main} SET status = 'running', pyexpd_daemon = ?, pyexpd_token = ?, start_date = ?,"
                f" error = NULL, end_date = NULL, pyexpd_tries = ? WHERE ID = ?",
                (me.id, token, old.start_date, uncharged(tries) if requeued else tries, number),
            )
        )
    if mine:
        back = [(claim.experiment_id, claim.attempt, by_id[claim.experiment_id].token) for claim in mine.values()]
        yield Commit(
            [
                *writes,
                *(
                    Do(
                        f"DELETE FROM {table.attempts}"
                        f" WHERE experiment_id = ? AND attempt = ? AND token = ? AND outcome = 'lost'",
                        key,
                    )
                    for key in back
                ),
            ]
        )
    return list(mine.values())
