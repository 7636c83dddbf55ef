"""What a transfer writes into its target: a chunk of experiments in one transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions
from pyexp_daemon.model import Outcome, Status
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.store.leases import FREED
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.reports import RECEIPT
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.transfer.judging import Judged, Target, There, Verdict, find, verdict_of
from pyexp_daemon.store.transfer.parcels import Experiment, Parcel
from pyexp_daemon.store.unit import Commit, Do, Steps, marks, unit
from pyexp_daemon.store.values import storable, utc

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

STATEMENT_BYTES = 2**19
"""How much is inserted by one statement, unless one row is larger."""


HELD_S = 3600.0
"""So long a new experiment waits at most for its snapshots: if the transfer was killed, and is not repeated."""


_RESULT = ("start_date", "name", "machine", "end_date", "error")
"""What goes with the results when they replace others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delivery:
    """A parcel at its destination.

    Args:
        id: the experiment's in the target.
        there: the experiment as it was there, unless it is new.
        numbers: of the attempts there, by their tokens.
    """

    parcel: Parcel
    verdict: Verdict
    id: int
    there: There | None
    numbers: Mapping[str, int]

    @property
    def arrives(self) -> bool:
        """Whether the target gets the experiment's results, with everything that came with them."""
        return self.verdict in (Verdict.ADDED, Verdict.TAKEN)

    @property
    def highest(self) -> int:
        """The highest number that an attempt has there."""
        return max([*self.numbers.values(), 0 if self.there is None else self.there.attempt])

    @property
    def begin(self) -> int:
        """After this come the numbers of attempts which come with their results."""
        if self.there is None:
            return 0
        ours = {facts[_TOKEN] for facts in self.parcel.attempts}  # which get new numbers
        return max([self.there.attempt, *(number for token, number in self.numbers.items() if token not in ours)])


_TOKEN = RECEIPT.index("token")


def deliver(store: BlockingStore, target: Target, parcels: Sequence[Parcel], measured: Sequence[str]) -> list[Judged]:
    """Write a chunk in one transaction; one with a row that is refused is halved, until that row is alone.

    Args:
        measured: the columns of emissions that the source has.
    """
    try:
        judged: list[Judged] = store.run(unpack(target, parcels, measured))
        return judged
    except exceptions.RowRefused as error:
        if len(parcels) == 1:
            raise exceptions.RowRefused(
                f"experiment {parcels[0].experiment.id} does not fit: {error}",
                hint="those before it were copied; widen the column there and say it again, which goes on",
            ) from error
        middle = len(parcels) // 2
        return [
            *deliver(store, target, parcels[:middle], measured),
            *deliver(store, target, parcels[middle:], measured),
        ]


@unit
def unpack(target: Target, parcels: Sequence[Parcel], measured: Sequence[str]) -> Steps[list[Judged]]:
    """Write a chunk: new experiments, results that win, and what belongs to both."""
    table = target.table
    found = yield from find(target, [parcel.experiment for parcel in parcels], locked=True)
    theres = [found.get(parcel.experiment.fingerprint or b"") for parcel in parcels]
    judged = [verdict_of(target, parcel.experiment, there) for parcel, there in zip(parcels, theres, strict=True)]
    new = [parcel for parcel, each in zip(parcels, judged, strict=True) if each[0] is Verdict.ADDED]
    ids = yield from _insert(target, new)
    judged = [
        (verdict, number or ids[parcel.experiment.id], conflict)
        for parcel, (verdict, number, conflict) in zip(parcels, judged, strict=True)
    ]
    numbers = yield from numbers_of_attempts(table, [number for _, number, _ in judged])
    deliveries = [
        _Delivery(parcel=parcel, verdict=verdict, id=number, there=there, numbers=numbers[number])
        for parcel, there, (verdict, number, _) in zip(parcels, theres, judged, strict=True)
        if verdict not in (Verdict.RUNNING, Verdict.CONFLICT)
    ]
    arriving = [each for each in deliveries if each.arrives]
    statements = [
        *_take(target, [each for each in deliveries if each.verdict is Verdict.TAKEN]),
        *_insert_logs(table, arriving),
        *_insert_emissions(table, arriving if target.has_emissions else [], measured),
        *_insert_attempts(table, deliveries),
    ]
    for statement in statements:  # noqa: UP028 a list takes no answers
        yield statement
    yield Commit([])
    return judged


