"""Experiments from one database into another, in both directions between SQLite and servers, whatever happens."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import LogRow, Outcome, Report, make_token
from pyexp_daemon.store import daemons, discovery, edits, filling, leases, restoring, transfer
from pyexp_daemon.store.dialect import DIALECTS
from pyexp_daemon.store.reports import record
from pyexp_daemon.store.selection import ALL, select
from pyexp_daemon.store.sqlite import BlockingSqlite
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.transfer import Place, Verdict, delivering, fitting, parcels, states
from pyexp_daemon.store.unit import Do, Steps, unit
from pyexp_daemon.store.values import utc
from tests.bench import POLICY, Bench, ended, make_daemon
from tests.integration.store.test_edits import see
from tests.integration.store.test_snapshots import reports_of, save, saved

Make = Callable[..., Bench]

DESCRIBED: dict[str, Any] = {
    "keyfields": {
        "x": {"type": "INT", "values": list(range(8))},
        "lr": {"type": "DOUBLE", "values": [0.1]},
        "kind": {"type": "VARCHAR(20)", "values": ["ä'\\ b"]},
    },
    "resultfields": {
        "y": "DOUBLE",
        "z": "FLOAT",
        "raw": "BLOB",
        "note": "LONGTEXT",
        "n": "DECIMAL(8,3)",
        "d": "DATETIME",
    },
    "logtables": {"epochs": {"loss": "DOUBLE", "word": "VARCHAR(20)"}},
    "codecarbon": {"offline_mode": True, "country_iso_code": "DEU"},
}


def place(bench: Bench) -> Place:
    return Place(store=bench.blocking, table=bench.table)


@contextmanager
def sqlite(path: Path, table: Table) -> Iterator[Place]:
    there = replace(table, dialect=DIALECTS["sqlite"])
    store = BlockingSqlite(path, create=True)
    try:
        filling.ensure_tables(store, there)
        yield Place(store=store, table=there)
    finally:
        store.close()


@unit
def rows(sql: str) -> Steps[list[tuple[Any, ...]]]:
    return list((yield Do(sql)).rows)


def canonical(value: Any) -> Any:
    """A value by its bits, whichever driver gave it."""
    if isinstance(value, float):
        return "float", struct.pack(">d", value).hex()
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes", bytes(value).hex()
    if isinstance(value, Decimal):
        return canonical(float(value))
    if value is None or isinstance(value, int | str):
        return value
    return str(value)


def dump(where: Place) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that a transfer is to keep; times of ours to the microsecond, which is what a server holds."""
    table, epoch = where.table, where.table.dialect.epoch
    exact = [parcels.exactly(table, name) for name in table.columns]
    ours = "pyexpd_fingerprint, pyexpd_queue, pyexpd_order, pyexpd_attempt, pyexpd_tries"
    receipt = (
        "experiment_id, attempt, token, host, pid, outcome, error, exit_code, `signal`, cpu_seconds, log_tail, result"
    )
    found = {
        "experiments": f"SELECT {', '.join(exact)}, {ours} FROM {table.main} ORDER BY ID",
        "attempts": f"SELECT {receipt} FROM {table.attempts} ORDER BY 1, 2, 3",
        "times": f"SELECT token, {epoch('started')}, {epoch('ended')} FROM {table.attempts} ORDER BY 1",
        "logs": f"SELECT experiment_id, timestamp, loss, word, pyexpd_attempt, pyexpd_seq FROM {table.beside('epochs')}"
        f" ORDER BY experiment_id, pyexpd_attempt, pyexpd_seq",
        "snapshots": f"SELECT experiment_id, sequence, attempt, label, size_bytes, parts, state_id"
        f" FROM {table.snapshots} ORDER BY 1, 2",
        "created": f"SELECT experiment_id, sequence, {epoch('created')} FROM {table.snapshots} ORDER BY 1, 2",
        "parts": f"SELECT experiment_id, state_id, part, attempt, data FROM {table.snapshot_parts} ORDER BY 1, 2, 3",
        "emissions": f"SELECT experiment_id, project_name, emissions_kg FROM {table.emissions} ORDER BY 1, 3",
    }
    dumped = {name: where.store.read(rows(sql)) for name, sql in found.items()}
    for name in ("times", "created"):
        dumped[name] = [
            tuple(round(float(value) * 1e6) if isinstance(value, float | Decimal) else value for value in row)
            for row in dumped[name]
        ]
    return {name: [tuple(map(canonical, row)) for row in some] for name, some in dumped.items()}


ODD = [
    {"y": 0.1 + 0.2, "raw": b"\0\xff'\\%", "note": "a\nb", "n": Decimal("1.250"), "z": 0.5, "d": "2026-01-02 03:04:05"},
    {"y": 5e-324, "note": "🌱 é"},
    {"y": -1.7976931348623157e308, "z": struct.unpack("f", struct.pack("f", 0.1))[0]},
]


def used(bench: Bench) -> None:
    """Experiments in every state but running, with a history."""
    bench.run(edits.set_scheduling(bench.table, see(bench, ids=["8"]), queue="gpu", order=-3))
    me = bench.register()
    claims = bench.claim(me, 7)
    for claim, results in zip(claims[:3], ODD, strict=True):
        log = LogRow(logtable="epochs", seq=1, time=1000.0, columns={"loss": math.pi, "word": "w'"})
        more = LogRow(logtable="epochs", seq=2, time=1001.0, columns={"loss": None, "word": None})
        bench.record(me, Report(claim=claim, logs=(log, more)))
        save(bench, me, claim, b"\0part", b"two", label="é", created=1000.123456)
        save(bench, me, claim, b"other", created=1001.5)
        energy = {"project_name": "p", "emissions_kg": 0.1}
        bench.record(me, ended(claim, results=results, started=1000.1234567, ended=1001.7654321, emissions=energy))
    bench.end(me, claims[3], Outcome.ERROR, error="boom", exit_code=3, signal=9, cpu_seconds=0.1, log_tail="tail")
    bench.end(me, claims[4], Outcome.CRASH, error="crash")
    bench.end(me, claims[5], Outcome.PAUSED)
    bench.end(me, claims[6], Outcome.RELEASED)


