"""The way back to a table of PyExperimenter's: what is ours goes, what is the user's stays."""

from __future__ import annotations

from collections.abc import Callable

from pyexp_daemon.model import Outcome
from pyexp_daemon.store import filling, migrations, release, structure
from pyexp_daemon.store.structure import State
from tests.bench import Bench

LOGTABLES = {"epochs": {"loss": "DOUBLE"}, "steps": {"word": "VARCHAR(20)"}}


def state_of(bench: Bench) -> State:
    state: State = bench.blocking.read(structure.inspect(bench.table))
    return state


def apply(bench: Bench, statements: list[str]) -> None:
    bench.blocking.change_schema([migrations.ddl(statement) for statement in statements])


async def test_what_is_left_has_nothing_of_ours_and_all_of_the_users(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(logtables=LOGTABLES)
    (claim,) = bench.claim(me := bench.register())
    bench.end(me, claim, results={"y": 0.5})
    columns = ", ".join(bench.table.columns)
    before = bench.query(f"SELECT {columns} FROM exp ORDER BY ID")
    neighbour = make_bench(table="exp__next", logtables={"epochs": {"loss": "DOUBLE"}})
    beside = state_of(neighbour)

    apply(bench, release.statements(bench.table, state_of(bench)))

    left = state_of(bench)
    assert tuple(left.columns) == bench.table.columns
    assert (left.version, left.oldest) == (None, None)
    assert not [name for name in left.indexes if "pyexpd" in name]
    assert [name for name in left.beside if not name.startswith("next")] == ["epochs", "steps"]
    assert list(left.beside["epochs"]) == ["ID", "experiment_id", "timestamp", "loss"]
    assert bench.query(f"SELECT {columns} FROM exp ORDER BY ID") == before
    assert state_of(neighbour) == beside
    assert release.statements(bench.table, left) == []


async def test_it_goes_on_from_every_statement_at_which_it_stopped(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(logtables=LOGTABLES)
    whole = state_of(bench)
    every = release.statements(bench.table, whole)
    for done in range(len(every) + 1):
        filling.ensure_tables(bench.blocking, bench.table)
        assert state_of(bench).version == migrations.VERSION
        apply(bench, release.statements(bench.table, state_of(bench))[:done])
        apply(bench, release.statements(bench.table, state_of(bench)))
        assert release.statements(bench.table, state_of(bench)) == []
        assert len(bench.statuses()) == 5


async def test_only_what_nobody_else_would_go_on_with_is_put_back(bench: Bench) -> None:
    me = bench.register()
    retried, _, paused = bench.claim(me, 3)
    bench.end(me, retried, Outcome.CRASH)
    bench.end(me, paused, Outcome.PAUSED)
    bench.execute("UPDATE exp SET status = 'running', machine = 'elsewhere' WHERE ID = 4")  # PyExperimenter's
    assert list(bench.statuses().values()) == ["waiting", "running", "paused", "running", "created"]
    assert bench.run(release.hand_back(bench.table)) == 2
    assert list(bench.statuses().values()) == ["created", "created", "paused", "running", "created"]