def _insert(target: Target, parcels: Sequence[Parcel]) -> Steps[dict[int, int]]:
    """Insert experiments, under their own IDs where those are free; the IDs that they have now, by those they had."""
    if not parcels:
        return {}
    table, experiments = target.table, [parcel.experiment for parcel in parcels]
    own = sorted(each.id for each in experiments)
    # What an experiment that was deleted by hand has left behind is not the new one's.
    beside = (*target.belongings, table.attempts, table.snapshots, table.snapshot_parts)
    places = [("ID", table.main), *(("experiment_id", name) for name in beside)]
    found = yield Do(
        " UNION ".join(f"SELECT {column} FROM {name} WHERE {column} IN ({marks(own)})" for column, name in places),
        own * len(places),
    )
    taken = {row[0] for row in found.rows}
    rows_of = [
        (parcel.experiment, _row(table, parcel.experiment, has_snapshots=bool(parcel.heads))) for parcel in parcels
    ]
    # With their own IDs first: those that the database numbers must not take them.
    for names, rows in (
        (("ID",), [(each.id, *row) for each, row in rows_of if each.id not in taken]),
        ((), [row for each, row in rows_of if each.id in taken]),
    ):
        yield from _insert_rows(table.main, (*names, *_columns(table)), rows)
    prints = [each.fingerprint for each in experiments]
    numbered = yield Do(
        f"SELECT pyexpd_fingerprint, ID FROM {table.main} WHERE pyexpd_fingerprint IN ({marks(prints)})", prints
    )
    ids = {bytes(row[0]): row[1] for row in numbered.rows}
    return {each.id: ids[each.fingerprint or b""] for each in experiments}


_OURS = (
    "pyexpd_fingerprint", "pyexpd_queue", "pyexpd_order", "pyexpd_not_before", "pyexpd_attempt", "pyexpd_tries",
)  # fmt: skip


def _columns(table: Table) -> tuple[str, ...]:
    return (*table.columns[1:], *_OURS)


def _row(table: Table, experiment: Experiment, *, has_snapshots: bool) -> list[Any]:
    """The values of a new experiment; one that runs in the source waits here to be run."""
    values = dict(experiment.values)
    if values["status"] == Status.RUNNING:
        values |= {"status": Status.CREATED.value, "start_date": None, "name": None, "machine": None}
    not_before = experiment.not_before
    if has_snapshots and values["status"] in (Status.CREATED, Status.WAITING):
        # Nobody takes it before they are here, see `states.py`.
        values["status"], not_before = Status.WAITING.value, time.time() + HELD_S
    for name, column in table.key_types.items():
        values[name] = _key(column, values[name])
    return [
        *(_stored(values.get(name)) for name in table.columns[1:]),
        experiment.fingerprint,
        experiment.queue,
        experiment.order,
        moment(table, not_before),
        experiment.attempt,
        experiment.tries,
    ]


def _key(column: ColumnType, value: Any) -> Any:
    """A keyfield as this database holds it; what does not belong into its column passes unchanged."""
    try:
        return column.declared(column.from_database(value))[0]
    except ValueError:
        return value


def _stored(value: Any) -> Any:
    """A value that one database gave, for any other."""
    value = storable(value)
    return value if isinstance(value, str | bytes | int | float | None) else str(value)  # dates, which are text here


def moment(table: Table, seconds: float | None) -> Any:
    """A time of ours, to the microsecond on every database."""
    if seconds is None:
        return None
    micros = round(seconds * 1e6)
    # What `utc` cuts off must not be a whole microsecond.
    return micros / 1e6 if table.dialect.provider == "sqlite" else utc(table, (micros + 0.3) / 1e6)


def _take(target: Target, deliveries: Sequence[_Delivery]) -> Iterator[Do]:
    """Results that replace those of the target, and what belonged to these goes."""
    if not deliveries:
        return
    table = target.table
    columns = (*table.result_columns, *_RESULT)
    for each in deliveries:
        experiment = each.parcel.experiment
        changes = {name: _stored(experiment.values.get(name)) for name in columns}
        changes |= {"status": experiment.values["status"], "pyexpd_tries": experiment.tries, "pyexpd_not_before": None}
        changes["pyexpd_attempt"] = each.begin + max(1, experiment.attempt)
        sets = ", ".join(f"{quote(name)} = ?" for name in changes)
        yield Do(
            f"UPDATE {table.main} {table.dialect.primary} SET {sets}, {FREED} WHERE ID = ?",
            (*changes.values(), each.id),
        )
    ids = sorted(each.id for each in deliveries)
    for name in target.belongings:
        yield Do(f"DELETE FROM {name} WHERE experiment_id IN ({marks(ids)})", ids)


