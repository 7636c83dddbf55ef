"""Snapshots in the tables: fenced like results, in their order, complete or not there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import Claim, Incarnation, Outcome, Report, SnapshotHead, SnapshotPart, Verdict, make_token
from pyexp_daemon.store import attached, cleaning, daemons, edits, lookups, migrations, snapshots, structure, uses
from pyexp_daemon.store.unit import Done, Steps, Unit
from tests.bench import POLICY, Bench, ended
from tests.integration.store.test_edits import see


def reports_of(
    claim: Claim, *parts: bytes, label: str | None = None, keep: int | None = None, created: float = 1000.5
) -> list[Report]:
    """What a daemon is told about one snapshot, in order."""
    state_id = make_token()
    sent = [Report(claim=claim, parts=(SnapshotPart(state_id, number, part),)) for number, part in enumerate(parts)]
    head = SnapshotHead(
        state_id=state_id,
        label=label,
        created=created,
        size_bytes=sum(map(len, parts)),
        parts=len(parts),
        keep=keep,
    )
    return [*sent[:-1], replace(sent[-1], snapshots=(head,))]


def save(bench: Bench, me: Incarnation, claim: Claim, *parts: bytes, **options: Any) -> list[Verdict]:
    return [bench.record(me, report)[0] for report in reports_of(claim, *parts, **options)]


def saved(bench: Bench, experiment_id: int, **options: Any) -> list[tuple[int, str | None, bytes]]:
    """Sequence, label and state of an experiment's snapshots, the newest first."""
    return [
        (
            head["sequence"],
            head["label"],
            b"".join(
                bench.blocking.read(
                    snapshots.part(bench.table, experiment_id, state_id=head["state_id"], number=number)
                )
                for number in range(head["parts"])
            ),
        )
        for head in bench.blocking.read(snapshots.heads(bench.table, experiment_id, **options))
    ]


def count_parts(bench: Bench) -> int:
    ((count,),) = bench.query("SELECT COUNT(*) FROM exp__pyexpd_snapshot_parts")
    return int(count)


