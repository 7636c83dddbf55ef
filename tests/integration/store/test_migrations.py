"""From one version of the schema to the next: online, repeatable from anywhere, and new fields for tables in use."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import Outcome, make_token
from pyexp_daemon.space.grid import Grid
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.store import daemons, fill, filling, keyfields, leases, migrations, schema, structure, uses
from pyexp_daemon.store.dialect import DIALECTS
from pyexp_daemon.store.keyfields import NewKeyfield
from pyexp_daemon.store.structure import NOTHING, State
from pyexp_daemon.store.tables import Table
from tests.bench import Bench
from tests.helpers import FIXTURES

Make = Callable[..., Bench]

on_servers = pytest.mark.parametrize("database", ["mariadb", "mysql9"], indirect=True)


def state_of(bench: Bench) -> State:
    state: State = bench.blocking.read(structure.inspect(bench.table))
    return state


def make_version(bench: Bench, version: int) -> None:
    """Make the table as code of this version would."""
    for step in migrations.MIGRATIONS[:version]:
        apply(bench, step.statements(bench.table, state_of(bench)))
    for logtable in migrations.changes(bench.table, state_of(bench))[-1:]:
        apply(bench, logtable.statements if "logtables" in logtable.summary else [])
    for name in ("version", "oldest"):
        bench.execute(f"DELETE FROM exp__pyexpd_meta WHERE name = '{name}'")
    bench.execute(f"INSERT INTO exp__pyexpd_meta (name, value) VALUES ('version', '{version}'), ('oldest', '1')")


def apply(bench: Bench, statements: Any) -> None:
    bench.blocking.change_schema([migrations.ddl(statement) for statement in statements])


def describe(bench: Bench) -> list[Any]:
    """Every table with its columns in order, and every index."""
    if bench.database.provider == "sqlite":
        columns = bench.query(
            'SELECT t.name, c.cid, c.name, c.type, c."notnull", c.dflt_value, c.pk FROM sqlite_master t'
            " JOIN pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name LIKE 'exp%' ORDER BY 1, 2"
        )
        return [columns, bench.query("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' ORDER BY 1")]
    where = f"table_schema = '{bench.database.name}'"
    return [
        bench.query(
            "SELECT table_name, ordinal_position, column_name, column_type, is_nullable, column_default, extra,"
            f" collation_name FROM information_schema.columns WHERE {where} ORDER BY 1, 2"
        ),
        bench.query(
            "SELECT table_name, index_name, seq_in_index, column_name, non_unique"
            f" FROM information_schema.statistics WHERE {where} ORDER BY 1, 2, 3"
        ),
        bench.query(
            f"SELECT table_name, engine, table_collation FROM information_schema.tables WHERE {where} ORDER BY 1"
        ),
    ]


def clear(bench: Bench) -> None:
    state = state_of(bench)
    apply(bench, uses.everything(bench.table, state).statements)


async def test_fresh_table_is_what_all_migrations_make_one_after_the_other(make_bench: Make) -> None:
    bench = make_bench(create=False)
    for step in migrations.MIGRATIONS:
        apply(bench, step.statements(bench.table, state_of(bench)))
    (completion,) = migrations.changes(bench.table, State(**{**fields(state_of(bench)), "version": migrations.VERSION}))
    apply(bench, completion.statements)
    grown = describe(bench)
    clear(bench)
    assert not state_of(bench).exists
    bench.create()
    assert describe(bench) == grown
    assert len(grown[0]) > 40


def fields(state: State) -> dict[str, Any]:
    return {name: getattr(state, name) for name in state.__slots__}


def create_as_version_1(config: Path, folder: Path) -> None:
    """Make the tables with the real package of then."""
    with zipfile.ZipFile(FIXTURES / "schema-1" / "pyexp_daemon.zip") as package:
        package.extractall(folder)
    made = subprocess.run(
        [sys.executable, "-m", "pyexp_daemon", "-c", str(config), "db", "create"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr


async def test_fresh_table_is_what_an_upgrade_makes_of_one_of_version_1(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(create=False)
    create_as_version_1(bench.config.path, tmp_path / "then")
    assert state_of(bench).version == 1
    filling.ensure_tables(bench.blocking, bench.table)
    grown = describe(bench)
    assert (state_of(bench).version, state_of(bench).oldest) == (migrations.VERSION, migrations.OLDEST)
    clear(bench)
    bench.create()
    assert describe(bench) == grown


async def test_upgrade_goes_on_from_every_statement_at_which_it_stopped(make_bench: Make) -> None:
    bench = make_bench(create=False)
    make_version(bench, 1)
    every = migrations.statements(bench.table, state_of(bench))
    assert len(every) >= 4
    for done in range(len(every) + 1):
        clear(bench)
        make_version(bench, 1)
        bench.fill()
        apply(bench, every[:done])
        assert [text for text in migrations.statements(bench.table, state_of(bench)) if text in every[:done]] == []
        assert filling.ensure_tables(bench.blocking, bench.table) == every[done:]
        schema.check(bench.table, state_of(bench))
        assert migrations.changes(bench.table, state_of(bench)) == []
        assert len(bench.statuses()) == 5


@pytest.mark.parametrize("name", ["pyexpd_attempts", "pyexpd_daemons", "pyexpd_commands", "pyexpd_snapshots"])
async def test_table_of_ours_that_was_dropped_is_made_anew(bench: Bench, name: str) -> None:
    before = state_of(bench)
    bench.execute(f"DROP TABLE exp__{name}")
    (change,) = migrations.changes(bench.table, state_of(bench))
    assert change.summary == "what was there and is gone"
    bench.create()
    assert state_of(bench) == before


def test_steps_never_admit_older_code_again() -> None:
    versions = [step.version for step in migrations.MIGRATIONS]
    oldest = [step.oldest for step in migrations.MIGRATIONS]
    assert versions == list(range(1, len(versions) + 1))
    assert oldest == sorted(oldest)
    assert all(step.oldest <= step.version for step in migrations.MIGRATIONS)


@on_servers
async def test_every_change_of_a_table_in_use_is_demanded_to_be_online(make_bench: Make) -> None:
    """The server refuses what it cannot do so, rather than stop the writers."""
    bench = make_bench(create=False, logtables={"epochs": {"loss": "DOUBLE"}})
    make_version(bench, 1)
    more = make_bench(
        create=False,
        resultfields={"y": "DOUBLE", "note": "VARCHAR(20)", "z": "INT"},
        logtables={"epochs": {"loss": "DOUBLE", "w": "INT"}},
    )
    of_pyexperimenter = State(**{**fields(NOTHING), "columns": bench.table.columns})
    new = NewKeyfield(name="k", sql_type="INT", value=1, canonical=b"1", text="1")
    demanded = [
        *migrations.statements(more.table, state_of(bench)),
        *migrations.statements(bench.table, of_pyexperimenter),
        keyfields._add_column(bench.table, state_of(bench), new),
    ]
    alters = [text for text in demanded if text.startswith("ALTER TABLE")]
    indexes = [text for text in demanded if text.startswith("CREATE") and "INDEX" in text.partition("(")[0]]
    creates = [text for text in demanded if text.startswith("CREATE TABLE IF NOT EXISTS")]
    assert len(alters) + len(indexes) + len(creates) == len(demanded)
    assert len(alters) >= 5
    assert len(indexes) >= 6
    assert all(text.endswith("ALGORITHM=INSTANT") for text in alters)
    assert all(text.endswith("ALGORITHM=INPLACE LOCK=NONE") for text in indexes)


@on_servers
async def test_writers_go_on_while_a_large_table_is_changed(make_bench: Make) -> None:
    """A second session commits again and again while each index is made, on a table of PyExperimenter's."""
    bench = make_bench(create=False, logtables={})
    columns = (
        "(ID INTEGER PRIMARY KEY AUTO_INCREMENT, x INT, creation_date DATETIME, status VARCHAR(255),"
        " start_date DATETIME, name LONGTEXT, machine VARCHAR(255), y DOUBLE, note VARCHAR(20), end_date DATETIME,"
        " error LONGTEXT)"
    )
    bench.execute(f"CREATE TABLE exp {columns} ENGINE=InnoDB DEFAULT CHARSET=utf8mb4")
    rows = ", ".join(f"({number}, 'created')" for number in range(5000))
    for _ in range(10):
        bench.execute(f"INSERT INTO exp (x, status) VALUES {rows}")
    committed: list[float] = []
    is_over = threading.Event()

    def write() -> None:
        with closing(bench.database.connect()) as connection:
            cursor = connection.cursor()
            number = 0
            while not is_over.is_set():
                number = number % 50_000 + 1
                cursor.execute(f"UPDATE exp SET status = 'running', machine = 'm' WHERE ID = {number}")
                committed.append(time.monotonic())

    writer = threading.Thread(target=write)
    writer.start()
    took: list[tuple[float, int]] = []
    try:
        for statement in migrations.statements(bench.table, state_of(bench)):
            began = time.monotonic()
            apply(bench, [statement])
            ended = time.monotonic()
            took.append((ended - began, sum(began < moment < ended for moment in committed)))
        bench.run(migrations.stamp(bench.table))
    finally:
        is_over.set()
        writer.join(10)
    schema.check(bench.table, state_of(bench))
    longest, meanwhile = max(took)
    pauses = [later - earlier for earlier, later in itertools.pairwise(committed)]
    assert meanwhile >= 5, took
    assert max(pauses) < max(1.0, longest / 2), took


