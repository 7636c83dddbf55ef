"""What is written under a claim: results and log rows while an experiment runs, and its end."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, Report, RetryPolicy, Status, Verdict
from pyexp_daemon.store import emissions, snapshots
from pyexp_daemon.store.budgets import backoff_s, next_status, uncharged
from pyexp_daemon.store.leases import FREED, take_out_losses
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import OWNER, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit
from pyexp_daemon.store.values import local_time, not_finite, storable, utc

RECEIPT = (
    "experiment_id", "attempt", "token", "daemon", "host", "pid", "started", "ended", "outcome", "error", "exit_code",
    "signal", "cpu_seconds", "peak_rss_bytes", "code_version", "log_tail", "result",
)  # fmt: skip
"""The columns of the attempts table."""


@unit
def record(
    table: Table,
    reports: Sequence[Report],
    *,
    me: Incarnation,
    host: str,
    policy: RetryPolicy,
    repeated: bool = False,
    late: bool = False,
) -> Steps[list[Verdict]]:
    """Write results, log rows, snapshots and ends of held experiments; one verdict per report, in their order.

    A report whose claim no longer holds its row changes nothing there, but takes out a token of ours that an edit by
    hand has left: an end that an earlier call already stored is `known`, any other is `superseded`, kept with its
    result in the attempts table. An experiment may appear once.

    Args:
        repeated: an earlier call with these reports may have been committed; log rows that are there are left out.
        late: their daemon is dead. Not only ends, but results and log rows too are accepted for an experiment that was
            requeued and that nobody took since: the end that follows may be in another call.

    Raises:
        RowRefused: a value cannot be stored, or a snapshot lacks a part; nothing was written.
    """
    by_id = {report.claim.experiment_id: report for report in reports}
    ids = sorted(by_id)
    locked = yield Do(
        f"SELECT ID, status, pyexpd_attempt, pyexpd_token, start_date, pyexpd_cancel, pyexpd_tries"
        f" FROM {table.main} {table.dialect.primary}"
        f" WHERE ID IN ({marks(ids)}) AND status IN ('running', 'created') {table.dialect.for_update}",
        ids,
    )
    rows = {row[0]: _Locked(*row) for row in locked.rows}
    doubtful = [
        by_id[number].claim for number in ids if number not in rows or not rows[number].is_run_by(by_id[number].claim)
    ]
    receipts = (yield from _read_receipts(table, doubtful)) if doubtful else {}
    ours = {number: row for number, row in rows.items() if row.held_by(by_id[number], receipts, late=late)}
    verdicts = [_verdict(report.claim, ours, receipts) for report in reports]
    accepted = [by_id[number] for number in ids if number in ours]
    overtaken = [r for r, v in zip(reports, verdicts, strict=True) if v is Verdict.SUPERSEDED and r.end is not None]
    if repeated:
        accepted = yield from _without_stored_logs(table, accepted)
    measured = [report for report in accepted if report.end is not None and report.end.emissions is not None]
    # Somebody may have dropped that table: then the results are stored without.
    there = (yield from emissions.columns(table)) if measured else ()
    writes = [
        *_row_updates(table, accepted, ours, policy),
        *log_inserts(table, accepted),
        *(yield from snapshots.writes(table, accepted)),
        *emissions.inserts(table, measured, there),
        *_receipts(table, [*accepted, *(_as_superseded(report) for report in overtaken)], me=me, host=host),
        *take_out_losses(table, [report.claim for report in accepted if _was_no_loss(report, ours)]),
        *_disown(table, overtaken, rows),
    ]
    if writes:
        yield Commit(writes)
    return verdicts


@unit
def store_results(table: Table, reports: Sequence[Report]) -> Steps[bool]:
    """Write what `are_results`: what `record` does with them, in one statement where that is possible.

    False: some experiment is not held under its claim, which only `record` can judge. Results of the others are
    written, and writing them again changes nothing.
    """
    rows: list[_Update] = []
    for report in sorted(reports, key=lambda report: report.claim.experiment_id):
        claim = report.claim
        held = {"status": Status.RUNNING.value, "pyexpd_token": claim.token, "start_date": claim.start_date}
        rows.append((claim.experiment_id, result_changes(table, report), held))
    done = yield Commit(_updates(table, rows))
    matched: int = sum(written.changed for written in done)
    return matched == len(reports)


def are_results(reports: Sequence[Report]) -> bool:
    """Whether these are results of running experiments, and nothing else."""
    return all(
        report.results and not (report.end or report.logs or report.parts or report.snapshots) for report in reports
    )


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

    def is_run_by(self, claim: Claim) -> bool:
        """Whether it runs under this claim."""
        return self.status == "running" and self.token == claim.token and str(self.start_date) == claim.start_date

    def held_by(self, report: Report, receipts: Mapping[tuple[int, str], str], *, late: bool) -> bool:
        """Whether the report's claim still has the row, or may have it back for its end.

        The start date catches a claim made by PyExperimenter itself, which leaves our token, after an edit by hand.
        """
        claim = report.claim
        if self.status == "running":
            return self.is_run_by(claim)
        wanted = late or report.end is not None
        return wanted and self.attempt == claim.attempt and self._was_lost(claim, receipts)

    def _was_lost(self, claim: Claim, receipts: Mapping[tuple[int, str], str]) -> bool:
        # Its daemon was declared dead and nobody took the row since: a result that exists is not computed again.
        return receipts.get((claim.experiment_id, claim.token)) == Outcome.LOST

    @property
    def spent(self) -> str | None:
        """The tries before this attempt: a requeued row was charged for the loss that now turns out to be none."""
        return self.tries if self.status == "running" else uncharged(self.tries)


def _read_receipts(table: Table, claims: Sequence[Claim]) -> Steps[dict[tuple[int, str], str]]:
    """The outcomes that were stored under claims, by experiment and token. Few are asked for: who holds has none."""
    ids = [claim.experiment_id for claim in claims]
    tokens = sorted({claim.token for claim in claims})
    stored = yield Do(
        f"SELECT experiment_id, token, outcome FROM {table.attempts}"
        f" WHERE experiment_id IN ({marks(ids)}) AND token IN ({marks(tokens)})",
        (*ids, *tokens),
    )
    return {(row[0], row[1]): row[2] for row in stored.rows}


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
    """The statements that change the experiment rows."""
    rows: list[_Update] = []
    for report in reports:
        row = held[report.claim.experiment_id]
        changes = result_changes(table, report)
        if report.end is not None:
            spent = snapshots.forgiven(row.spent) if report.snapshots else row.spent
            changes |= _end_changes(report.end, cancelled=bool(row.cancel), tries=spent, policy=policy)
        elif report.snapshots:
            changes["pyexpd_tries"] = snapshots.forgiven(row.tries, was_lost=row.status != "running")
        if changes:
            rows.append((report.claim.experiment_id, changes, {}))
    return _updates(table, rows)


_Update: TypeAlias = tuple[int, Mapping[str, Any], Mapping[str, Any]]
"""The ID of an experiment, its changes by column, and what other columns must have, or it stays as it is."""


def _updates(table: Table, rows: Sequence[_Update]) -> list[Do]:
    """Statements that change experiments, one for all that set the same columns."""
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[list[Any]]] = defaultdict(list)
    for number, changes, held in rows:
        alike[tuple(changes), tuple(held)].append([number, *changes.values(), *held.values()])
    due = table.dialect.after("{}")
    return [
        statement
        for (columns, guard), values in alike.items()
        for statement in table.dialect.update_rows(
            table.main,
            {column: due if column == "pyexpd_not_before" else "{}" for column in columns},
            values,
            guard=guard,
        )
    ]


def result_changes(table: Table, report: Report) -> dict[str, Any]:
    """The columns of the experiment that a report's results set."""
    return result_columns(table, {**report.results, **(report.end.results if report.end else {})})