async def test_a_snapshot_is_there_with_its_last_part_and_not_before(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    first, last = reports_of(claim, b"\0abc'\\\"", b"\xff%s", label="é")
    assert bench.record(me, first) == [Verdict.ACCEPTED]
    assert saved(bench, claim.experiment_id) == []
    assert bench.record(me, last) == [Verdict.ACCEPTED]
    assert saved(bench, claim.experiment_id) == [(1, "é", b"\0abc'\\\"\xff%s")]
    (head,) = bench.blocking.read(snapshots.heads(bench.table, claim.experiment_id))
    assert (head["attempt"], head["size_bytes"], head["created"]) == (1, 10, 1000.5)


async def test_a_repeated_write_of_a_snapshot_is_one(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    for report in reports_of(claim, b"a", b"b", keep=1):
        for _ in range(2):
            assert bench.record(me, report, repeated=True) == [Verdict.ACCEPTED]
    assert saved(bench, claim.experiment_id) == [(1, None, b"ab")]
    assert count_parts(bench) == 2


async def test_sequence_decides_and_no_clock(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    for moment, state in ((3000.0, b"1"), (2000.0, b"2"), (1000.0, b"3")):
        save(bench, me, claim, state, created=moment)
    assert [state for _, _, state in saved(bench, claim.experiment_id)] == [b"3", b"2", b"1"]
    assert saved(bench, claim.experiment_id, limit=1) == [(3, None, b"3")]


async def test_labels_are_told_apart_by_every_letter(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    for label in ("best", "Best", "best ", None):
        save(bench, me, claim, repr(label).encode(), label=label)
    for label in ("best", "Best", "best "):
        assert [state for _, _, state in saved(bench, claim.experiment_id, label=label)] == [repr(label).encode()]


async def test_keep_counts_those_of_its_label_and_takes_the_parts_along(bench: Bench) -> None:
    me = bench.register()
    one, other = bench.claim(me, 2)
    save(bench, me, other, b"x", b"y")
    save(bench, me, one, b"best", label="best")
    for state in (b"1", b"2", b"3"):
        save(bench, me, one, state, state, keep=2)
    assert saved(bench, one.experiment_id) == [(4, None, b"33"), (3, None, b"22"), (1, "best", b"best")]
    save(bench, me, one, b"4", keep=1)
    assert saved(bench, one.experiment_id) == [(5, None, b"4"), (1, "best", b"best")]
    assert count_parts(bench) == 2 + 2
    assert saved(bench, other.experiment_id) == [(1, None, b"xy")]


async def test_what_an_ended_attempt_left_of_a_snapshot_goes_with_the_next_one(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    unfinished = reports_of(claim, b"a", b"b", b"c")
    for report in unfinished[:2]:
        bench.record(me, report)
    bench.end(me, claim, Outcome.RELEASED)
    (again,) = bench.claim(me)
    assert saved(bench, again.experiment_id) == []
    save(bench, me, again, b"whole")
    assert (saved(bench, again.experiment_id), count_parts(bench)) == ([(1, None, b"whole")], 1)


async def test_a_head_without_all_its_parts_is_refused_and_changes_nothing(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    save(bench, me, claim, b"old", keep=1)
    *_, last = reports_of(claim, b"a", b"b", b"c", keep=1)
    with pytest.raises(exceptions.RowRefused, match="2 of 3 parts of the snapshot are missing"):
        bench.record(me, last)
    assert (saved(bench, claim.experiment_id), count_parts(bench)) == ([(1, None, b"old")], 1)


async def test_who_lost_the_experiment_saves_nothing(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    save(bench, me, claim, b"kept")
    first, last = reports_of(claim, b"a", b"b")
    bench.record(me, first)
    bench.run(edits.reset(bench.table, see(bench, ids=["1"]), keep_snapshots=True))
    (again,) = bench.claim(me)
    assert again.experiment_id == claim.experiment_id
    assert bench.record(me, last) == [Verdict.SUPERSEDED]
    assert bench.record(me, first) == [Verdict.SUPERSEDED]
    assert saved(bench, claim.experiment_id) == [(1, None, b"kept")]


async def test_a_late_snapshot_of_a_dead_daemon_counts_until_somebody_takes_the_experiment(bench: Bench) -> None:
    dead, me = bench.register("dead"), bench.register()
    (claim,) = bench.claim(dead)
    bench.kill_daemon(dead)
    assert bench.run(daemons.sweep(bench.table, owner=dead.id, policy=POLICY)) == [1]
    assert bench.statuses()[claim.experiment_id] == "created"
    assert [bench.record(dead, each, late=True)[0] for each in reports_of(claim, b"late")] == [Verdict.ACCEPTED]
    assert saved(bench, claim.experiment_id) == [(1, None, b"late")]
    bench.claim(me)
    assert [bench.record(dead, each, late=True)[0] for each in reports_of(claim, b"x")] == [Verdict.SUPERSEDED]


async def test_a_late_snapshot_forgives_what_came_before_and_not_the_loss_after_it(bench: Bench) -> None:
    dead = bench.register("dead")
    (claim,) = bench.claim(dead)
    bench.execute("""UPDATE exp SET pyexpd_tries = '{"crash": 2, "lost": 4}' WHERE ID = 1""")
    bench.kill_daemon(dead)
    bench.run(daemons.sweep(bench.table, owner=dead.id, policy=POLICY))
    for report in reports_of(claim, b"late", b"r"):
        bench.record(dead, report, late=True)
    assert bench.query("SELECT status, pyexpd_tries FROM exp WHERE ID = 1") == [("created", '{"lost": 1}')]
    bench.record(dead, ended(claim), late=True)
    assert bench.query("SELECT status, pyexpd_tries FROM exp WHERE ID = 1") == [("done", None)]


async def test_a_new_snapshot_forgives_crashes_and_losses_and_no_errors(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.execute("""UPDATE exp SET pyexpd_tries = '{"crash": 2, "error": 1, "lost": 3}' WHERE ID = 1""")
    first, last = reports_of(claim, b"a", b"b")
    bench.record(me, first)
    assert bench.query("SELECT pyexpd_tries FROM exp WHERE ID = 1") == [('{"crash": 2, "error": 1, "lost": 3}',)]
    bench.record(me, last)
    assert bench.query("SELECT pyexpd_tries FROM exp WHERE ID = 1") == [('{"error": 1}',)]
    bench.end(me, claim, Outcome.CRASH)
    assert bench.query("SELECT pyexpd_tries FROM exp WHERE ID = 1") == [('{"crash": 1, "error": 1}',)]


async def test_a_snapshot_and_the_crash_after_it_in_one_write(bench: Bench) -> None:
    """The crash counts, those before the snapshot do not."""
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.execute("""UPDATE exp SET pyexpd_tries = '{"crash": 2}' WHERE ID = 1""")
    (report,) = reports_of(claim, b"a")
    assert bench.record(me, replace(report, end=ended(claim, Outcome.CRASH).end)) == [Verdict.ACCEPTED]
    assert bench.query("SELECT status, pyexpd_tries FROM exp WHERE ID = 1") == [("waiting", '{"crash": 1}')]
    assert saved(bench, 1) == [(1, None, b"a")]


async def test_reset_and_delete_take_snapshots_along_unless_told_otherwise(bench: Bench) -> None:
    me = bench.register()
    claims = bench.claim(me, 3)
    for claim in claims:
        save(bench, me, claim, b"s", b"t")
        bench.end(me, claim)
    bench.run(edits.reset(bench.table, see(bench, ids=["1"]), keep_snapshots=True))
    bench.run(edits.reset(bench.table, see(bench, ids=["2"])))
    bench.run(edits.delete(bench.table, see(bench, ids=["3"])))
    assert [len(saved(bench, number)) for number in (1, 2, 3)] == [1, 0, 0]
    assert count_parts(bench) == 2


async def test_clean_takes_old_snapshots_of_what_is_gone_and_when_told_of_what_is_over(bench: Bench) -> None:
    me = bench.register()
    for claim in bench.claim(me, 4):
        save(bench, me, claim, b"old", b"er", created=1000.0)
        save(bench, me, claim, b"new", created=time.time())
        bench.end(me, claim, Outcome.DONE if claim.experiment_id != 3 else Outcome.PAUSED)
    bench.execute("DELETE FROM exp WHERE ID = 4")  # by PyExperimenter, which knows nothing of snapshots

    def clean(*, of_over: bool) -> int:
        unit = cleaning.count(bench.table, older_s=86400, snapshots_of_over=of_over)
        expected: int = bench.blocking.read(unit)["snapshots"]
        assert bench.run(cleaning.delete_snapshots(bench.table, older_s=86400, of_over=of_over)) == expected
        return expected

    assert [clean(of_over=False), clean(of_over=True), clean(of_over=True)] == [1, 2, 0]
    assert [[state for _, _, state in saved(bench, number)] for number in (1, 3, 4)] == [
        [b"new"],
        [b"new", b"older"],
        [b"new"],
    ]
    assert count_parts(bench) == 4 + 2


def begin(bench: Bench, me: Incarnation, *, days: float, outcome: Outcome | None = None) -> list[Report]:
    """The next experiment saves two parts of three, and its attempt ended so many days ago; what is still to come."""
    (claim,) = bench.claim(me)
    first, second, last = reports_of(claim, b"a", b"b", b"c")
    assert bench.record(me, first) + bench.record(me, second) == [Verdict.ACCEPTED] * 2
    if outcome is not None:
        ended = time.time() - days * 86400
        bench.end(me, claim, outcome, started=ended - 1, ended=ended)
    return [last]


async def test_clean_takes_parts_that_nobody_can_finish(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "CHUNK", 3)
    me = bench.register()
    begin(bench, me, days=2, outcome=Outcome.ERROR)
    begin(bench, me, days=0.5, outcome=Outcome.ERROR)
    begin(bench, me, days=2, outcome=Outcome.PAUSED)
    running = begin(bench, me, days=0)
    begin(bench, me, days=2, outcome=Outcome.CRASH)
    bench.execute("DELETE FROM exp WHERE ID = 3")  # by PyExperimenter
    bench.execute("INSERT INTO exp (x, status) VALUES (9, 'paused')")
    seen = bench.blocking.read(attached.attach(bench.table, 6))
    for report in reports_of(seen.claim, b"w", b"hole"):
        assert bench.run(attached.write(bench.table, seen, report))

    def clean() -> dict[int, int]:
        expected = bench.blocking.read(cleaning.count(bench.table, older_s=86400))["snapshot_parts"]
        before = count_parts(bench)
        while bench.run(cleaning.delete_parts(bench.table, older_s=86400)):
            pass
        assert before - count_parts(bench) == expected
        sql = "SELECT experiment_id, COUNT(*) FROM exp__pyexpd_snapshot_parts GROUP BY experiment_id"
        return dict(bench.query(sql))

    assert clean() == {2: 2, 4: 2, 5: 2, 6: 2}
    for report in running:
        assert bench.record(me, report) == [Verdict.ACCEPTED]
    bench.execute("UPDATE exp SET status = 'created', pyexpd_not_before = NULL WHERE ID = 5")
    bench.execute("UPDATE exp SET status = 'cancelled' WHERE ID = 2")
    bench.execute("UPDATE exp__pyexpd_attempts SET ended = NULL WHERE experiment_id = 2")
    assert clean() == {4: 3, 5: 2, 6: 2}
    (again,) = bench.claim(me)
    assert (again.experiment_id, again.attempt) == (5, 2)
    assert clean() == {4: 3, 6: 2}
    assert saved(bench, 4) == [(1, None, b"abc")]


async def test_clean_leaves_parts_that_are_finished_meanwhile(bench: Bench) -> None:
    """Between what it saw and its lock somebody may save on, or take the experiment."""
    me = bench.register()
    (last,) = begin(bench, me, days=0)
    picked = bench.query("SELECT experiment_id, state_id, part, attempt FROM exp__pyexpd_snapshot_parts")

    def with_old_eyes() -> Steps[int]:
        steps = cleaning.delete_parts(bench.table, older_s=86400).start()
        next(steps)
        step = steps.send(Done(rows=picked, changed=0))
        while True:
            try:
                step = steps.send((yield step))
            except StopIteration as done:
                return int(done.value)

    assert bench.run(Unit("clean", with_old_eyes)) == 0
    assert bench.record(me, last) == [Verdict.ACCEPTED]
    bench.execute("UPDATE exp SET status = 'paused' WHERE ID = 1")
    bench.run(Unit("clean", with_old_eyes))
    assert saved(bench, 1) == [(1, None, b"abc")]


async def test_two_processes_save_for_one_attempt_at_the_same_time(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    seen = bench.blocking.read(attached.attach(bench.table, 1))
    first, *rest = reports_of(claim, b"a", b"b", b"c", keep=1)
    bench.record(me, first)
    for report in reports_of(seen.claim, b"from outside", keep=1):
        assert bench.run(attached.write(bench.table, seen, report))
    for report in rest:
        assert bench.record(me, report) == [Verdict.ACCEPTED]
    assert saved(bench, 1) == [(2, None, b"abc")]
    assert count_parts(bench) == 3


async def test_a_table_that_others_made_anew_has_no_snapshots_of_the_one_before(bench: Bench) -> None:
    """PyExperimenter drops its own table only, and begins again with the same IDs."""
    me = bench.register()
    (claim,) = bench.claim(me)
    save(bench, me, claim, b"of another experiment")
    bench.execute("DROP TABLE exp__epochs")
    bench.execute("DROP TABLE exp")
    key = "ID INTEGER PRIMARY KEY " + ("AUTOINCREMENT" if bench.database.provider == "sqlite" else "AUTO_INCREMENT")
    bench.execute(
        f"CREATE TABLE exp ({key}, x INT, creation_date DATETIME, status VARCHAR(255), start_date DATETIME,"
        f" name LONGTEXT, machine VARCHAR(255), y DOUBLE, note VARCHAR(20), end_date DATETIME, error LONGTEXT)"
    )
    bench.create()
    assert saved(bench, 1) == []
    assert count_parts(bench) == 0
    bench.execute("DROP TABLE exp__pyexpd_snapshots")
    bench.create()
    assert saved(bench, 1) == []


async def test_an_attached_process_saves_for_the_attempt_that_it_saw(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    seen = bench.blocking.read(attached.attach(bench.table, 1))
    for report in reports_of(seen.claim, b"from", b"outside"):
        assert bench.run(attached.write(bench.table, seen, report))
    assert saved(bench, 1) == [(1, None, b"fromoutside")]
    bench.end(me, claim)
    assert not bench.run(attached.write(bench.table, seen, reports_of(seen.claim, b"late")[0]))
    assert count_parts(bench) == 2


async def test_the_tables_go_with_the_experiments(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    save(bench, me, claim, b"s")
    state = bench.blocking.read(structure.inspect(bench.table))
    belongings = uses.droppable(bench.blocking, bench.table, state)
    assert belongings.others == []
    bench.blocking.change_schema([migrations.ddl(statement) for statement in belongings.statements])
    left = bench.blocking.read(structure.inspect(bench.table))
    assert (left.columns, left.beside) == ((), {})


# What others have found out


def ask(bench: Bench, what: str, **arguments: Any) -> Any:
    return bench.blocking.read(lookups.look_up(bench.table, 1, what, arguments))


async def test_results_of_one_experiment(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    assert ask(bench, "results_of", experiment_id=1, table=None) is None
    bench.end(me, claim, results={"y": 0.5, "note": "fine"})
    assert ask(bench, "results_of", experiment_id=1, table=None) == {"y": 0.5, "note": "fine"}
    with pytest.raises(exceptions.SelectorError, match="table exp has no experiment 99"):
        ask(bench, "results_of", experiment_id=99, table=None)


KEYS = {
    "x": {"type": "INT", "values": [1, 2]},
    "lr": {"type": "FLOAT", "values": [0.1]},
    "kernel": {"type": "VARCHAR(20)", "values": ["rbf", "RBF", None]},
    "options": {"type": "JSON", "values": [{"a": 1}]},
    "exact": {"type": "DECIMAL(6,3)", "values": [0.25]},
}


async def test_results_where_keyfields_are_equal(make_bench: Callable[..., Bench]) -> None:
    """By what makes experiments the same: capitals count, a FLOAT is found by what was configured, NULL by None."""
    bench = make_bench(keyfields=KEYS)
    me = bench.register()
    for claim in bench.claim(me, 6):
        if claim.keyfields["x"] == 1 or claim.keyfields["kernel"] == "rbf":
            bench.end(me, claim, results={"y": float(claim.experiment_id)})

    def names(**keyfields: Any) -> list[tuple[int, str | None]]:
        found = ask(bench, "results_where", table=None, keyfields=keyfields, after=0)
        assert all(row["y"] == row["ID"] for row in found)
        return [(row["x"], row["kernel"]) for row in found]

    assert len(names()) == 4
    assert sorted(names(kernel="rbf")) == [(1, "rbf"), (2, "rbf")]
    assert names(kernel="RBF") == [(1, "RBF")]
    assert names(kernel=None) == [(1, None)]
    assert names(x=2, kernel="RBF") == []
    assert len(names(lr=0.1, options={"a": 1}, exact="0.250", x=1)) == 3
    assert names(options={"a": 2}) == names(x=3) == []
    with pytest.raises(exceptions.SelectorError, match="table exp has no keyfield 'z'") as caught:
        names(z=1)
    assert caught.value.hint == "keyfields are: x, lr, kernel, options, exact"
    with pytest.raises(exceptions.SelectorError, match="no experiment of table exp has x = 'one'"):
        names(x="one")


async def test_a_double_is_found_by_what_fill_calls_the_same(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(keyfields={"lr": {"type": "DOUBLE", "values": [0.1 + 0.2, 31.99999999999999, 0.0, 1e300]}})
    me = bench.register()
    for claim in bench.claim(me, 4):
        bench.end(me, claim, results={"y": 1.0})
    for value, found in ((0.3, [1]), (32, [2]), (0, [3]), (1e300, [4]), (0.30001, []), (-0.3, [])):
        rows = ask(bench, "results_where", table=None, keyfields={"lr": value}, after=0)
        assert [row["ID"] for row in rows] == found, value


async def test_results_come_in_pages(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "PAGE", 2)
    bench = make_bench(
        keyfields={"x": {"type": "INT", "values": list(range(7))}, "s": {"type": "TEXT", "values": ["a"]}}
    )
    bench.execute("UPDATE exp SET status = 'done', s = CASE WHEN ID < 5 THEN 'A' ELSE 'a' END")
    pages, after = [], 0
    while page := ask(bench, "results_where", table=None, keyfields={"s": "a"}, after=after):
        pages.append([row["ID"] for row in page])
        after = page[-1]["ID"]
    assert pages == [[5, 6], [7]]


async def test_pages_of_large_results_are_short(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(rows=5, resultfields={"text": "LONGTEXT"})
    bench.execute("UPDATE exp SET status = 'done', text = 'x'")
    ((repeated,),) = bench.query("SELECT 600000")
    blob = "replace(hex(zeroblob(300000)), '0', 'x')" if bench.database.provider == "sqlite" else "REPEAT('x', 600000)"
    bench.execute(f"UPDATE exp SET text = {blob} WHERE ID IN (2, 3, 4)")
    pages, after = [], 0
    while page := ask(bench, "results_where", table=None, keyfields={}, after=after):
        assert all(len(row["text"]) in (1, repeated) for row in page)
        pages.append([row["ID"] for row in page])
        after = page[-1]["ID"]
    assert pages == [[1, 2], [3], [4, 5]]


async def test_a_keyfield_that_another_table_got_later_is_one(make_bench: Callable[..., Bench]) -> None:
    bench, other = make_bench(), make_bench(table="other", filled=False)
    other.execute("ALTER TABLE other ADD COLUMN k DOUBLE")
    other.execute("INSERT INTO other__pyexpd_meta (name, value) VALUES ('keyfield_1', 'k')")
    other.execute("INSERT INTO other (x, k, y, status) VALUES (1, 0.5, 2.0, 'done'), (1, 0.7, 3.0, 'done')")
    (row,) = ask(bench, "results_where", table="other", keyfields={"k": 0.5}, after=0)
    assert (row["k"], row["y"]) == (0.5, 2.0)


async def test_results_of_another_table(make_bench: Callable[..., Bench]) -> None:
    other = make_bench(keyfields=KEYS, table="pretraining", result_timestamps=True)
    (claim, *_) = other.claim(other.register())
    other.end(other.register(), claim, results={"y": 4.0})
    bench = make_bench()
    assert ask(bench, "results_of", experiment_id=1, table="pretraining") == {"y": 4.0, "note": None}
    (row,) = ask(bench, "results_where", table="pretraining", keyfields={"options": {"a": 1}}, after=0)
    told = json.loads(row["options"]) if isinstance(row["options"], str) else row["options"]  # MariaDB's JSON is text
    assert {**row, "options": told} == {"ID": 1, **claim.keyfields, "y": 4.0, "note": None}
    for name in ("nowhere", "exp__pyexpd_attempts", "`exp`"):
        with pytest.raises(exceptions.SelectorError, match="no experiment table"):
            ask(bench, "results_of", experiment_id=1, table=name)


async def test_no_other_questions_are_answered(bench: Bench) -> None:
    with pytest.raises(exceptions.UsageError, match="'passwords' is no question"):
        ask(bench, "passwords")
    with pytest.raises(exceptions.UsageError, match="no question"):
        ask(bench, "results_of", sql="1")
