"""Tables: made, adopted from PyExperimenter, checked; and how the database reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.config.load import load_config
from pyexp_daemon.store import fill, migrations, schema, structure
from tests.bench import Bench
from tests.databases import Database
from tests.helpers import FIXTURES

ADOPTED = FIXTURES / "pyexperimenter-1.4.2"


async def test_a_fresh_table_needs_nothing_more(bench: Bench) -> None:
    state = bench.blocking.read(structure.inspect(bench.table))
    schema.check(bench.table, state)
    assert migrations.statements(bench.table, state) == []
    assert (state.version, state.oldest) == (migrations.VERSION, migrations.OLDEST)


async def test_select_star_shows_only_the_users_columns_where_columns_can_be_hidden(bench: Bench) -> None:
    connection = bench.database.connect()
    with closing(connection):
        cursor = connection.cursor()
        cursor.execute("SELECT * FROM exp")
        shown = [column[0] for column in cursor.description]
    ours = [name for name in shown if name.startswith("pyexpd_")]
    assert shown[: len(bench.table.columns)] == list(bench.table.columns)
    assert bool(ours) == (bench.database.provider == "sqlite")


async def test_creating_can_be_repeated_from_any_step(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(create=False)
    state = bench.blocking.read(structure.inspect(bench.table))
    assert not state.exists
    for text in migrations.statements(bench.table, state)[:4]:
        bench.blocking.change_schema([migrations.ddl(text)])
    bench.create()
    schema.check(bench.table, bench.blocking.read(structure.inspect(bench.table)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keyfields": {"z": {"type": "INT", "values": [1]}}}, "has no column z"),
        ({"resultfields": {"y": "DOUBLE"}}, "has a column note that the configuration does not name"),
        ({"result_timestamps": True}, "has no column y_timestamp, note_timestamp"),
    ],
)
async def test_other_fields_than_the_tables_are_refused(
    make_bench: Callable[..., Bench], change: dict[str, Any], words: str
) -> None:
    make_bench()
    other = make_bench(create=False, **change)
    with pytest.raises(exceptions.TableHasWrongStructureError) as caught:
        schema.check(other.table, other.blocking.read(structure.inspect(other.table)))
    assert words in str(caught.value)


async def test_columns_the_user_added_at_the_end_are_free(bench: Bench) -> None:
    bench.execute("ALTER TABLE exp ADD COLUMN remark VARCHAR(20) NOT NULL DEFAULT 'x'")
    schema.check(bench.table, bench.blocking.read(structure.inspect(bench.table)))
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, results={"y": 1.0})
    assert bench.statuses()[1] == "done"


async def test_a_newer_schema_is_refused(bench: Bench) -> None:
    bench.execute("UPDATE exp__pyexpd_meta SET value = '99'")
    with pytest.raises(exceptions.SchemaVersionError) as caught:
        schema.check(bench.table, bench.blocking.read(structure.inspect(bench.table)))
    assert caught.value.exit_code == 69


async def test_a_missing_table_is_named_and_nothing_is_made(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(create=False)
    with pytest.raises(exceptions.MissingTable):
        schema.check(bench.table, bench.blocking.read(structure.inspect(bench.table)))
    assert not bench.blocking.read(structure.inspect(bench.table)).exists


@pytest.fixture
def adopted(database: Database, tmp_path: Path) -> Iterator[Bench]:
    """A table that the real PyExperimenter 1.4.2 made and half ran, not touched by us yet."""
    from tests.helpers import load_dump

    with closing(database.connect()) as connection:
        load_dump(connection, ADOPTED / ("sqlite.sql" if database.provider == "sqlite" else "mariadb.sql"))
    import yaml

    described = yaml.safe_load((ADOPTED / "configuration.yml").read_text())["PY_EXPERIMENTER"]
    config = database.write_config(
        tmp_path,
        table=described["Database"]["table"]["name"],
        keyfields=described["Database"]["table"]["keyfields"],
        resultfields=described["Database"]["table"]["resultfields"],
        result_timestamps=described["Database"]["table"].get("result_timestamps", False),
        logtables=described["Database"].get("logtables"),
    )
    bench = Bench(database, load_config(config))
    yield bench
    bench.blocking.close()


async def test_an_adopted_table_keeps_every_row_as_it_was(adopted: Bench) -> None:
    name = adopted.table.name
    columns = ", ".join(f"`{column}`" for column in adopted.table.columns)
    before = adopted.query(f"SELECT {columns} FROM {name} ORDER BY ID")
    with pytest.raises(exceptions.SchemaVersionError):
        schema.check(adopted.table, adopted.blocking.read(structure.inspect(adopted.table)))

    adopted.create()

    schema.check(adopted.table, adopted.blocking.read(structure.inspect(adopted.table)))
    assert adopted.query(f"SELECT {columns} FROM {name} ORDER BY ID") == before
    assert len(before) > 5


async def test_of_equal_rows_the_lowest_gets_the_fingerprint_and_a_refill_adds_nothing(adopted: Bench) -> None:
    adopted.create()
    name = adopted.table.name
    done = adopted.run(fill.fingerprint_rows(adopted.table))
    assert done.marked > 0
    assert done.duplicates
    assert all(copy > first for copy, first in done.duplicates)
    unmarked = adopted.query(f"SELECT ID FROM {name} WHERE pyexpd_fingerprint IS NULL ORDER BY ID")
    assert [row[0] for row in unmarked] == [copy for copy, _ in done.duplicates]
    again = adopted.run(fill.fingerprint_rows(adopted.table))
    assert (again.marked, again.duplicates) == (0, done.duplicates)


async def test_rows_that_pyexperimenter_left_running_are_nobodys_to_rescue(adopted: Bench) -> None:
    from pyexp_daemon.store import daemons, reads

    adopted.create()
    assert adopted.run(daemons.abandoned(adopted.table)) == []
    assert adopted.run(reads.strangers(adopted.table)) != []


async def test_the_claim_reads_the_claim_index_in_order_without_sorting(make_bench: Callable[..., Bench]) -> None:
    """A sort would lock every waiting row and starve all other daemons, silently."""
    bench = make_bench(rows=400)
    from pyexp_daemon.store.leases import FROM_MARK, WITHIN_ORDER, _claimable

    from_mark = (FROM_MARK, (0, 0, 7)) if bench.database.server else ("", ())
    for start, bound in (("", ()), (WITHIN_ORDER, (0, 7)), from_mark):
        sql = _claimable(bench.table, start)
        if bench.database.server is None:
            plan = " ".join(str(row[-1]) for row in bench.query(f"EXPLAIN QUERY PLAN {sql}", "default", *bound, 8))
            assert "exp__pyexpd_claim" in plan
            assert "TEMP B-TREE" not in plan
        else:
            ((*row,),) = bench.query(f"EXPLAIN FORMAT=TRADITIONAL {sql}", "default", *bound, 8)
            plan = " ".join(map(str, row))
            assert "pyexpd_claim" in plan
            assert "Using index" in plan
            assert "filesort" not in plan


@pytest.mark.timeout(30)  # a claim that waits for locks is repeated for longer
async def test_a_second_session_gets_rows_while_a_claim_is_open(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(rows=40)
    if bench.database.server is None:
        return  # one writer at a time: a second claim waits for milliseconds, and this is what SQLite promises
    from pyexp_daemon.store.leases import _claimable

    with closing(bench.database.connect()) as holder:
        cursor = holder.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("START TRANSACTION")
        cursor.execute(_claimable(bench.table, "").replace("?", "%s"), ("default", 8))
        locked = {row[0] for row in cursor.fetchall()}
        claims = bench.claim(bench.register(), 8)
        cursor.execute("ROLLBACK")
    assert len(locked) == len(claims) == 8
    assert not locked & {claim.experiment_id for claim in claims}


@pytest.mark.parametrize("unit", ["beat", "promote", "sweep", "abandoned"])
async def test_services_read_through_their_own_index(bench: Bench, unit: str) -> None:
    from pyexp_daemon.store.tables import OWNER, WAITING

    table = bench.table
    queries = {
        "beat": f"SELECT ID FROM {table.main} {table.use(OWNER)} WHERE pyexpd_daemon = 1 AND status = 'running'",
        "promote": f"SELECT ID FROM {table.main} {table.use(WAITING)}"
        f" WHERE status = 'waiting' AND pyexpd_not_before <= {table.dialect.now}",
        "sweep": f"SELECT ID FROM {table.main} {table.use(OWNER)} WHERE pyexpd_daemon = 1 AND status = 'running'",
        "abandoned": f"SELECT DISTINCT pyexpd_daemon FROM {table.main} {table.use(OWNER)}"
        f" WHERE pyexpd_daemon > 0 AND status = 'running'",
    }
    prefix = "EXPLAIN QUERY PLAN" if bench.database.server is None else "EXPLAIN FORMAT=TRADITIONAL"
    plan = " ".join(str(value) for row in bench.query(f"{prefix} {queries[unit]}") for value in row)
    assert ("pyexpd_owner" in plan) == (unit != "promote")
    assert ("pyexpd_waiting" in plan) == (unit == "promote")
