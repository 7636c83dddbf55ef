"""Claims, and everything that is written under one: results, log rows, the end, the way back."""

from __future__ import annotations

import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.model import CHARGED, Attempt, Claim, Incarnation, Outcome, Report, RetryPolicy, Status, Verdict
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import CLAIM, OWNER, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit

RECEIPT = (
    "experiment_id", "attempt", "token", "daemon", "host", "pid", "started", "ended", "outcome", "error", "exit_code",
    "signal", "cpu_seconds", "peak_rss_bytes", "code_version", "log_tail", "result",
)  # fmt: skip
"""The columns of the attempts table."""

FREED = "pyexpd_daemon = NULL, pyexpd_token = NULL, pyexpd_cancel = 0"
"""What every write that leaves `running` also sets, so that nothing stale survives an edit by hand."""

_END_OF: Mapping[Outcome, Status] = {
    Outcome.DONE: Status.DONE,
    Outcome.PAUSED: Status.PAUSED,
    Outcome.CANCELLED: Status.CANCELLED,
    Outcome.RELEASED: Status.CREATED,
    Outcome.SUPERSEDED: Status.CREATED,  # killed because its row seemed taken, and it was not
}


def local_time(seconds: float | None = None) -> str:
    """A time as PyExperimenter's date columns hold it: local, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


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
def record(
    table: Table, reports: Sequence[Report], *, me: Incarnation, host: str, policy: RetryPolicy, repeated: bool = False
) -> Steps[list[Verdict]]:
    """Write results, log rows and ends of held experiments; one verdict per report, in their order.

    A report whose claim no longer holds its row changes nothing there: an end that an earlier call already stored is
    `known`, any other is `superseded`, kept with its result in the attempts table. An experiment may appear once.

    Args:
        repeated: an earlier call with these reports may have been committed; log rows that are there are left out.

    Raises:
        RowRefused: a value cannot be stored; nothing was written.
    """
    by_id = {report.claim.experiment_id: report for report in reports}
    ids = sorted(by_id)
    tokens = sorted({report.claim.token for report in reports})
    locked, stored = yield [
        Do(
            f"SELECT ID, status, pyexpd_attempt, pyexpd_token, start_date, pyexpd_cancel, pyexpd_tries"
            f" FROM {table.main} {table.dialect.primary}"
            f" WHERE ID IN ({marks(ids)}) AND status IN ('running', 'created') {table.dialect.for_update}",
            ids,
        ),
        Do(
            f"SELECT experiment_id, token, outcome FROM {table.attempts}"
            f" WHERE experiment_id IN ({marks(ids)}) AND token IN ({marks(tokens)})",
            (*ids, *tokens),
        ),
    ]
    receipts = {(row[0], row[1]): row[2] for row in stored.rows}
    rows = {row[0]: _Locked(*row) for row in locked.rows}
    held = {number: row for number, row in rows.items() if row.held_by(by_id[number], receipts)}
    verdicts = [_verdict(report.claim, held, receipts) for report in reports]
    accepted = [by_id[number] for number in ids if number in held]
    late = [r for r, v in zip(reports, verdicts, strict=True) if v is Verdict.SUPERSEDED and r.end is not None]
    if repeated:
        accepted = yield from _without_stored_logs(table, accepted)
    writes = [
        *_row_updates(table, accepted, held, policy),
        *_log_inserts(table, accepted),
        *_receipts(table, [*accepted, *(_as_superseded(report) for report in late)], me=me, host=host),
    ]
    if writes:
        yield Commit(writes)
    return verdicts


@dataclass(frozen=True, slots=True)
class _Locked:
    """An experiment row as `record` locked it."""

    id: int
    status: str
    attempt: int
    token: str | None
    start_date: Any
    cancel: int
    tries: str | None

    def held_by(self, report: Report, receipts: Mapping[tuple[int, str], str]) -> bool:
        """Whether the report's claim still has the row, or may have it back for its end.

        The start date catches a claim made by PyExperimenter itself, which leaves our token, after an edit by hand.
        """
        claim = report.claim
        if self.status == "running":
            return self.token == claim.token and str(self.start_date) == claim.start_date
        return report.end is not None and self.attempt == claim.attempt and self._was_lost(claim, receipts)

    def _was_lost(self, claim: Claim, receipts: Mapping[tuple[int, str], str]) -> bool:
        # Its daemon was declared dead and nobody took the row since: a result that exists is not computed again.
        return receipts.get((claim.experiment_id, claim.token)) == Outcome.LOST

    @property
    def spent(self) -> str | None:
        """The tries before this attempt: a requeued row was charged for the loss that now turns out to be none."""
        return self.tries if self.status == "running" else _uncharged(self.tries)


def _verdict(claim: Claim, held: Mapping[int, Any], receipts: Mapping[tuple[int, str], str]) -> Verdict:
    if claim.experiment_id in held:
        return Verdict.ACCEPTED
    receipt = receipts.get((claim.experiment_id, claim.token))
    if receipt in (None, Outcome.LOST, Outcome.SUPERSEDED):
        return Verdict.SUPERSEDED
    return Verdict.KNOWN


def _as_superseded(report: Report) -> Report:
    end = report.end
    assert end is not None
    return replace(report, end=replace(end, outcome=Outcome.SUPERSEDED, results={**report.results, **end.results}))


def _row_updates(table: Table, reports: Sequence[Report], held: Mapping[int, _Locked], policy: RetryPolicy) -> list[Do]:
    """The statements that change the experiment rows, one for all rows that set the same columns."""
    alike: dict[tuple[str, ...], list[list[Any]]] = defaultdict(list)
    for report in reports:
        row = held[report.claim.experiment_id]
        changes = _result_changes(table, report)
        if report.end is not None:
            changes |= _end_changes(report.end, cancelled=bool(row.cancel), tries=row.spent, policy=policy)
        if changes:
            alike[tuple(changes)].append([report.claim.experiment_id, *changes.values()])
    due = table.dialect.after("{}")
    return [
        statement
        for columns, rows in alike.items()
        for statement in table.dialect.update_rows(
            table.main, {column: due if column == "pyexpd_not_before" else "{}" for column in columns}, rows
        )
    ]


def _result_changes(table: Table, report: Report) -> dict[str, Any]:
    results = {**report.results, **(report.end.results if report.end else {})}
    if not results:
        return {}
    changes = {name: storable(value) for name, value in results.items()}
    if table.result_timestamps:
        changes |= {f"{name}_timestamp": local_time() for name in results}
    return dict(sorted(changes.items()))


def storable(value: Any) -> Any:
    """A value as the databases take it: NaN and infinities, which neither can hold, become NULL."""
    if _not_finite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return value


def _end_changes(end: Attempt, *, cancelled: bool, tries: str | None, policy: RetryPolicy) -> dict[str, Any]:
    status, spent = next_status(end.outcome, cancelled=cancelled, tries=tries, policy=policy)
    over = status in (Status.DONE, Status.ERROR, Status.PAUSED, Status.CANCELLED)
    changes = {
        "status": status.value,
        "end_date": local_time(end.ended) if over else None,
        "error": storable(end.error) if end.outcome not in (Outcome.DONE, Outcome.RELEASED) else None,
        "pyexpd_daemon": None,
        "pyexpd_token": None,
        "pyexpd_cancel": 0,
        "pyexpd_tries": spent,
        "pyexpd_not_before": backoff_s(policy, spent) if status is Status.WAITING else None,
    }
    if end.outcome is Outcome.RELEASED:
        changes |= {"start_date": None, "name": None, "machine": None}
    return changes


def next_status(
    outcome: Outcome, *, cancelled: bool, tries: str | None, policy: RetryPolicy
) -> tuple[Status, str | None]:
    """Where an experiment goes after an attempt that ended so, and its tries after it (JSON, NULL for none)."""
    spent = read_tries(tries)
    if outcome in CHARGED:
        spent[outcome.value] = spent.get(outcome.value, 0) + 1
    text = json.dumps(spent, sort_keys=True) if spent else None
    if cancelled and outcome is not Outcome.DONE:
        return Status.CANCELLED, text
    if outcome in _END_OF:
        return _END_OF[outcome], text
    if spent[outcome.value] >= policy.tries.get(outcome.value, 1):
        return Status.ERROR, text
    return (Status.CREATED if outcome is Outcome.LOST else Status.WAITING), text


def read_tries(tries: str | None) -> dict[str, int]:
    """The tries of an experiment by outcome; what somebody wrote there by hand and is none counts as nothing."""
    try:
        spent = json.loads(tries) if tries else {}
    except ValueError:
        return {}
    return {key: value for key, value in spent.items() if type(value) is int} if isinstance(spent, dict) else {}


def backoff_s(policy: RetryPolicy, tries: str | None) -> float:
    """Seconds until the next attempt: doubled with every try that is spent, jittered by a quarter."""
    spent = sum(read_tries(tries).values()) or 1
    longest = min(policy.longest_s, policy.first_s * 2.0 ** min(spent - 1, 60))
    return longest * random.uniform(0.75, 1.0)


def _without_stored_logs(table: Table, reports: Sequence[Report]) -> Steps[list[Report]]:
    """The reports without the log rows that an earlier, committed write of them left."""
    last: dict[tuple[str, int], int] = {}
    for logtable in sorted({row.logtable for report in reports for row in report.logs}):
        ids = [report.claim.experiment_id for report in reports]
        seen = yield Do(
            f"SELECT l.experiment_id, MAX(l.pyexpd_seq) FROM {table.beside(logtable)} l JOIN {table.main} t"
            f" ON t.ID = l.experiment_id AND t.pyexpd_attempt = l.pyexpd_attempt"
            f" WHERE l.experiment_id IN ({marks(ids)}) GROUP BY l.experiment_id",
            ids,
        )
        last |= {(logtable, row[0]): row[1] or 0 for row in seen.rows}
    return [
        replace(
            report,
            logs=tuple(row for row in report.logs if row.seq > last.get((row.logtable, report.claim.experiment_id), 0)),
        )
        for report in reports
    ]


def _log_inserts(table: Table, reports: Sequence[Report]) -> list[Do]:
    # After the experiments are locked, never before: the foreign key locks them too, in the order of the inserts.
    alike: dict[tuple[str, tuple[str, ...]], list[list[Any]]] = defaultdict(list)
    for report in reports:
        for row in report.logs:
            values = [report.claim.experiment_id, local_time(row.time), report.claim.attempt, row.seq]
            alike[row.logtable, tuple(row.columns)].append([*values, *map(storable, row.columns.values())])
    return [
        Do(
            f"INSERT INTO {table.beside(logtable)} (experiment_id, timestamp, pyexpd_attempt, pyexpd_seq"
            f"{''.join(f', {quote(column)}' for column in columns)}) VALUES (?, ?, ?, ?{', ?' * len(columns)})",
            rows,
            many=True,
        )
        for (logtable, columns), rows in alike.items()
    ]


def _receipts(table: Table, reports: Sequence[Report], *, me: Incarnation, host: str) -> list[Do]:
    rows = [
        receipt(table, report.claim, report.end, results=report.results, me=me.id, host=host)
        for report in reports
        if report.end is not None and report.end.started is not None  # never started: nothing happened
    ]
    return [put_receipts(table, rows)] if rows else []


def put_receipts(table: Table, rows: Sequence[Sequence[Any]]) -> Do:
    """The statement that inserts rows of the attempts table, each made by `receipt`."""
    return table.dialect.put_receipts(table.attempts, RECEIPT, rows)


def receipt(
    table: Table, claim: Claim, end: Attempt, *, me: int | None, host: str | None, results: Mapping[str, Any]
) -> tuple[Any, ...]:
    """One row of the attempts table; a superseded attempt keeps its result there."""
    lost_values = [name for name, value in {**results, **end.results}.items() if _not_finite(value)]
    warning = f"stored as NULL, not a finite number: {', '.join(lost_values)}" if lost_values else None
    result = json.dumps(dict(end.results), default=str) if end.outcome is Outcome.SUPERSEDED and end.results else None
    return (
        claim.experiment_id,
        claim.attempt,
        claim.token,
        me,
        host,
        end.pid,
        utc(table, end.started),
        utc(table, end.ended),
        end.outcome.value,
        storable(end.error) or warning,
        end.exit_code,
        end.signal,
        end.cpu_seconds,
        end.peak_rss_bytes,
        end.code_version,
        storable(end.log_tail),
        result,
    )


def _not_finite(value: Any) -> bool:
    return isinstance(value, float | Decimal) and not math.isfinite(value)


def utc(table: Table, seconds: float | None) -> Any:
    """A time as our own columns hold it: DATETIME(6) in UTC on MySQL, seconds since the epoch on SQLite."""
    if seconds is None or table.dialect.provider == "sqlite":
        return seconds
    whole = math.floor(seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1e6):06d}"


@unit
def check_writable(table: Table) -> Steps[None]:
    """Nothing, if the tables are as `record` needs them: then what it refused is the fault of a row.

    Raises:
        MissingTable, DatabaseQueryError: the tables themselves are in the way.
    """
    columns = ", ".join(map(quote, (*table.columns, "pyexpd_tries", "pyexpd_not_before", "pyexpd_cancel")))
    yield Do(f"SELECT {columns} FROM {table.main} WHERE ID = 0")
    yield Do(f"SELECT {', '.join(map(quote, RECEIPT))} FROM {table.attempts} WHERE experiment_id = 0")
    yield Commit([Do(f"UPDATE {table.main} SET status = status WHERE ID = 0")])


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
                (me.id, token, old.start_date, _uncharged(tries) if requeued else tries, number),
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


def _uncharged(tries: str | None) -> str | None:
    spent = read_tries(tries)
    spent["lost"] = spent.get("lost", 0) - 1
    left = {outcome: count for outcome, count in spent.items() if count > 0}
    return json.dumps(left, sort_keys=True) if left else None