def result_columns(table: Table, results: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that results set, by name, with the values to bind."""
    if not results:
        return {}
    changes = {name: storable(value) for name, value in results.items()}
    if table.result_timestamps:
        changes |= {f"{name}_timestamp": local_time() for name in results}
    return dict(sorted(changes.items()))


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
            logs=tuple(
                row for row in report.logs if (row.seq or 0) > last.get((row.logtable, report.claim.experiment_id), 0)
            ),
        )
        for report in reports
    ]


def log_inserts(table: Table, reports: Sequence[Report]) -> list[Do]:
    """Statements that insert the log rows of reports whose experiments are locked."""
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


def _was_no_loss(report: Report, held: Mapping[int, _Locked]) -> bool:
    """Whether an experiment was requeued that never began: handed back, it leaves no receipt that would say lost."""
    requeued = held[report.claim.experiment_id].status != "running"
    return requeued and report.end is not None and report.end.started is None


def _disown(table: Table, reports: Sequence[Report], rows: Mapping[int, _Locked]) -> list[Do]:
    """After an edit by hand a row bears our token still: whatever runs there later must not be taken for ours."""
    ids = sorted(
        report.claim.experiment_id
        for report in reports
        if (row := rows.get(report.claim.experiment_id)) is not None and row.token == report.claim.token
    )
    return (
        [Do(f"UPDATE {table.main} {table.dialect.primary} SET {FREED} WHERE ID IN ({marks(ids)})", ids)] if ids else []
    )


def put_receipts(table: Table, rows: Sequence[Sequence[Any]]) -> Do:
    """The statement that inserts rows of the attempts table, each made by `receipt`."""
    return table.dialect.put_receipts(table.attempts, RECEIPT, rows)


def receipt(
    table: Table, claim: Claim, end: Attempt, *, me: int | None, host: str | None, results: Mapping[str, Any]
) -> tuple[Any, ...]:
    """One row of the attempts table; a superseded attempt keeps its result there."""
    lost_values = [name for name, value in {**results, **end.results}.items() if not_finite(value)]
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


@unit
def held(table: Table, *, owner: int) -> Steps[list[tuple[int, str]]]:
    """The experiments that run under a daemon row, and the tokens under which they do."""
    found = yield Do(
        f"SELECT ID, pyexpd_token FROM {table.main} {table.use(OWNER)}"
        f" WHERE pyexpd_daemon = ? AND status = 'running' AND pyexpd_token IS NOT NULL",
        (owner,),
    )
    return [(row[0], row[1]) for row in found.rows]


@unit
def check_writable(table: Table) -> Steps[None]:
    """Nothing, if the tables are as `record` needs them: then what it refused is the fault of a row.

    Raises:
        MissingTable, DatabaseQueryError: the tables themselves are in the way.
    """
    columns = ", ".join(map(quote, (*table.columns, "pyexpd_tries", "pyexpd_not_before", "pyexpd_cancel")))
    yield Do(f"SELECT {columns} FROM {table.main} WHERE ID = 0")
    yield Do(f"SELECT {', '.join(map(quote, RECEIPT))} FROM {table.attempts} WHERE experiment_id = 0")
    for name in (table.snapshots, table.snapshot_parts):
        yield Do(f"SELECT experiment_id FROM {name} WHERE experiment_id = 0")
    yield Commit([Do(f"UPDATE {table.main} SET status = status WHERE ID = 0")])