async def test_there_and_back_everything_is_the_same_bit_by_bit(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(**DESCRIBED)
    used(bench)
    with sqlite(tmp_path / "away.db", bench.table) as away, sqlite(tmp_path / "back.db", bench.table) as back:
        first = transfer.transfer(place(bench), away)
        assert first.verdicts == {Verdict.ADDED: 8}
        assert first.snapshots == 6
        assert dump(away) == dump(place(bench))
        transfer.transfer(away, back)
        assert dump(back) == dump(place(bench))
        bench.run(edits.delete(bench.table, see(bench, ids=["all"])))
        transfer.transfer(back, place(bench))
        assert dump(back) == dump(place(bench))


async def test_a_second_transfer_changes_nothing(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(**DESCRIBED)
    used(bench)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away)
        before = dump(away)
        again = transfer.transfer(place(bench), away)
        assert again.verdicts == {Verdict.SAME: 3, Verdict.KEPT: 5}
        assert again.snapshots == 0
        assert dump(away) == before
        transfer.transfer(away, place(bench))
        assert dump(place(bench)) == before


async def test_results_win_over_what_is_unfinished_and_what_runs_is_left_alone(
    make_bench: Make, tmp_path: Path
) -> None:
    bench = make_bench(**DESCRIBED)
    with sqlite(tmp_path / "other.db", bench.table) as other:
        transfer.transfer(place(bench), other)
        used(bench)
        me = bench.register()
        (running,) = bench.claim(me, 1)
        copy = tmp_path / "copy.db"
        with sqlite(copy, bench.table) as source:
            transfer.transfer(place(bench), source)
            taken = transfer.transfer(source, other)
            assert taken.verdicts == {Verdict.TAKEN: 5, Verdict.KEPT: 3}
            found = dict(other.store.read(rows("SELECT ID, status FROM exp")))
            assert (found[1], found[4], found[running.experiment_id]) == ("done", "error", "created")
            bench.run(edits.reset(bench.table, see(bench, ids=["1", "2"])))
            (mine,) = bench.claim(me, 1)
            back = transfer.transfer(other, place(bench))
            assert back.verdicts[Verdict.RUNNING] == 2
            assert back.verdicts[Verdict.TAKEN] == 1
            assert bench.query("SELECT status, y FROM exp WHERE ID = 2") == [("done", ODD[1]["y"])]
            assert bench.statuses()[mine.experiment_id] == "running"
    attempts = bench.query("SELECT attempt, outcome FROM exp__pyexpd_attempts WHERE experiment_id = 2")
    assert attempts == [(3, "done")]  # after those that the experiment had here
    assert bench.query("SELECT pyexpd_attempt FROM exp WHERE ID = 2") == [(3,)]
    assert bench.query("SELECT COUNT(*) FROM exp__epochs WHERE experiment_id = 2") == [(2,)]


async def test_two_results_are_a_conflict_until_somebody_prefers_one(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(**DESCRIBED)
    with sqlite(tmp_path / "other.db", bench.table) as other:
        transfer.transfer(place(bench), other)
        used(bench)
        other.store.run(edits.complete(other.table, 1, {"y": 7.0, "note": "theirs"}))
        other.store.run(edits.complete(other.table, 2, ODD[1]))
        dry = transfer.plan(other, bench.table, bench.blocking)
        done = transfer.transfer(other, place(bench))
        assert dry.verdicts == done.verdicts
        (conflict,) = done.conflicts
        assert (conflict.source_id, conflict.target_id, conflict.keyfields["x"]) == (1, 1, 0)
        assert conflict.source["y"] == 7.0
        assert conflict.target["y"] == ODD[0]["y"]
        assert bench.query("SELECT y FROM exp WHERE ID = 1") == [(ODD[0]["y"],)]
        transfer.transfer(other, place(bench), prefer="target")
        assert bench.query("SELECT y FROM exp WHERE ID = 1") == [(ODD[0]["y"],)]
        transfer.transfer(other, place(bench), prefer="source")
        assert bench.query("SELECT y, note, z, status FROM exp WHERE ID = 1") == [(7.0, "theirs", None, "done")]
        assert transfer.transfer(other, place(bench)).conflicts == []


async def test_ids_that_are_taken_are_mapped_with_everything_that_refers_to_them(
    make_bench: Make, tmp_path: Path
) -> None:
    bench = make_bench(**DESCRIBED)
    used(bench)
    grid = {**DESCRIBED["keyfields"], "x": {"type": "INT", "values": [100, 101, 0]}}
    other = make_bench(**{**DESCRIBED, "keyfields": grid}, table="other")
    done = transfer.transfer(transfer.adapted(place(bench), other.table), place(other))
    assert done.verdicts == {Verdict.TAKEN: 1, Verdict.ADDED: 7}
    for column, name in (("loss", "epochs"), ("outcome", "pyexpd_attempts"), ("size_bytes", "pyexpd_snapshots")):
        query = "SELECT t.x, b.{0} FROM {1} t JOIN {1}__{2} b ON b.experiment_id = t.ID ORDER BY 1, 2"
        assert other.query(query.format(column, "other", name)) == bench.query(query.format(column, "exp", name))
    assert other.query("SELECT ID, x FROM other WHERE x >= 100 ORDER BY ID") == [(1, 100), (2, 101)]


async def test_only_what_is_selected_is_exported(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(**DESCRIBED)
    used(bench)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        selection = select(bench.table, statuses=["done"])
        assert bench.blocking.read(transfer.count(bench.table, selection)) == 3
        done = transfer.transfer(place(bench), away, selection=selection)
        assert done.verdicts == {Verdict.ADDED: 3}


class Killed(Exception):
    """Stands for SIGKILL: nothing after it happens."""


async def test_a_transfer_that_is_killed_anywhere_and_repeated_is_one(
    make_bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "CHUNK", 2)
    bench = make_bench(**DESCRIBED)
    used(bench)
    chance = random.Random(3)
    for turn in range(10):
        with sqlite(tmp_path / f"away{turn}.db", bench.table) as away:
            left, run = chance.randint(1, 18), away.store.run

            def fused(work: Any, run: Any = run) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return run(work)

            monkeypatch.setattr(away.store, "run", fused)
            with pytest.raises(Killed):
                transfer.transfer(place(bench), away)
            monkeypatch.setattr(away.store, "run", run)
            transfer.transfer(place(bench), away)
            assert dump(away) == dump(place(bench))


async def test_an_experiment_with_very_many_log_rows_goes_alone(
    make_bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "MOST_LOG_ROWS", 3)
    monkeypatch.setattr(delivering, "STATEMENT_BYTES", 200)
    bench = make_bench(**DESCRIBED)
    used(bench)
    sizes: list[int] = []
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away, advanced=sizes.append)
        assert sizes == [1, 1, 6]
        assert dump(away) == dump(place(bench))


async def test_a_source_that_lacks_fields_gives_null_and_one_with_others_is_refused(
    make_bench: Make, tmp_path: Path
) -> None:
    few = make_bench(keyfields=DESCRIBED["keyfields"], resultfields={"y": "DOUBLE"}, logtables={}, table="few")
    few.end(few.register(), few.claim(few.register())[0], results={"y": 2.0})
    many = make_bench(**DESCRIBED, filled=False)
    transfer.transfer(transfer.adapted(place(few), many.table), place(many))
    assert many.query("SELECT y, z, note FROM exp WHERE status = 'done'") == [(2.0, None, None)]
    with pytest.raises(exceptions.TableHasWrongStructureError, match="table exp has a column z, raw, note, n, d"):
        transfer.adapted(place(many), few.table)


async def test_tables_are_found_as_they_are(make_bench: Make) -> None:
    bench = make_bench(**DESCRIBED, result_timestamps=True)
    make_bench(table="other", keyfields={"k": {"type": "INT", "values": [1]}}, logtables={})
    assert bench.blocking.read(discovery.names(bench.table.dialect)) == ["exp", "other"]
    found = bench.blocking.read(discovery.table(bench.table.dialect, "exp"))
    assert list(found.keyfields) == ["x", "lr", "kind"]
    assert list(found.resultfields) == list(DESCRIBED["resultfields"])
    assert {name: list(columns) for name, columns in found.logtables.items()} == {"epochs": ["loss", "word"]}
    assert (found.result_timestamps, found.codecarbon) == (True, True)
    assert bench.blocking.read(discovery.table(bench.table.dialect, "exp__epochs")) is None


async def test_what_differs_from_the_configuration_is_named_and_overwritten_at_once(make_bench: Make) -> None:
    from pyexp_daemon.space.grid import Grid

    bench = make_bench(**DESCRIBED)
    used(bench)
    table, provider = bench.table, bench.config.database.provider

    def grid(*values: int) -> Grid:
        keyfields = {name: bench.config.database.table.keyfields[name] for name in table.keyfields}
        keyfields["x"] = keyfields["x"].model_copy(update={"values": values})
        return Grid.of(keyfields, provider=provider)

    assert not restoring.difference(bench.blocking, table, grid(*range(8)))
    differs = restoring.difference(bench.blocking, table, grid(6, 7, 8))
    assert (differs.there, differs.only_configured, differs.only_there) == (8, 1, 6)
    assert differs.configured == [{"x": 8, "lr": 0.1, "kind": "ä'\\ b"}]
    assert [row["x"] for row in differs.stored] == [0, 1, 2]
    (claim,) = bench.claim(bench.register())
    with pytest.raises(exceptions.UsageError, match="1 experiments of table exp are running"):
        bench.run(restoring.overwrite(table, grid(6, 7, 8)))
    assert len(bench.statuses()) == 8
    bench.run(edits.reset(table, see(bench, ids=[str(claim.experiment_id)])))
    assert bench.run(restoring.overwrite(table, grid(6, 7, 8))) == (8, 3)
    assert not restoring.difference(bench.blocking, table, grid(6, 7, 8))
    left = dump(place(bench))
    assert {name for name, found in left.items() if found} == {"experiments"}
    assert json.dumps([row[1] for row in left["experiments"]]) == "[6, 7, 8]"


async def test_rows_without_fingerprints_are_known_by_their_parameters(make_bench: Make, tmp_path: Path) -> None:
    """PyExperimenter makes such rows, and people do."""
    bench = make_bench(**DESCRIBED)
    used(bench)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away)
        before = dump(away)
        columns = "x, lr, kind, status, y"
        for where in (away, place(bench)):
            where.store.run(change("UPDATE exp SET pyexpd_fingerprint = NULL WHERE ID IN (1, 2)"))
            where.store.run(
                change(f"INSERT INTO exp ({columns}) SELECT 99, lr, kind, 'done', 0.5 FROM exp WHERE ID = 3")
            )
        bench.run(change(f"INSERT INTO exp ({columns}) SELECT {columns} FROM exp WHERE ID = 2"))
        filling.mark_existing(away.store, away.table)
        again = transfer.transfer(place(bench), away)
        assert again.verdicts == {Verdict.SAME: 4, Verdict.KEPT: 5, Verdict.DUPLICATE: 1}
        away.store.run(change("DELETE FROM exp WHERE x = 99"))
        assert dump(away) == before


@unit
def change(sql: str) -> Steps[None]:
    yield Do(sql)


async def test_what_a_server_rounds_is_no_conflict(make_bench: Make, tmp_path: Path) -> None:
    described = {
        **DESCRIBED,
        "resultfields": {"n": "INT", "d": "DATETIME", "t": "CHAR(9)", "y": "DOUBLE", "b": "BOOLEAN"},
        "codecarbon": None,
    }
    bench = make_bench(**described)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away)
        odd = "n = 1.5, d = '2026-01-02 03:04:05.6', t = 'a ', y = 9e999, b = 1, status = 'done', pyexpd_attempt = 1"
        away.store.run(change(f"UPDATE exp SET {odd} WHERE ID = 1"))
        assert transfer.transfer(away, place(bench)).verdicts[Verdict.TAKEN] == 1
        again = transfer.transfer(away, place(bench))
        assert again.conflicts == []
        assert again.verdicts[Verdict.SAME] == 1