async def test_newer_but_compatible_table_is_filled_and_keeps_its_version(make_bench: Make) -> None:
    make_bench()
    bench = make_bench(
        create=False,
        keyfields={"x": {"type": "INT", "values": list(range(7))}},
        resultfields={"y": "DOUBLE", "note": "VARCHAR(20)", "z": "INT"},
    )
    bench.execute("UPDATE exp__pyexpd_meta SET value = '99' WHERE name = 'version'")
    assert len(filling.ensure_tables(bench.blocking, bench.table)) == 1
    bench.run(migrations.stamp(bench.table))
    assert bench.fill() == 2
    state = state_of(bench)
    assert (state.version, state.oldest) == (99, 1)
    schema.check(bench.table, state)


async def test_result_field_is_added_beside_a_daemon_that_does_not_know_it(make_bench: Make) -> None:
    then = make_bench()
    me = then.register()
    (claim,) = then.claim(me)
    now = make_bench(create=False, resultfields={"y": "DOUBLE", "note": "VARCHAR(20)", "z": "INT"})
    with pytest.raises(exceptions.TableHasWrongStructureError, match="has no column z") as caught:
        schema.check(now.table, state_of(now))
    assert caught.value.exit_code == 64
    assert "pyexpd fill" in str(caught.value.hint)

    shown: list[str] = []
    done = filling.ensure_tables(now.blocking, now.table, show=shown.extend)

    assert len(done) == 1
    assert shown == done
    schema.check(now.table, state_of(now))
    then.end(me, claim, results={"y": 0.5})
    assert then.query("SELECT y, z FROM exp WHERE ID = 1") == [(0.5, None)]
    (claim,) = now.claim(me := now.register("new"))
    now.end(me, claim, results={"y": 1.0, "z": 3})
    assert now.query("SELECT z FROM exp WHERE z IS NOT NULL") == [(3,)]
    assert filling.ensure_tables(now.blocking, now.table, show=shown.extend) == []