def _insert_logs(table: Table, deliveries: Sequence[_Delivery]) -> Iterator[Do]:
    for logtable, columns in table.logtables.items():
        names = ("experiment_id", "timestamp", *columns, "pyexpd_attempt", "pyexpd_seq")
        rows = []
        for each in deliveries:
            begin = each.begin
            for _, moment, *values, attempt, seq in each.parcel.logs.get(logtable, ()):
                ended = None if attempt is None else begin + attempt
                rows.append([each.id, _stored(moment), *map(_stored, values), ended, seq])
        yield from _insert_rows(table.beside(logtable), names, rows)


def _insert_emissions(table: Table, deliveries: Sequence[_Delivery], measured: Sequence[str]) -> Iterator[Do]:
    rows = [[each.id, *map(_stored, row[1:])] for each in deliveries for row in each.parcel.emissions]
    yield from _insert_rows(table.emissions, ("experiment_id", *measured), rows)


def numbers_of_attempts(table: Table, ids: Sequence[int]) -> Steps[dict[int, dict[str, int]]]:
    """The numbers of the attempts of experiments, by their tokens."""
    numbers: dict[int, dict[str, int]] = {number: {} for number in ids}
    if ids:
        known = sorted(numbers)
        found = yield Do(
            f"SELECT experiment_id, token, attempt FROM {table.attempts} WHERE experiment_id IN ({marks(known)})", known
        )
        for experiment_id, token, attempt in found.rows:
            numbers[experiment_id][token] = attempt
    return numbers


def _insert_attempts(table: Table, deliveries: Sequence[_Delivery]) -> Iterator[Do]:
    """Attempts that the target does not have; by their tokens, for their numbers may be others there."""
    rows, again, raised = list[list[Any]](), list[tuple[int, str]](), list[tuple[int, int]]()
    for each in deliveries:
        begin, before = each.begin, each.highest
        highest = before
        for row in each.parcel.attempts:
            facts = dict(zip(RECEIPT, row, strict=True))
            if facts["token"] in each.numbers:
                if each.verdict is not Verdict.TAKEN:
                    continue
                again.append((each.id, facts["token"]))  # it came before, as that of a result which did not count
            if each.arrives:
                facts["attempt"] += begin
            else:  # behind those of the target: no two have one number
                facts |= _as_superseded(table, facts, each.parcel.experiment)
                facts["attempt"] = highest = max(highest + 1, facts["attempt"])
            facts |= {name: moment(table, seconds(facts[name])) for name in ("started", "ended")}
            facts |= {"experiment_id": each.id, "daemon": None}  # which is one of another table of daemons
            rows.append([_stored(value) for value in facts.values()])
        if highest > before and each.there is not None and each.there.status != Status.DONE:
            # Its next attempt has a number of its own; see `edits.py` for those with results, who are known by it.
            raised.append((highest, each.id))
    if again:
        yield Do(f"DELETE FROM {table.attempts} WHERE experiment_id = ? AND token = ?", again, many=True)
    yield from _insert_rows(table.attempts, RECEIPT, rows)
    if raised:
        sql = f"UPDATE {table.main} {table.dialect.primary} SET pyexpd_attempt = ? WHERE ID = ?"
        yield Do(sql, raised, many=True)


def _as_superseded(table: Table, facts: Mapping[str, Any], experiment: Experiment) -> dict[str, Any]:
    """What is another of an attempt in whose place the target's own result counts."""
    if facts["outcome"] != Outcome.DONE:
        return {}
    changes: dict[str, Any] = {"outcome": Outcome.SUPERSEDED.value}
    if facts["attempt"] == experiment.attempt:  # what earlier ones found out, nobody knows
        results = {name: experiment.values.get(name) for name in table.resultfields}
        changes["result"] = json.dumps(results, default=str)
    return changes


def seconds(value: Any) -> float | None:
    return None if value is None else float(value)


def _insert_rows(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Generator[Do, Any, None]:
    """Statements that insert rows, each of a size that every server takes."""
    sql = f"INSERT INTO {name} ({', '.join(map(quote, columns))}) VALUES ({marks(columns)})"
    some, size_bytes = list[Sequence[Any]](), 0
    for row in rows:
        row_bytes = sum(2 * len(value) if isinstance(value, str | bytes) else 16 for value in row)
        if some and size_bytes + row_bytes > STATEMENT_BYTES:
            yield Do(sql, some, many=True)
            some, size_bytes = [], 0
        some.append(row)
        size_bytes += row_bytes
    if some:
        yield Do(sql, some, many=True)
