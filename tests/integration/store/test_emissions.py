"""The emissions of attempts: stored with their ends, once, in PyExperimenter's table, at the cost of no result."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.records import Entry, decode, encode
from pyexp_daemon.model import Outcome, Report, Verdict, make_token
from pyexp_daemon.store import edits, filling, migrations, schema, structure, uses
from pyexp_daemon.store.emissions import COLUMNS
from pyexp_daemon.store.selection import select
from pyexp_daemon.store.structure import State
from pyexp_daemon.worker.emissions import Emissions
from tests.bench import Bench, ended
from tests.databases import Database
from tests.helpers import FIXTURES, load_dump

Make = Callable[..., Bench]

OFFLINE = {"offline_mode": True, "country_iso_code": "DEU"}
MEASURED = {"run_id": "abc", "duration_seconds": 1.5, "energy_consumed_kw": 0.25, "offline_mode": True}


@pytest.fixture
def bench(make_bench: Make) -> Bench:
    return make_bench(codecarbon=OFFLINE)


def state_of(bench: Bench) -> State:
    state: State = bench.blocking.read(structure.inspect(bench.table))
    return state


def stored(bench: Bench) -> list[tuple[Any, ...]]:
    return bench.query(
        "SELECT experiment_id, run_id, duration_seconds, energy_consumed_kw, cpu_energy_kw, offline_mode"
        " FROM exp_codecarbon ORDER BY ID"
    )


ROW = ("abc", 1.5, 0.25, None, 1)


async def test_table_is_as_pyexperimenter_makes_it(bench: Bench, make_bench: Make) -> None:
    with closing(bench.database.connect()) as connection:
        load_dump(connection, FIXTURES / "pyexperimenter-1.4.2" / f"{dump_of(bench.database)}.sql")
    assert columns_of(bench, "exp_codecarbon") == columns_of(bench, "mixed_codecarbon")
    assert len(columns_of(bench, "exp_codecarbon")) == 34
    schema.check(bench.table, state_of(bench))
    assert filling.ensure_tables(bench.blocking, bench.table) == []


def dump_of(database: Database) -> str:
    return "sqlite" if database.provider == "sqlite" else "mariadb"


def columns_of(bench: Bench, name: str) -> list[tuple[Any, ...]]:
    if bench.database.provider == "sqlite":
        return bench.query(f"SELECT name, type, dflt_value, pk FROM pragma_table_info('{name}') ORDER BY cid")
    return bench.query(
        "SELECT column_name, column_default, is_nullable, column_key, data_type, character_maximum_length"
        f" FROM information_schema.columns WHERE table_schema = '{bench.database.name}' AND table_name = '{name}'"
        " ORDER BY ordinal_position"
    )


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.ERROR, Outcome.PAUSED])
async def test_row_is_stored_with_the_end(bench: Bench, outcome: Outcome) -> None:
    me = bench.register()
    one, two = bench.claim(me, limit=2)
    verdicts = bench.record(me, ended(one, outcome, emissions=MEASURED), ended(two, outcome))
    assert verdicts == [Verdict.ACCEPTED, Verdict.ACCEPTED]
    assert stored(bench) == [(one.experiment_id, *ROW)]


async def test_real_measurement_fits_the_columns(bench: Bench) -> None:
    measuring = Emissions(OFFLINE)
    measuring.start()
    measured = measuring.stop()
    assert measured is not None
    me = bench.register()
    (claim,) = bench.claim(me)
    assert bench.end(me, claim, emissions=measured) is Verdict.ACCEPTED
    names = ", ".join(COLUMNS)
    (row,) = bench.query(f"SELECT {names} FROM exp_codecarbon")
    back = dict(zip(COLUMNS, row, strict=True))
    moment = back.pop("codecarbon_timestamp")
    assert str(moment).replace(" ", "T") == measured.pop("codecarbon_timestamp")
    assert back == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in measured.items()
    }


async def test_repeated_write_stores_it_once(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    report = ended(claim, emissions=MEASURED)
    assert bench.record(me, report) == [Verdict.ACCEPTED]
    assert bench.record(me, report, repeated=True) == [Verdict.KNOWN]
    assert stored(bench) == [(claim.experiment_id, *ROW)]


async def test_superseded_attempt_leaves_none(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.execute(f"UPDATE exp SET pyexpd_token = '{make_token()}' WHERE ID = {claim.experiment_id}")
    assert bench.end(me, claim, emissions=MEASURED) is Verdict.SUPERSEDED
    assert stored(bench) == []


async def test_each_attempt_has_a_row(make_bench: Make) -> None:
    bench = make_bench(rows=1, codecarbon=OFFLINE)
    me = bench.register()
    for outcome in (Outcome.RELEASED, Outcome.DONE):
        (claim,) = bench.claim(me)
        bench.end(me, claim, outcome, emissions=MEASURED)
    assert stored(bench) == [(1, *ROW), (1, *ROW)]


async def test_end_from_the_spool_keeps_them(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    entry = decode(encode(Entry(report=ended(claim, emissions={**MEASURED, "emissions_kg": math.nan}), daemon=me.id)))
    assert isinstance(entry, Entry)
    assert bench.record(me, entry.report, late=True) == [Verdict.ACCEPTED]
    assert stored(bench) == [(claim.experiment_id, *ROW)]


async def test_no_value_costs_a_result(bench: Bench) -> None:
    """Too long, of another kind, no number, no column: what fits is stored."""
    me = bench.register()
    (claim,) = bench.claim(me)
    strange = {
        "run_id": "x" * 300,
        "duration_seconds": math.inf,
        "energy_consumed_kw": "much",
        "cpu_count": 10**30,
        "codecarbon_timestamp": "2026-01-02T03:04:05.678+00:00",
        "water_consumed": 1.0,
        "x; DROP TABLE exp": 1,
        "region": "a\0b\ud800 🌱",
        "latitude": 48.5,
    }
    assert bench.end(me, claim, emissions=strange, results={"y": 1.0}) is Verdict.ACCEPTED
    (row,) = bench.query(
        "SELECT run_id, duration_seconds, energy_consumed_kw, cpu_count, codecarbon_timestamp, latitude"
        " FROM exp_codecarbon"
    )
    assert row[:4] == ("x" * 255, None, None, 1e30)
    assert str(row[4]).replace("T", " ") == "2026-01-02 03:04:05"
    assert row[5] == "48.5"
    assert bench.query(f"SELECT y FROM exp WHERE ID = {claim.experiment_id}") == [(1.0,)]


@pytest.mark.parametrize("left", ["nothing", "something else", "fewer columns"])
async def test_results_are_stored_without_their_table(bench: Bench, left: str) -> None:
    if left == "fewer columns":
        for column in ("duration_seconds", "offline_mode"):
            bench.execute(f"ALTER TABLE exp_codecarbon DROP COLUMN {column}")
    else:
        bench.execute("DROP TABLE exp_codecarbon")
    if left == "something else":
        bench.execute("CREATE TABLE exp_codecarbon (ID INTEGER PRIMARY KEY, run_id VARCHAR(9))")
    me = bench.register()
    one, two = bench.claim(me, limit=2)
    assert bench.end(me, one, emissions=MEASURED, results={"y": 2.0}) is Verdict.ACCEPTED
    with pytest.raises(exceptions.TableHasWrongStructureError, match="exp_codecarbon"):
        schema.check(bench.table, state_of(bench))
    if left == "fewer columns":
        assert bench.query("SELECT experiment_id, run_id FROM exp_codecarbon") == [(one.experiment_id, "abc")]
    if left == "something else":
        with pytest.raises(exceptions.TableHasWrongStructureError, match="does not hold emissions"):
            filling.ensure_tables(bench.blocking, bench.table)
        bench.execute("DROP TABLE exp_codecarbon")
    assert filling.ensure_tables(bench.blocking, bench.table)
    schema.check(bench.table, state_of(bench))
    bench.end(me, two, emissions=MEASURED)
    assert stored(bench)[-1] == (two.experiment_id, *ROW)


async def test_table_is_made_when_it_is_wanted_and_not_before(make_bench: Make) -> None:
    bench = make_bench()
    assert state_of(bench).emissions == ()
    schema.check(bench.table, state_of(bench))
    wanting = make_bench(create=False, codecarbon=OFFLINE)
    with pytest.raises(exceptions.TableHasWrongStructureError) as caught:
        schema.check(wanting.table, state_of(wanting))
    assert "pyexpd fill makes it" in str(caught.value.hint)
    (change,) = migrations.changes(wanting.table, state_of(wanting))
    assert change.summary == "fields, logtables and emissions of the configuration"
    filling.ensure_tables(wanting.blocking, wanting.table)
    schema.check(wanting.table, state_of(wanting))
    schema.check(bench.table, state_of(bench))


async def test_rows_of_others_stay_when_experiments_are_reset_or_deleted(make_bench: Make, bench: Bench) -> None:
    """Whether the one who does it tracks emissions or not."""
    me = bench.register()
    claims = bench.claim(me, limit=4)
    bench.record(me, *[ended(claim, emissions=MEASURED) for claim in claims])
    plain = make_bench(create=False)
    for at, (who, change) in enumerate([(bench, edits.reset), (plain, edits.reset), (bench, edits.delete)], 1):
        seen = who.run(edits.seen(who.table, select(who.table, ids=[str(at)])))
        assert who.run(change(who.table, seen)) == 1
        assert [row[0] for row in stored(bench)] == list(range(at + 1, 5))


async def test_table_goes_with_the_experiments(bench: Bench) -> None:
    belongings = uses.everything(bench.table, state_of(bench))
    assert belongings.names[:3] == ["exp__epochs", "exp_codecarbon", "exp"]
    bench.blocking.change_schema([migrations.ddl(statement) for statement in belongings.statements])
    assert not state_of(bench).exists
    assert state_of(bench).emissions == ()


async def test_adopted_table_is_used_as_it_is(make_bench: Make, database: Database) -> None:
    """The one that PyExperimenter 1.4.2 itself has made."""
    with closing(database.connect()) as connection:
        load_dump(connection, FIXTURES / "pyexperimenter-1.4.2" / f"{dump_of(database)}.sql")
    bench = make_bench(
        create=False,
        table="stamped",
        keyfields={"a": {"type": "INT", "values": [1, 2, 3]}, "b": {"type": "VARCHAR(255)", "values": ["x", "y"]}},
        resultfields={"accuracy": "DOUBLE", "seconds": "DOUBLE"},
        result_timestamps=True,
        logtables={},
        codecarbon=OFFLINE,
    )
    before = columns_of(bench, "stamped_codecarbon")
    bench.execute("INSERT INTO stamped_codecarbon (experiment_id, run_id) VALUES (1, 'old')")
    made = filling.ensure_tables(bench.blocking, bench.table)
    assert not any("stamped_codecarbon" in str(change) for change in made)
    schema.check(bench.table, state_of(bench))
    me = bench.register()
    (claim,) = bench.claim(me)
    assert bench.end(me, claim, emissions=MEASURED) is Verdict.ACCEPTED
    assert columns_of(bench, "stamped_codecarbon") == before
    assert bench.query("SELECT experiment_id, run_id FROM stamped_codecarbon ORDER BY ID") == [
        (1, "old"),
        (claim.experiment_id, "abc"),
    ]


async def test_results_alone_bring_no_row(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    assert bench.record(me, Report(claim=claim, results={"y": 1.0})) == [Verdict.ACCEPTED]
    assert stored(bench) == []