async def test_logtables_and_their_columns_are_added(make_bench: Make) -> None:
    make_bench()
    more = {"epochs": {"loss": "DOUBLE", "word": "VARCHAR(20)", "step": "INT"}, "batches": {"size": "INT"}}
    now = make_bench(create=False, logtables=more)
    with pytest.raises(exceptions.TableHasWrongStructureError, match="logtable epochs has no column step") as caught:
        schema.check(now.table, state_of(now))
    assert caught.value.exit_code == 64
    filling.ensure_tables(now.blocking, now.table)
    schema.check(now.table, state_of(now))
    assert list(now.query("SELECT step FROM exp__epochs")) == []
    now.execute("DROP TABLE exp__batches")
    with pytest.raises(exceptions.TableHasWrongStructureError, match="has no logtable batches"):
        schema.check(now.table, state_of(now))
    filling.ensure_tables(now.blocking, now.table)
    schema.check(now.table, state_of(now))


async def test_daemons_that_a_breaking_step_stops_are_known(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of version 1 say nothing of themselves, later ones say which schema they know."""
    bench = make_bench()
    for name, facts in (("first", "NULL"), ("second", "'{\"schema\": 2}'"), ("third", "'{\"schema\": 4}'")):
        me = bench.register(name)
        bench.execute(f"UPDATE exp__pyexpd_daemons SET facts = {facts} WHERE id = {me.id}")
    bench.kill_daemon(bench.register("dead"))
    breaking = migrations.Migration(version=4, oldest=4, summary="breaks", statements=lambda table, state: [])
    found = bench.blocking.read(uses.workers(bench.table, state_of(bench)))
    assert [worker.name for worker in found] == ["first", "second", "third"]
    assert uses.too_old(found, oldest=migrations.oldest_after(state_of(bench))) == []
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, breaking))
    assert migrations.oldest_after(state_of(bench)) == 4
    assert [worker.name for worker in uses.too_old(found, oldest=4)] == ["first", "second"]
    bench.execute("ALTER TABLE exp__pyexpd_daemons DROP COLUMN facts")
    assert [worker.schema for worker in bench.blocking.read(uses.workers(bench.table, state_of(bench)))] == [1, 1, 1]


# A new keyfield.


def with_keyfield(
    make_bench: Make, value: Any = 0.5, *, sql_type: str = "DOUBLE", rows: int = 5
) -> tuple[Bench, NewKeyfield]:
    """The same table with another keyfield in the configuration, and what is to be added."""
    described = {"x": {"type": "INT", "values": list(range(rows))}, "k": {"type": sql_type, "values": [value, None]}}
    if value is None:
        described["k"]["values"] = [None]
    bench = make_bench(create=False, keyfields=described)
    stored, canonical = ColumnType.parse(sql_type).declared(value)
    return bench, NewKeyfield(name="k", sql_type=sql_type, value=stored, canonical=canonical, text=str(value))


def prints(bench: Bench) -> dict[int, bytes]:
    return {
        row[0]: bytes(row[1]) for row in bench.query("SELECT ID, pyexpd_fingerprint FROM exp") if row[1] is not None
    }


async def test_copies_stay_copies_when_a_keyfield_is_added(make_bench: Make) -> None:
    described: dict[str, Any] = {
        "x": {"type": "INT", "values": [1, 2]},
        "trial": {"type": "INT", "values": {"repeat": [0, 3]}},
    }
    then = make_bench(keyfields=described)
    described["k"] = {"type": "INT", "values": [5]}
    now = make_bench(create=False, keyfields=described)
    stored, canonical = ColumnType.parse("INT").declared(5)
    new = NewKeyfield(name="k", sql_type="INT", value=stored, canonical=canonical, text="5")
    with pytest.raises(Stopped):
        keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, new), new, advanced=stop_after(1))
    assert keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, new), new) == []
    assert len(set(prints(now).values())) == 6
    assert now.fill() == 0
    assert then.query("SELECT x, k, COUNT(*) FROM exp GROUP BY x, k ORDER BY x") == [(1, 5, 3), (2, 5, 3)]


@pytest.mark.parametrize(
    ("sql_type", "value"),
    [("DOUBLE", 0.5), ("VARCHAR(20)", "it's"), ("DATETIME", "2024-01-31 10:00:00"), ("INT", None)],
)
async def test_added_keyfield_is_known_to_fill_and_changes_nothing_else(
    make_bench: Make, sql_type: str, value: Any
) -> None:
    then = make_bench()
    me = then.register()
    (claim,) = then.claim(me)
    then.end(me, claim, results={"y": 7.0})
    (running,) = then.claim(me)
    untouched = "SELECT ID, x, status, y, pyexpd_attempt, pyexpd_token, pyexpd_daemon FROM exp ORDER BY ID"
    before = then.query(untouched)
    now, new = with_keyfield(make_bench, value, sql_type=sql_type)
    with pytest.raises(exceptions.TableHasWrongStructureError, match="has no column k"):
        filling.ensure_tables(now.blocking, now.table)

    assert keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, new), new) == []

    assert then.query(untouched) == before
    schema.check(now.table, state_of(now))
    now.run(migrations.stamp(now.table))
    assert state_of(now).oldest == 2
    rows = list(Grid.of(now.config.database.table.keyfields, provider=now.config.database.provider))
    assert now.run(fill.insert(now.table, rows)) == len(rows) - 5
    if now.database.provider == "mysql":
        order = [row[0] for row in now.query("SHOW COLUMNS FROM exp")]
        assert order[:3] == ["ID", "x", "k"]
    then.end(me, running, results={"y": 8.0})
    assert then.query("SELECT status, y FROM exp WHERE ID = 2") == [("done", 8.0)]
    with pytest.raises(
        exceptions.TableHasWrongStructureError, match="has a keyfield k that the configuration does not"
    ):
        schema.check(then.table, state_of(then))
    with pytest.raises(exceptions.TableHasWrongStructureError, match="has a keyfield k already"):
        keyfields.plan(now.blocking, now.table, new)


EMISSIONS = "ID INTEGER PRIMARY KEY, experiment_id INTEGER, codecarbon_timestamp DATETIME, project_name VARCHAR(255)"
"""How PyExperimenter's table of energy begins."""


class Stopped(Exception):
    """As if the process had been killed."""


def stop_after(chunks: int) -> Callable[[int], None]:
    left = iter(range(chunks))

    def advanced(rows: int) -> None:
        if next(left, None) is None:
            raise Stopped

    return advanced


async def test_adding_goes_on_wherever_it_was_stopped(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is complete nobody fills and no daemon starts, for half of the experiments have no value."""
    monkeypatch.setattr(fill, "CHUNK", 2)
    then = make_bench(rows=9)
    now, new = with_keyfield(make_bench, rows=9)
    whole: dict[int, bytes] = {}

    for chunks in range(5):
        planned = keyfields.plan(now.blocking, now.table, new)
        with pytest.raises(Stopped):
            keyfields.add(now.blocking, planned, new, advanced=stop_after(chunks))
        for refused in (
            lambda: schema.check(now.table, state_of(now)),
            lambda: filling.ensure_tables(now.blocking, now.table),
            lambda: filling.preview(now.blocking, now.table, []),
        ):
            with pytest.raises(exceptions.SchemaVersionError, match="not all experiments have it yet") as caught:
                refused()
            assert caught.value.hint == "pyexpd db add-keyfield k --value 0.5 goes on where it was stopped"
        with pytest.raises(exceptions.TableHasWrongStructureError, match="does not name"):
            filling.ensure_tables(then.blocking, then.table)
        assert len(set(prints(now).values())) == 9
    other = NewKeyfield(
        name="k", sql_type="DOUBLE", value=1.5, canonical=ColumnType.parse("DOUBLE").declared(1.5)[1], text="1.5"
    )
    with pytest.raises(exceptions.TableHasWrongStructureError, match=r"got the value 0\.5 of keyfield k already"):
        keyfields.plan(now.blocking, now.table, other)

    keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, new), new)

    whole = prints(now)
    assert now.query("SELECT COUNT(*) FROM exp WHERE k = 0.5") == [(9,)]
    rows = list(Grid.of(now.config.database.table.keyfields, provider=now.config.database.provider))
    assert {mark for _, mark in rows} > set(whole.values())
    assert len(whole) == 9


@on_servers
async def test_column_is_added_at_the_end_where_the_server_cannot_put_it_elsewhere(make_bench: Make) -> None:
    make_bench()
    now, new = with_keyfield(make_bench)
    planned = keyfields.plan(now.blocking, now.table, new)
    refused = replace(planned, statements=[planned.statements[0].replace("AFTER `x`", "AFTER `nowhere`")])
    assert refused.statements != planned.statements
    keyfields.add(now.blocking, refused, new)
    assert now.query("SHOW COLUMNS FROM exp")[-1][0] == "k"
    schema.check(now.table, state_of(now))
    assert now.query("SELECT COUNT(*) FROM exp WHERE k = 0.5") == [(5,)]


async def test_keyfield_that_the_database_refuses_leaves_the_table_as_it_was(make_bench: Make) -> None:
    then = make_bench()
    before = describe(then), prints(then)
    now, new = with_keyfield(make_bench)
    new = replace(new, sql_type="NONSENSE(")
    with pytest.raises(exceptions.DatabaseQueryError):
        keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, new), new)
    assert (describe(then), prints(then)) == before
    schema.check(then.table, state_of(then))
    assert filling.ensure_tables(then.blocking, then.table) == []


async def test_fill_that_began_before_a_keyfield_was_added_is_refused(make_bench: Make) -> None:
    """It would insert experiments, or fingerprints, that are none of the table any more."""
    then = make_bench()
    began = filling.count_added_keyfields(then.blocking, then.table)
    then.execute("INSERT INTO exp (x, status) VALUES (70, 'created')")
    now, new = with_keyfield(make_bench)
    now.run(keyfields._begin(now.table, new))
    rows = [((99,), b"f" * 16)]
    with pytest.raises(exceptions.TableHasWrongStructureError, match="got another keyfield while it was filled"):
        filling.insert_missing(then.blocking, then.table, rows, keyfields=began)
    with pytest.raises(exceptions.TableHasWrongStructureError, match="got another keyfield"):
        filling.mark_existing(then.blocking, then.table, keyfields=began)
    assert then.query("SELECT COUNT(*) FROM exp") == [(6,)]
    keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, new), new)
    assert now.query("SELECT pyexpd_fingerprint FROM exp WHERE x = 70") == [(None,)]
    assert filling.mark_existing(now.blocking, now.table, keyfields=1) == []
    assert len(prints(now)) == 6


async def test_rows_that_became_equal_by_hand_are_reported(make_bench: Make) -> None:
    then = make_bench()
    then.execute("UPDATE exp SET x = 0 WHERE ID = 4")
    now, new = with_keyfield(make_bench)
    assert keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, new), new) == [(4, 1)]
    assert sorted(prints(now)) == [1, 2, 3, 5]


async def test_keyfields_are_added_one_after_the_other(make_bench: Make) -> None:
    make_bench()
    described = {name: {"type": "INT", "values": [0]} for name in ("x", "k", "l")}
    now = make_bench(create=False, keyfields={**described, "x": {"type": "INT", "values": list(range(5))}})
    first, second = (
        NewKeyfield(name=name, sql_type="INT", value=0, canonical=ColumnType.parse("INT").declared(0)[1], text="0")
        for name in "kl"
    )
    now.run(keyfields._begin(now.table, first))
    with pytest.raises(exceptions.TableHasWrongStructureError, match="keyfield k is being added"):
        keyfields.plan(now.blocking, now.table, second)
    keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, first), first)
    with pytest.raises(exceptions.TableHasWrongStructureError, match="has no column l"):
        schema.check(now.table, state_of(now))
    keyfields.add(now.blocking, keyfields.plan(now.blocking, now.table, second), second)
    schema.check(now.table, state_of(now))
    assert now.fill() == 0


async def test_table_that_is_not_ready_gets_no_keyfield(make_bench: Make) -> None:
    bench = make_bench(create=False)
    now, new = with_keyfield(make_bench)
    with pytest.raises(exceptions.MissingTable):
        keyfields.plan(now.blocking, now.table, new)
    make_version(bench, 1)
    with pytest.raises(exceptions.SchemaVersionError, match="has schema 1"):
        keyfields.plan(now.blocking, now.table, new)


async def test_drop_takes_everything_beside_the_table_and_nothing_else(make_bench: Make) -> None:
    bench = make_bench()
    other = make_bench(table="exp__more")
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, Outcome.DONE)
    bench.execute(f"CREATE TABLE exp_codecarbon ({EMISSIONS})")
    bench.execute("CREATE TABLE exp__pyexpd_notes (ID INTEGER PRIMARY KEY)")
    bench.execute("CREATE TABLE exp__seen (ID INTEGER PRIMARY KEY, experiment_id INTEGER, timestamp DATETIME)")
    bench.execute("CREATE TABLE expo (ID INTEGER PRIMARY KEY)")
    forgotten = make_bench(create=False, logtables={})
    belongings = uses.everything(forgotten.table, state_of(forgotten))
    assert belongings.names[:3] == ["exp__epochs", "exp_codecarbon", "exp"]
    assert belongings.names[-1] == "exp__pyexpd_meta"
    assert {"exp__more", "exp__pyexpd_notes", "exp__seen"} < set(belongings.others)
    for done, statement in enumerate(belongings.statements, 1):
        apply(forgotten, [statement])
        rest = uses.everything(forgotten.table, state_of(forgotten))
        assert rest.names == belongings.names[done:]
    assert not state_of(bench).exists
    left = bench.query(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY 1"
        if bench.database.provider == "sqlite"
        else f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{bench.database.name}' ORDER BY 1"
    )
    assert sorted(name for (name,) in left) == [
        "exp__more",
        "exp__more__epochs",
        "exp__more__pyexpd_attempts",
        "exp__more__pyexpd_commands",
        "exp__more__pyexpd_daemons",
        "exp__more__pyexpd_meta",
        "exp__more__pyexpd_snapshot_parts",
        "exp__more__pyexpd_snapshots",
        "exp__pyexpd_notes",
        "exp__seen",
        "expo",
    ]
    schema.check(other.table, state_of(other))


@pytest.mark.parametrize(
    "columns", ["ID INTEGER PRIMARY KEY, x INTEGER", "ID INTEGER PRIMARY KEY, experiment_id INTEGER, text VARCHAR(9)"]
)
async def test_table_that_only_has_the_name_of_a_logtable_is_refused_and_never_dropped(
    make_bench: Make, columns: str
) -> None:
    bench = make_bench(create=False)
    bench.execute(f"CREATE TABLE exp__epochs ({columns})")
    bench.execute("CREATE TABLE exp_codecarbon (ID INTEGER PRIMARY KEY, experiment_id INTEGER)")
    before = describe(bench)
    for attempt in (filling.ensure_tables, lambda store, table: filling.preview(store, table, [])):
        with pytest.raises(
            exceptions.TableHasWrongStructureError, match="exp__epochs is there and is no log"
        ) as caught:
            attempt(bench.blocking, bench.table)
        assert caught.value.exit_code == 64
    assert describe(bench) == before
    without = make_bench(logtables={})
    belongings = uses.everything(bench.table, state_of(without))
    assert belongings.others == ["exp__epochs", "exp_codecarbon"]
    assert not {"exp__epochs", "exp_codecarbon"} & set(belongings.names)


async def test_other_experiment_table_is_no_logtable(make_bench: Make) -> None:
    """Not even one whose fields have the names that a logtable's columns have."""
    other = make_bench(
        table="exp__epochs",
        logtables={},
        keyfields={"experiment_id": {"type": "INT", "values": [1]}, "timestamp": {"type": "INT", "values": [1]}},
    )
    bench = make_bench(create=False)
    with pytest.raises(exceptions.TableHasWrongStructureError, match="exp__epochs is there and is no logtable"):
        filling.ensure_tables(bench.blocking, bench.table)
    schema.check(other.table, state_of(other))
    plain = make_bench(logtables={})
    assert "exp__epochs" in uses.everything(bench.table, state_of(plain)).others


async def test_foreign_key_of_a_users_table_is_found_before_anything_is_dropped(make_bench: Make) -> None:
    bench = make_bench()
    bench.execute("CREATE TABLE notes (ID INTEGER PRIMARY KEY, about INTEGER, FOREIGN KEY (about) REFERENCES exp (ID))")
    names = uses.everything(bench.table, state_of(bench)).names
    found = bench.blocking.read(uses.references(bench.table, names))
    assert found == ["notes"]
    with pytest.raises(exceptions.TableError, match="notes refers to table exp by a foreign key") as caught:
        uses.check_references(bench.table, found)
    assert caught.value.exit_code == 64
    bench.execute("DROP TABLE notes")
    assert bench.blocking.read(uses.references(bench.table, names)) == []


async def test_drop_that_was_stopped_is_taken_up_again_and_not_filled_over(make_bench: Make) -> None:
    bench = make_bench()
    apply(bench, ["DROP TABLE exp__epochs", "DROP TABLE exp"])
    with pytest.raises(exceptions.TableHasWrongStructureError, match="is gone, but the tables beside it") as caught:
        filling.ensure_tables(bench.blocking, bench.table)
    assert "pyexpd db drop" in str(caught.value.hint)
    clear(bench)
    assert filling.ensure_tables(bench.blocking, bench.table)
    assert bench.fill() == 5


# Keyfields that fingerprints are made of.


@pytest.mark.parametrize("is_result", [False, True])
async def test_column_that_is_there_becomes_a_keyfield_by_add_keyfield_only(make_bench: Make, is_result: bool) -> None:
    """Made by hand or once a result field: with it in the configuration alone, fill would add everything again."""
    then = make_bench(resultfields={"y": "DOUBLE", "k": "DOUBLE"} if is_result else {"y": "DOUBLE"})
    if not is_result:
        then.execute("ALTER TABLE exp ADD COLUMN k DOUBLE")
    then.execute("UPDATE exp SET k = 1.5 WHERE ID = 2")
    described = {"x": {"type": "INT", "values": list(range(5))}, "k": {"type": "DOUBLE", "values": [0.5, 1.5]}}
    now = make_bench(create=False, keyfields=described, resultfields={"y": "DOUBLE"})
    for refused in (
        lambda: schema.check(now.table, state_of(now)),
        lambda: filling.ensure_tables(now.blocking, now.table),
        lambda: filling.preview(now.blocking, now.table, []),
    ):
        with pytest.raises(
            exceptions.TableHasWrongStructureError, match="has a column k, but was made without"
        ) as caught:
            refused()
        assert str(caught.value.hint).startswith("pyexpd db add-keyfield k --value V")
    stored, canonical = ColumnType.parse("DOUBLE").declared(0.5)
    new = NewKeyfield(name="k", sql_type="DOUBLE", value=stored, canonical=canonical, text="0.5")

    planned = keyfields.plan(now.blocking, now.table, new)
    assert planned.statements == []
    assert keyfields.add(now.blocking, planned, new) == []

    schema.check(now.table, state_of(now))
    assert now.query("SELECT x, k FROM exp ORDER BY ID") == [(0, 0.5), (1, 1.5), (2, 0.5), (3, 0.5), (4, 0.5)]
    assert filling.ensure_tables(now.blocking, now.table) == []
    assert now.fill() == 5
    assert now.query("SELECT COUNT(*) FROM exp") == [(10,)]


async def test_keyfield_that_becomes_a_result_field_is_refused(make_bench: Make) -> None:
    two = {"x": {"type": "INT", "values": [1]}, "k": {"type": "INT", "values": [1, 2]}}
    make_bench(keyfields=two)
    now = make_bench(
        create=False, keyfields={"x": two["x"]}, resultfields={"k": "INT", "y": "DOUBLE", "note": "VARCHAR(20)"}
    )
    with pytest.raises(
        exceptions.TableHasWrongStructureError, match="has a keyfield k that the configuration does not"
    ):
        filling.ensure_tables(now.blocking, now.table)


async def test_keyfields_of_a_table_made_before_they_were_recorded_are_recorded_by_fill(make_bench: Make) -> None:
    bench = make_bench()
    assert state_of(bench).keys == {"x"}
    bench.execute("DELETE FROM exp__pyexpd_meta WHERE name LIKE 'key%'")
    schema.check(bench.table, state_of(bench))
    assert filling.ensure_tables(bench.blocking, bench.table) == []
    assert state_of(bench).keys == {"x"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("it's", "pyexpd db add-keyfield k --value 'it'\"'\"'s' goes on where it was stopped"),
        ("a b", "pyexpd db add-keyfield k --value 'a b' goes on where it was stopped"),
        ("", "pyexpd db add-keyfield k --value '' goes on where it was stopped"),
        ("v" * 120, f"pyexpd db add-keyfield k --value {'v' * 120} goes on where it was stopped"),
        *(
            (
                text,
                "pyexpd db add-keyfield k --value V, with the value you began with as V, goes on where it was stopped",
            )
            for text in ("v" * 121, "a\nb", "a  b")
        ),
    ],
)
def test_hint_after_a_stop_can_be_pasted(text: str, hint: str) -> None:
    new = NewKeyfield(name="k", sql_type="LONGTEXT", value=text, canonical=text.encode(), text=text)
    state = replace(NOTHING, added=[structure.AddedKeyfield.parse(str(new.beginning))])
    with pytest.raises(exceptions.SchemaVersionError) as caught:
        schema.refuse_unfinished(Table(name="exp", dialect=DIALECTS["sqlite"], keyfields={}, resultfields={}), state)
    assert caught.value.hint == hint
    assert len(str(new.beginning)) <= 255


# Daemons of a configuration without the keyfield.


async def test_daemon_without_the_new_keyfield_claims_nothing_from_the_moment_it_begins(make_bench: Make) -> None:
    """The claim itself refuses: no heartbeat has to come first."""
    then = make_bench()
    me = then.register("old")
    assert len(then.claim(me)) == 1
    now, new = with_keyfield(make_bench)
    planned = keyfields.plan(now.blocking, now.table, new)
    now.run(keyfields._begin(now.table, new))
    with pytest.raises(exceptions.Fenced):
        then.claim(me)
    keyfields.add(now.blocking, planned, new)
    assert now.fill() == 5
    with pytest.raises(exceptions.Fenced):
        then.claim(me, limit=3)
    one = leases.claim_one(then.table, me=me, token=make_token(), experiment_id=7)
    assert then.run(one) is None
    assert set(then.statuses().values()) == {"created", "running"}
    heard = then.run(daemons.beat(then.table, me=me, lease_s=60)).added
    assert structure.not_ours(then.table, heard) == ["k"]
    assert structure.not_ours(now.table, heard) == []
    other = now.register("new")
    assert [claim.keyfields["k"] for claim in now.claim(other, limit=9)] == [0.5] * 4 + [None] * 5
    one = leases.claim_one(now.table, me=other, token=make_token(), experiment_id=7)
    assert now.run(one) is None  # it is running


async def test_daemons_that_do_not_notice_a_new_keyfield_are_known(make_bench: Make) -> None:
    bench = make_bench()
    for name, facts in (("first", "NULL"), ("second", "'{\"schema\": 2}'"), ("third", '\'{"keyfields": ["X"]}\'')):
        me = bench.register(name)
        bench.execute(f"UPDATE exp__pyexpd_daemons SET facts = {facts} WHERE id = {me.id}")
    found = bench.blocking.read(uses.workers(bench.table, state_of(bench)))
    assert [worker.name for worker in uses.heedless(found)] == ["first", "second"]
    assert found[-1].keyfields == {"x"}


# Names that differ in capitals.


@on_servers
async def test_tables_that_differ_in_capitals_are_two(make_bench: Make) -> None:
    loud = make_bench(table="EXP", keyfields={"other": {"type": "INT", "values": [1]}})
    quiet = make_bench(create=False, logtables={})  # MariaDB takes the names of their foreign keys for the same
    assert not state_of(quiet).exists
    assert filling.ensure_tables(quiet.blocking, quiet.table)
    assert quiet.fill() == 5
    schema.check(quiet.table, state_of(quiet))
    schema.check(loud.table, state_of(loud))
    clear(quiet)
    schema.check(loud.table, state_of(loud))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_name_in_other_capitals_is_refused_where_they_do_not_count(make_bench: Make) -> None:
    make_bench()
    loud = make_bench(create=False, table="EXP")
    for refused in (
        lambda: schema.check(loud.table, state_of(loud)),
        lambda: filling.ensure_tables(loud.blocking, loud.table),
    ):
        with pytest.raises(exceptions.TableHasWrongStructureError, match="has a table exp and takes EXP for") as caught:
            refused()
        assert caught.value.hint == "write exp in the configuration, or choose another name"
    logs = make_bench(create=False, logtables={"Epochs": {"loss": "DOUBLE"}})
    with pytest.raises(exceptions.TableHasWrongStructureError, match="exp__epochs and takes exp__Epochs for") as caught:
        filling.ensure_tables(logs.blocking, logs.table)
    assert str(caught.value.hint).startswith("write epochs in the configuration")
