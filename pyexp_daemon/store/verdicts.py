"""Whether a node fails what others can do, and the experiments such a node has failed, given back."""

from __future__ import annotations

from collections.abc import Sequence

from pyexp_daemon.model import Claim, Outcome
from pyexp_daemon.store.budgets import uncharged
from pyexp_daemon.store.tables import ENDED, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit

FAILURES = (Outcome.ERROR, Outcome.CRASH)
"""What may be the node's fault."""

_FAILED = "('error', 'crash')"


@unit
def lately(table: Table, *, seconds: float) -> Steps[dict[int, tuple[int, int]]]:
    """How many attempts were done, and how many failed, within the last `seconds`, by the id of their daemon."""
    found = yield Do(
        f"SELECT daemon, SUM(outcome = 'done'), SUM(outcome IN {_FAILED}) FROM {table.attempts}"
        f" {table.use(ENDED)} WHERE ended >= {table.dialect.after()} AND daemon > 0 GROUP BY daemon",
        (-seconds,),
    )
    return {row[0]: (int(row[1]), int(row[2])) for row in found.rows}


@unit
def failed_elsewhere(table: Table, claims: Sequence[Claim], *, mine: Sequence[int]) -> Steps[set[int]]:
    """Which of these experiments have failed in later attempts under other daemons, too."""
    tried = {claim.experiment_id: claim.attempt for claim in claims}
    found = yield Do(
        f"SELECT experiment_id, attempt FROM {table.attempts} WHERE experiment_id IN ({marks(list(tried))})"
        f" AND outcome IN {_FAILED} AND daemon NOT IN ({marks(mine)})",
        (*tried, *mine),
    )
    return {row[0] for row in found.rows if row[1] > tried[row[0]]}


@unit
def retract(table: Table, claims: Sequence[Claim]) -> Steps[list[int]]:
    """Take back the failures of these claims: `created` again and uncharged; the experiments concerned.

    Only where nothing has happened to the experiment since. The receipts stay, with their error, as `released`: this is
    the one case in which a receipt other than `lost` is amended.
    """
    by_id = {claim.experiment_id: claim for claim in claims}
    ids = sorted(by_id)
    locked, stored = yield [
        Do(
            f"SELECT ID, pyexpd_attempt, pyexpd_tries FROM {table.main} {table.dialect.primary}"
            f" WHERE ID IN ({marks(ids)}) AND status IN ('error', 'waiting', 'created') {table.dialect.for_update}",
            ids,
        ),
        Do(
            f"SELECT experiment_id, attempt, token, outcome FROM {table.attempts}"
            f" WHERE experiment_id IN ({marks(ids)}) AND outcome IN {_FAILED}",
            ids,
        ),
    ]
    # By attempt, whatever its token: an experiment may have been taken back under another one before it failed.
    failed = {(row[0], row[1]): (row[2], row[3]) for row in stored.rows}
    writes: list[Do] = []
    taken_back: list[int] = []
    for number, attempt, tries in locked.rows:
        if attempt != by_id[number].attempt or (number, attempt) not in failed:
            continue
        token, outcome = failed[number, attempt]
        taken_back.append(number)
        writes += [
            Do(
                f"UPDATE {table.main} SET status = 'created', start_date = NULL, end_date = NULL, name = NULL,"
                f" machine = NULL, error = NULL, pyexpd_not_before = NULL, pyexpd_tries = ? WHERE ID = ?",
                (uncharged(tries, outcome=outcome), number),
            ),
            Do(
                f"UPDATE {table.attempts} SET outcome = 'released'"
                f" WHERE experiment_id = ? AND attempt = ? AND token = ?",
                (number, attempt, token),
            ),
        ]
    if writes:
        yield Commit(writes)
    return taken_back