async def test_an_experiment_that_does_not_fit_is_named_and_those_before_it_are_there(
    make_bench: Make, tmp_path: Path
) -> None:
    bench = make_bench(rows=8)
    if bench.database.provider == "sqlite":  # which takes any length
        bench.blocking.run(
            change(
                "CREATE TRIGGER narrow BEFORE UPDATE ON exp WHEN length(NEW.note) > 20"
                " BEGIN SELECT RAISE(ABORT, 'note is too long'); END"
            )
        )
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away)
        away.store.run(change("UPDATE exp SET status = 'done', y = 1, pyexpd_attempt = 1"))
        away.store.run(change("UPDATE exp SET note = '123456789012345678901' WHERE ID = 6"))
        with pytest.raises(exceptions.RowRefused, match=r"^experiment 6 does not fit: .*note") as refused:
            transfer.transfer(away, place(bench))
        assert "widen the column" in (refused.value.hint or "")
        assert bench.run(rows("SELECT ID FROM exp WHERE status = 'done' ORDER BY ID")) == [(i,) for i in range(1, 6)]
        away.store.run(change("UPDATE exp SET note = 'short' WHERE ID = 6"))
        assert transfer.transfer(away, place(bench)).verdicts == {Verdict.SAME: 5, Verdict.TAKEN: 3}


