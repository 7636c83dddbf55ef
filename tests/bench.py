"""An experiment table on a real database, and short words for what tests do to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyexp_daemon.config.models import Config
from pyexp_daemon.model import Attempt, Claim, Daemon, Incarnation, Outcome, Report, RetryPolicy, Verdict, make_token
from pyexp_daemon.space.grid import Grid
from pyexp_daemon.store import daemons, fill, leases, migrations, open_blocking_store, open_store, reports, structure
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Unit
from tests.databases import Database

POLICY = RetryPolicy(
    tries={"error": 1, "timeout": 1, "stalled": 2, "crash": 3, "lost": 20}, first_s=30.0, longest_s=3600.0
)


@dataclass
class Bench:
    """An experiment table with rows, and short words for what tests do to it."""

    database: Database
    config: Config
    table: Table = field(init=False)
    blocking: Any = field(init=False)
    store: Any = field(init=False)

    def __post_init__(self) -> None:
        self.table = Table.of(self.config.database, codecarbon=self.config.tracking is not None)
        self.blocking = open_blocking_store(self.config, create=True)
        self.store = open_store(self.config)

    def create(self) -> None:
        state = self.blocking.read(structure.inspect(self.table))
        self.blocking.change_schema([migrations.ddl(text) for text in migrations.statements(self.table, state)])
        self.blocking.run(migrations.stamp(self.table))

    def fill(self) -> int:
        grid = Grid.of(self.config.database.table.keyfields, provider=self.config.database.provider)
        rows = list(grid)
        return sum(
            self.blocking.run(fill.insert(self.table, rows[at : at + fill.CHUNK]))
            for at in range(0, len(rows), fill.CHUNK)
        )

    def run(self, unit: Unit[Any]) -> Any:
        return self.blocking.run(unit)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return self.database.query(sql, values)

    def execute(self, sql: str) -> None:
        """A change made by hand."""
        connection = self.database.connect()
        cursor = connection.cursor()
        cursor.execute(sql)
        connection.close()

    def register(self, name: str = "d", *, lease_s: float = 60.0) -> Incarnation:
        me: Incarnation = self.run(daemons.register(self.table, make_daemon(name, lease_s=lease_s)))
        return me

    def claim(self, me: Incarnation, limit: int = 1, **options: Any) -> list[Claim]:
        unit = leases.claim(self.table, me=me, token=make_token(), queue="default", limit=limit, **options)
        claims: list[Claim] = self.run(unit)
        return claims

    def record(self, me: Incarnation, *given: Report, **options: Any) -> list[Verdict]:
        options.setdefault("policy", POLICY)
        verdicts: list[Verdict] = self.run(reports.record(self.table, given, me=me, host="host", **options))
        return verdicts

    def end(self, me: Incarnation, claim: Claim, outcome: Outcome = Outcome.DONE, **fields: Any) -> Verdict:
        return self.record(me, ended(claim, outcome, **fields))[0]

    def statuses(self) -> dict[int, str]:
        return dict(self.query("SELECT ID, status FROM exp ORDER BY ID"))

    def receipts(self) -> list[tuple[Any, ...]]:
        return self.query(
            "SELECT experiment_id, attempt, outcome FROM exp__pyexpd_attempts ORDER BY experiment_id, attempt, outcome"
        )

    def kill_daemon(self, me: Incarnation) -> None:
        """As if it had been declared dead."""
        self.execute(f"UPDATE exp__pyexpd_daemons SET state = 'dead' WHERE id = {me.id}")


def make_daemon(name: str = "d", *, lease_s: float = 60.0) -> Daemon:
    """The row of a new incarnation."""
    return Daemon(
        id=0,
        incarnation=make_token(),
        name=name,
        host="host",
        host_id="h",
        boot_id="b",
        pid=1,
        pid_start="1",
        version="0",
        slots=1,
        state="live",
        beat=0,
        lease_s=lease_s,
        started=0,
        beat_at=0,
    )


def ended(claim: Claim, outcome: Outcome = Outcome.DONE, **fields: Any) -> Report:
    fields.setdefault("started", 1000.0)
    fields.setdefault("ended", 1001.5)
    return Report(claim=claim, end=Attempt(claim=claim, outcome=outcome, **fields))