async def test_log_rows_come_with_the_columns_that_are_there_or_are_refused(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(rows=1)
    (claim,) = bench.claim(me := bench.register(), 1)
    bench.record(me, Report(claim=claim, logs=(LogRow(logtable="epochs", seq=1, time=1000.0, columns={"loss": 0.5}),)))
    bench.end(me, claim, results={"y": 1.0})
    wide = replace(bench.table, logtables={"epochs": {"loss": "DOUBLE", "acc": "DOUBLE", "word": "VARCHAR(20)"}})
    with sqlite(tmp_path / "wide.db", wide) as away:
        transfer.transfer(transfer.adapted(place(bench), wide), away)
        assert away.store.read(rows("SELECT loss, acc, word FROM exp__epochs")) == [(0.5, None, None)]
        with pytest.raises(exceptions.TableHasWrongStructureError, match=r"logtable epochs .* has a column acc"):
            transfer.adapted(away, bench.table)
        without = replace(bench.table, logtables={})
        with pytest.raises(exceptions.TableHasWrongStructureError, match="has a logtable epochs"):
            transfer.adapted(place(bench), without)


async def test_emissions_without_a_place_are_refused(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(**DESCRIBED)
    used(bench)
    with sqlite(tmp_path / "away.db", replace(bench.table, codecarbon=False)) as away:
        source = transfer.adapted(place(bench), bench.table)
        with pytest.raises(exceptions.TableHasWrongStructureError, match="have emissions") as refused:
            transfer.transfer(source, away)
        assert refused.value.hint == "add a section CodeCarbon; pyexpd fill makes the table"
        assert away.store.read(rows("SELECT COUNT(*) FROM exp")) == [(0,)]


async def test_a_target_with_keyfields_of_other_types_is_refused(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(logtables={})
    text = replace(bench.table, keyfields={"x": "VARCHAR(9)"})
    with sqlite(tmp_path / "away.db", text) as away:
        target = Place(store=away.store, table=replace(bench.table, dialect=away.table.dialect))
        with pytest.raises(exceptions.TableHasWrongStructureError, match=r"keyfield x is VARCHAR\(9\) there"):
            transfer.transfer(place(bench), target)


async def test_what_is_claimed_while_it_is_selected_is_passed_over(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(rows=3)
    read, created = bench.blocking.read, select(bench.table, statuses=["created"])
    me = bench.register()

    def claims_between(work: Any) -> Any:
        found = read(work)
        if work.name == "_sizes":
            bench.claim(me, 3)
        return found

    with sqlite(tmp_path / "away.db", bench.table) as away:
        bench.blocking.read = claims_between
        assert transfer.transfer(place(bench), away, selection=created).verdicts == {}


async def test_attempts_of_two_databases_have_numbers_of_their_own(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(rows=1)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away)
        (claim,) = bench.claim(me := bench.register(), 1)
        bench.end(me, claim, results={"y": 1.0})
        transfer.transfer(place(bench), away)
        away.store.run(change("UPDATE exp__pyexpd_attempts SET token = 'f00d'"))
        for _ in range(2):
            transfer.transfer(away, place(bench), prefer="target")
            found = bench.query("SELECT attempt, outcome, token = 'f00d' FROM exp__pyexpd_attempts ORDER BY attempt")
            assert found == [(1, "done", 0), (2, "superseded", 1)]


async def test_who_waits_after_a_failure_is_not_let_go_by_a_snapshot_that_comes(
    make_bench: Make, tmp_path: Path
) -> None:
    bench = make_bench(rows=1)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        (claim,) = bench.claim(me := bench.register(), 1)
        save(bench, me, claim, b"state")
        bench.end(me, claim, Outcome.RELEASED)
        transfer.transfer(place(bench), away)
        away.store.run(change("DELETE FROM exp__pyexpd_snapshots"))
        away.store.run(
            change("UPDATE exp SET status = 'waiting', pyexpd_tries = '{\"error\": 1}', pyexpd_not_before = 9e9")
        )
        assert transfer.transfer(place(bench), away).snapshots == 1
        assert away.store.read(rows("SELECT status, pyexpd_not_before FROM exp")) == [("waiting", 9e9)]


async def test_types_that_sqlite_does_not_know_are_simpler_there(make_bench: Make) -> None:
    bench = make_bench(create=False)
    odd = replace(
        bench.table,
        dialect=DIALECTS["sqlite"],
        keyfields={"e": "ENUM('a','b')", "i": "INT(10) UNSIGNED", "x": "INT UNSIGNED"},
        resultfields={"c": "VARCHAR(10) CHARACTER SET utf8mb4", "d": "DECIMAL(8,3)"},
    )
    simple = transfer.portable(odd)
    assert simple.keyfields == {"e": "TEXT", "i": "INT(10)", "x": "INT UNSIGNED"}
    assert simple.resultfields == {"c": "VARCHAR(10)", "d": "DECIMAL(8,3)"}
    assert simple.logtables == odd.logtables


async def test_json_is_found_to_be_json(make_bench: Make) -> None:
    """MariaDB calls it a text."""
    keyfields = {
        "options": {"type": "JSON", "values": [{"a": 1}, {"b": 2}]},
        "t": {"type": "LONGTEXT", "values": ["x"]},
    }
    bench = make_bench(keyfields=keyfields)
    found = bench.blocking.read(discovery.table(bench.table.dialect, "exp"))
    assert found is not None
    assert {name: kind.upper() for name, kind in found.keyfields.items()} == {"options": "JSON", "t": "LONGTEXT"}
    marks = rows("SELECT pyexpd_fingerprint FROM exp ORDER BY ID")
    before = bench.blocking.read(marks)
    bench.blocking.run(change("UPDATE exp SET pyexpd_fingerprint = NULL"))
    filling.mark_existing(bench.blocking, found)
    assert bench.blocking.read(marks) == before


async def test_keyfields_of_other_types_are_refused(make_bench: Make) -> None:
    bench = make_bench(keyfields={"x": {"type": "INT", "values": [1]}}, logtables={})
    other = make_bench(keyfields={"x": {"type": "VARCHAR(9)", "values": ["1"]}}, logtables={}, table="other")
    with pytest.raises(
        exceptions.TableHasWrongStructureError, match=r"keyfield x is (?i:int).* there and VARCHAR\(9\) here"
    ):
        transfer.adapted(place(bench), other.table)


@pytest.mark.parametrize(
    ("there", "here", "value"), [("DECIMAL(10,4)", "DECIMAL(10,2)", "1.25"), ("TEXT", "JSON", '{"a": 1}')]
)
async def test_keyfields_that_would_be_other_values_here_are_refused(
    make_bench: Make, there: str, here: str, value: str
) -> None:
    bench = make_bench(keyfields={"x": {"type": there, "values": [value]}}, logtables={})
    other = replace(bench.table, keyfields={"x": here})
    with pytest.raises(exceptions.TableHasWrongStructureError, match=r"no experiments would be the same"):
        transfer.adapted(place(bench), other)


def transfer_killed_before_snapshots(source: Place, target: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(states, "_put_part", killed)
        with pytest.raises(Killed):
            transfer.transfer(source, target)


async def test_nobody_takes_an_experiment_before_its_snapshots_are_there(
    make_bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(**DESCRIBED)
    me = bench.register()
    for claim in bench.claim(me, 2):
        save(bench, me, claim, b"state", created=1000.0)
        bench.end(me, claim, Outcome.RELEASED)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer_killed_before_snapshots(place(bench), away, monkeypatch)
        assert dict(away.store.read(rows("SELECT ID, status FROM exp")))[1] == "waiting"
        transfer.transfer(place(bench), away)
        assert set(dict(away.store.read(rows("SELECT ID, status FROM exp"))).values()) == {"created"}
        assert dump(away) == dump(place(bench))


async def test_snapshots_of_two_databases_are_in_the_order_of_their_times(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(**DESCRIBED)
    with sqlite(tmp_path / "other.db", bench.table) as other:
        transfer.transfer(place(bench), other)
        me = bench.register()
        (claim,) = bench.claim(me)
        for moment in (1000.0, 2000.0, 5000.0):
            save(bench, me, claim, str(moment).encode(), created=moment)
        bench.end(me, claim, Outcome.RELEASED)
        with sqlite(tmp_path / "third.db", bench.table) as third:
            transfer.transfer(place(bench), third)
            bench.run(edits.reset(bench.table, see(bench, ids=["1"])))
            (claim,) = bench.claim(me)
            for moment in (1500.0, 4000.0):
                save(bench, me, claim, str(moment).encode(), created=moment)
            bench.end(me, claim, Outcome.RELEASED)
            transfer.transfer(third, place(bench))
    assert [float(state) for _, _, state in saved(bench, 1)] == [5000.0, 4000.0, 2000.0, 1500.0, 1000.0]


async def test_large_results_are_held_a_few_at_once(
    make_bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcels, "MOST_BYTES", 1000)
    bench = make_bench(**DESCRIBED)
    me = bench.register()
    for claim in bench.claim(me, 4):
        bench.end(me, claim, results={"note": "x" * 400})
    sizes: list[int] = []
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away, advanced=sizes.append)
        assert sizes == [2, 6]
        assert dump(away) == dump(place(bench))


async def test_a_plan_is_what_is_then_done(make_bench: Make, tmp_path: Path) -> None:
    """With experiments that the source has twice, some without fingerprints here, and into nothing."""
    bench = make_bench(**DESCRIBED)
    used(bench)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away, selection=select(bench.table, ids=["1-4"]))
        away.store.run(change("UPDATE exp SET pyexpd_fingerprint = NULL WHERE ID < 3"))
        columns = "x, lr, kind, status"
        bench.run(change(f"INSERT INTO exp ({columns}) SELECT {columns} FROM exp WHERE ID = 5"))
        planned = transfer.plan(place(bench), away.table, away.store)
        assert planned.verdicts == {Verdict.SAME: 3, Verdict.KEPT: 1, Verdict.ADDED: 4, Verdict.DUPLICATE: 1}
        filling.mark_existing(away.store, away.table)
        assert transfer.transfer(place(bench), away).verdicts == planned.verdicts
    empty = BlockingSqlite(tmp_path / "empty.db", create=True)
    for store in (None, empty):
        into_nothing = transfer.plan(place(bench), away.table, store)
        assert into_nothing.verdicts == {Verdict.ADDED: 8, Verdict.DUPLICATE: 1}
    empty.close()


async def test_sqlite_keeps_what_a_server_would_cut_off_so_it_differs(make_bench: Make, tmp_path: Path) -> None:
    table = replace(make_bench(create=False).table, resultfields={"word": "VARCHAR(3)"}, logtables={})
    with sqlite(tmp_path / "one.db", table) as one, sqlite(tmp_path / "other.db", table) as other:
        for where, word in ((one, "abcd"), (other, "abce")):
            insert = f"INSERT INTO exp (x, status, word) VALUES (1, 'done', '{word}')"
            where.store.run(change(insert))
            filling.mark_existing(where.store, where.table)
        (conflict,) = transfer.plan(one, other.table, other.store).conflicts
        assert (conflict.source, conflict.target) == ({"word": "abcd"}, {"word": "abce"})


@pytest.mark.parametrize(
    ("comes", "column", "fits"),
    [
        ("DOUBLE", "INT", False),
        ("DOUBLE", "FLOAT", False),
        ("TEXT", "INT", False),
        ("DECIMAL(8,4)", "DECIMAL(8,2)", False),
        ("INT", "DOUBLE", True),
        ("FLOAT", "DOUBLE", True),
        ("BOOLEAN", "INT", True),
        ("VARCHAR(9)", "LONGTEXT", True),
    ],
)
async def test_results_go_into_columns_that_hold_them(
    make_bench: Make, tmp_path: Path, comes: str, column: str, fits: bool
) -> None:
    """Both ways: what the other table has into fields of ours, and our fields into its columns."""
    bench = make_bench(resultfields={"y": comes}, logtables={})
    here = replace(bench.table, resultfields={"y": column})
    with sqlite(tmp_path / "away.db", here) as away:
        if fits:
            transfer.adapted(place(bench), here)
            assert transfer.transfer(place(bench), away).verdicts == {Verdict.ADDED: len(bench.statuses())}
            return
        with pytest.raises(exceptions.TableHasWrongStructureError, match=r"result field y comes as .* and is "):
            transfer.adapted(place(bench), here)
        with pytest.raises(exceptions.TableHasWrongStructureError, match=r"result field y comes as .* and is "):
            transfer.plan(place(bench), away.table, away.store)


async def test_log_rows_go_into_columns_that_hold_them(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(logtables={"epochs": {"loss": "DOUBLE"}})
    whole = replace(bench.table, logtables={"epochs": {"loss": "INT"}})
    with pytest.raises(exceptions.TableHasWrongStructureError, match="logtable epochs: loss comes as"):
        transfer.adapted(place(bench), whole)
    with (
        sqlite(tmp_path / "away.db", whole) as away,
        pytest.raises(exceptions.TableHasWrongStructureError, match="logtable epochs: loss comes as DOUBLE and is INT"),
    ):
        transfer.plan(place(bench), away.table, away.store)


def numbers(bench: Bench) -> tuple[int, list[int]]:
    """The attempt of the first experiment, and the numbers of all that it had."""
    ((attempt,),) = bench.query("SELECT pyexpd_attempt FROM exp WHERE ID = 1")
    found = bench.query("SELECT attempt FROM exp__pyexpd_attempts WHERE experiment_id = 1 ORDER BY attempt")
    return attempt, [number for (number,) in found]


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.ERROR])
async def test_what_is_run_again_after_a_merge_has_numbers_of_its_own(
    make_bench: Make, tmp_path: Path, outcome: Outcome
) -> None:
    bench = make_bench(rows=1)
    results = {"results": {"y": 1.0}} if outcome is Outcome.DONE else {}
    with sqlite(tmp_path / "away.db", bench.table) as away:
        (claim,) = bench.claim(me := bench.register(), 1)
        bench.end(me, claim, outcome, **results)
        transfer.transfer(place(bench), away)
        away.store.run(change("UPDATE exp__pyexpd_attempts SET token = 'f00d'"))
        transfer.transfer(away, place(bench))
    assert numbers(bench) == (1 if outcome is Outcome.DONE else 2, [1, 2])
    bench.run(edits.reset(bench.table, see(bench, ids=["1"])))
    (claim,) = bench.claim(me, 1)
    bench.end(me, claim, results={"y": 2.0})
    assert numbers(bench) == (4, [1, 2, 4])


async def test_snapshots_of_a_result_that_is_taken_belong_to_its_attempts(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(rows=1)
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away)
        away.store.run(change("UPDATE exp SET pyexpd_attempt = 3"))  # it was tried there
        (claim,) = bench.claim(me := bench.register(), 1)
        save(bench, me, claim, b"state")
        bench.end(me, claim, results={"y": 1.0})
        assert transfer.transfer(place(bench), away).verdicts == {Verdict.TAKEN: 1}
        for name in ("attempts", "snapshots", "snapshot_parts"):
            assert away.store.read(rows(f"SELECT attempt FROM exp__pyexpd_{name}")) == [(4,)]


async def test_log_rows_that_nobody_declares_go_with_the_result_that_is_replaced(
    make_bench: Make, tmp_path: Path
) -> None:
    bench = make_bench(rows=1, logtables={"epochs": {"loss": "DOUBLE"}})
    bench.run(change("INSERT INTO exp__epochs (experiment_id, loss) VALUES (1, 0.5)"))
    fewer = replace(bench.table, logtables={})
    with sqlite(tmp_path / "away.db", fewer) as away:
        transfer.transfer(Place(store=bench.blocking, table=fewer), away)
        away.store.run(edits.complete(away.table, 1, {"y": 1.0}))
        done = transfer.transfer(away, Place(store=bench.blocking, table=fewer))
        assert done.verdicts == {Verdict.TAKEN: 1}
    assert bench.query("SELECT COUNT(*) FROM exp__epochs") == [(0,)]


async def test_who_waits_in_the_source_waits_for_its_snapshots_too(
    make_bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(rows=1)
    (claim,) = bench.claim(me := bench.register(), 1)
    save(bench, me, claim, b"state")
    bench.end(me, claim, Outcome.RELEASED)
    before = bench.table.dialect.epoch("pyexpd_not_before")
    bench.blocking.run(wait_until_1000(bench.table))
    read = rows(f"SELECT status, {before} FROM exp")
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer_killed_before_snapshots(place(bench), away, monkeypatch)
        ((status, moment),) = away.store.read(rows("SELECT status, pyexpd_not_before FROM exp"))
        assert status == "waiting"
        assert moment > 1000
        transfer.transfer(place(bench), away)
        assert away.store.read(rows("SELECT status, pyexpd_not_before FROM exp")) == [("waiting", 1000.0)]
        assert [(status, float(moment)) for status, moment in bench.blocking.read(read)] == [("waiting", 1000.0)]


@unit
def wait_until_1000(table: Table) -> Steps[None]:
    yield Do("UPDATE exp SET status = 'waiting', pyexpd_not_before = ?", (utc(table, 1000.0),))


class Life:
    """An experiment table that is lived in at random; every result says in which table and attempt it came about."""

    def __init__(self, where: Place, chance: random.Random) -> None:
        self.where, self.chance = where, chance
        self.me = self.run(daemons.register(where.table, make_daemon()))

    def run(self, work: Any) -> Any:
        return self.where.store.run(work)

    def go_on(self) -> None:
        """One thing that daemons or people do."""
        self.chance.choice([self._work, self._work, self._work, self._reset, self._reopen])()

    def _work(self) -> None:
        table, token = self.where.table, make_token()
        for claim in self.run(leases.claim(table, me=self.me, token=token, queue="default", limit=1)):
            reports = [Report(claim=claim, logs=(LogRow(logtable="epochs", seq=1, time=1.0, columns={"loss": 0.5}),))]
            if self.chance.random() < 0.5:
                reports += reports_of(claim, b"state", created=1000.0 + self.chance.random())
            outcome = self.chance.choice([Outcome.DONE, Outcome.ERROR, Outcome.RELEASED, Outcome.LOST])
            results = {"y": self.chance.random()} if outcome is Outcome.DONE else {}
            for report in [*reports, ended(claim, outcome, results=results)]:
                self.run(record(table, [report], me=self.me, host="host", policy=POLICY))

    def _chosen(self) -> list[edits.Seen]:
        seen = self.where.store.read(edits.seen(self.where.table, ALL))
        return [self.chance.choice(seen)]

    def _reset(self) -> None:
        self.run(edits.reset(self.where.table, self._chosen()))

    def _reopen(self) -> None:
        self.run(edits.reopen(self.where.table, self._chosen()[0].id))

    def check(self) -> None:
        """What always holds of a table, whatever came into it."""
        table = self.where.table
        attempts = self.where.store.read(rows(f"SELECT experiment_id, attempt, token, outcome FROM {table.attempts}"))
        assert len({row[:2] for row in attempts}) == len(attempts), "two attempts have one number"
        assert len({(row[0], row[2]) for row in attempts}) == len(attempts), "an attempt is there twice"
        accepted = {(row[0], row[1]) for row in attempts if row[3] == "done"}
        found = self.where.store.read(rows(f"SELECT ID, status, pyexpd_attempt, y FROM {table.main}"))
        for number, status, attempt, y in found:
            assert (status == "done") <= (y is not None)
            if status == "done":
                assert (number, attempt) in accepted, "the result is of no attempt that counts"
            else:
                assert all(mine <= attempt for owner, mine, *_ in attempts if owner == number), "a number comes again"
        logs = self.where.store.read(rows(f"SELECT experiment_id, pyexpd_attempt FROM {table.beside('epochs')}"))
        known = {row[:2] for row in attempts}
        assert {row for row in logs if row not in known} == set(), "log rows of no attempt"


@pytest.mark.parametrize("seed", range(3))
async def test_databases_that_are_merged_now_and_then_stay_in_order(
    make_bench: Make, tmp_path: Path, seed: int
) -> None:
    described = {**DESCRIBED, "resultfields": {"y": "DOUBLE"}, "codecarbon": None}
    benches = [make_bench(**described), make_bench(**described, table="other")]
    chance = random.Random(seed)
    with sqlite(tmp_path / "third.db", benches[0].table) as third:
        transfer.transfer(place(benches[0]), third)
        lives = [Life(where, chance) for where in (*map(place, benches), third)]
        for _ in range(25):
            for _ in range(chance.randint(0, 6)):
                chance.choice(lives).go_on()
            source, target = chance.sample(lives, 2)
            prefer = chance.choice(["source", "target"])
            planned = transfer.plan(source.where, target.where.table, target.where.store, prefer=prefer)
            done = transfer.transfer(source.where, target.where, prefer=prefer)
            assert planned.verdicts == done.verdicts
            again = transfer.transfer(source.where, target.where, prefer=prefer)
            assert again.snapshots == 0
            assert again.verdicts[Verdict.TAKEN] == again.verdicts[Verdict.ADDED] == 0
            for life in lives:
                life.check()


async def test_tables_that_only_have_such_a_name_are_left_alone(make_bench: Make, tmp_path: Path) -> None:
    """The logtable of another experiment table, and what a person keeps beside the experiments."""
    bench = make_bench(rows=1, logtables={"epochs": {"loss": "DOUBLE"}})
    make_bench(rows=1, logtables={"log": {"m": "INT"}}, table="exp__b")
    bench.run(change("INSERT INTO exp__b__log (experiment_id, m) VALUES (1, 5)"))
    bench.run(change("CREATE TABLE exp__notes (id INTEGER, experiment_id INTEGER, timestamp INTEGER, note TEXT)"))
    bench.run(change("INSERT INTO exp__notes VALUES (1, 1, 1, 'mine')"))
    with sqlite(tmp_path / "away.db", bench.table) as away:
        assert transfer.transfer(transfer.adapted(place(bench), bench.table), away).verdicts == {Verdict.ADDED: 1}
        away.store.run(edits.complete(away.table, 1, {"y": 1.0}))
        assert transfer.transfer(away, place(bench)).verdicts == {Verdict.TAKEN: 1}
        bench.run(restoring.overwrite(bench.table, []))
    found = bench.blocking.read(discovery.table(bench.table.dialect, "exp"))
    assert found is not None
    assert list(found.logtables) == ["epochs"]
    assert bench.query("SELECT COUNT(*) FROM exp__b__log") == bench.query("SELECT COUNT(*) FROM exp__notes") == [(1,)]


async def test_result_fields_that_were_added_are_refused_where_nobody_names_them(
    make_bench: Make, tmp_path: Path
) -> None:
    bench = make_bench(rows=1, logtables={})
    more = replace(bench.table, resultfields={**bench.table.resultfields, "extra": "DOUBLE"})
    with sqlite(tmp_path / "away.db", bench.table) as away:
        for store, table in ((bench.blocking, more), (away.store, replace(more, dialect=away.table.dialect))):
            filling.ensure_tables(store, table)
        with pytest.raises(exceptions.TableHasWrongStructureError, match="has a result field extra that the conf"):
            transfer.adapted(place(bench), bench.table)
        with pytest.raises(exceptions.TableHasWrongStructureError, match="has a result field extra that the conf"):
            transfer.plan(transfer.adapted(place(bench), more), away.table, away.store)
        wide = replace(more, dialect=away.table.dialect)
        assert transfer.plan(transfer.adapted(place(bench), more), wide, away.store).verdicts == {Verdict.ADDED: 1}


async def test_a_new_experiment_gets_nothing_that_a_deleted_one_has_left(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(rows=1, logtables={"epochs": {"loss": "DOUBLE"}})
    other = make_bench(
        keyfields={"x": {"type": "INT", "values": [7]}}, table="other", logtables={"epochs": {"loss": "DOUBLE"}}
    )
    with sqlite(tmp_path / "away.db", bench.table) as away:
        transfer.transfer(place(bench), away)
        away.store.run(change("INSERT INTO exp__epochs (experiment_id, loss) VALUES (1, 0.5)"))
        with closing(sqlite3.connect(tmp_path / "away.db", isolation_level=None)) as by_hand:  # without foreign keys
            by_hand.execute("DELETE FROM exp")
        done = transfer.transfer(transfer.adapted(place(other), bench.table), away)
        assert done.verdicts == {Verdict.ADDED: 1}
        assert away.store.read(rows("SELECT ID, x FROM exp")) == [(2, 7)]


@pytest.mark.parametrize(
    ("column", "kind", "fits"),
    [
        ("DATETIME", "DATETIME(6)", False),
        ("DATETIME(6)", "DATETIME", True),
        ("DOUBLE(10,2)", "DOUBLE", False),
        ("DOUBLE(10,2)", "FLOAT", False),
        ("FLOAT(8,2)", "FLOAT(8,2)", True),
        ("STR", "TEXT", False),
        ("TEXT", "STR", True),
        ("char(10)", "NATIONAL CHAR(10)", True),
        ("tinyint(1)", "BOOL", True),
        ("double", "REAL", True),
        ("decimal(10,0)", "NUMERIC", True),
        ("int unsigned", "INT UNSIGNED", True),
        ("DECIMAL(5,2)", "INT", False),
    ],
)
def test_a_column_holds_what_it_keeps_unchanged(column: str, kind: str, fits: bool) -> None:
    assert (fitting._holds(column, kind) or fitting._widens(column, kind)) == fits


async def test_a_source_without_timestamps_of_results_gives_none(make_bench: Make, tmp_path: Path) -> None:
    bench = make_bench(rows=1)
    (claim,) = bench.claim(me := bench.register(), 1)
    bench.end(me, claim, results={"y": 1.0})
    dated = replace(bench.table, result_timestamps=True)
    with sqlite(tmp_path / "away.db", dated) as away:
        transfer.transfer(transfer.adapted(place(bench), dated), away)
        assert away.store.read(rows("SELECT y, y_timestamp FROM exp")) == [(1.0, None)]


async def test_what_is_found_without_a_configuration_is_called_as_the_database_calls_it(make_bench: Make) -> None:
    """Names that were recorded in other capitals; a date beside one result only; no views; a type that is none."""
    bench = make_bench(rows=1, resultfields={"loss": "DOUBLE", "loss_timestamp": "DATETIME", "acc": "DOUBLE"})
    filling.ensure_tables(bench.blocking, bench.table)
    bench.run(change("UPDATE exp__pyexpd_meta SET value = UPPER(value) WHERE name LIKE 'result_%'"))
    bench.run(change("CREATE VIEW good AS SELECT * FROM exp"))
    dialect = bench.table.dialect
    assert bench.blocking.read(discovery.names(dialect)) == ["exp"]
    found = bench.blocking.read(discovery.table(dialect, "exp"))
    assert found is not None
    assert list(found.resultfields) == ["loss", "loss_timestamp", "acc"]
    assert not found.result_timestamps
    if dialect.provider == "sqlite":
        bench.run(change("CREATE TABLE untyped (ID INTEGER, x, creation_date TEXT, machine TEXT, y, end_date TEXT)"))
        with pytest.raises(exceptions.TableHasWrongStructureError, match="untyped: column x has type ''"):
            bench.blocking.read(discovery.table(dialect, "untyped"))
