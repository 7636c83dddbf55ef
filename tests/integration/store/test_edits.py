"""What people do to experiments, always by what they saw."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import LogRow, Outcome, Report, Verdict
from pyexp_daemon.store import counts, edits, occasions, reads
from pyexp_daemon.store.selection import ALL, Selection, select
from pyexp_daemon.store.unit import Do
from tests.bench import Bench


def see(bench: Bench, **selector: list[str]) -> list[edits.Seen]:
    rows: list[edits.Seen] = bench.run(edits.seen(bench.table, select(bench.table, **selector)))
    return rows


async def test_reset_clears_in_place_and_keeps_the_history(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    log = LogRow(logtable="epochs", seq=1, time=0.0, columns={"loss": 1.0})
    bench.record(me, Report(claim=claim, logs=(log,)))
    bench.end(me, claim, Outcome.ERROR, error="boom", results={"y": 1.0})
    assert bench.run(edits.reset(bench.table, see(bench, statuses=["error"]))) == 1
    assert bench.query(
        "SELECT ID, status, y, error, start_date, end_date, pyexpd_tries, pyexpd_attempt FROM exp WHERE ID = 1"
    ) == [(1, "created", None, None, None, None, None, 2)]
    assert bench.query("SELECT COUNT(*) FROM exp__epochs") == [(0,)]
    assert bench.receipts() == [(1, 1, "error")]


async def test_a_repeated_reset_cannot_wipe_a_new_result(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, Outcome.ERROR, error="boom")
    chosen = see(bench, statuses=["error"])
    bench.run(edits.reset(bench.table, chosen))
    (claim,) = bench.claim(me)
    bench.end(me, claim, results={"y": 2.0})
    assert bench.run(edits.reset(bench.table, chosen)) == 0
    assert bench.query("SELECT status, y FROM exp WHERE ID = 1") == [("done", 2.0)]


async def test_the_result_of_a_run_that_was_reset_is_superseded(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.run(edits.reset(bench.table, see(bench, ids=["1"])))
    assert bench.end(me, claim, results={"y": 1.0}) is Verdict.SUPERSEDED
    assert bench.query("SELECT status, y FROM exp WHERE ID = 1") == [("created", None)]


async def test_cancel_asks_what_runs_and_ends_what_does_not(bench: Bench) -> None:
    me = bench.register()
    claims = bench.claim(me, 2)
    bench.end(me, claims[1])
    assert bench.run(edits.cancel(bench.table, see(bench, ids=["all"]))) == (3, 1)
    assert list(bench.statuses().values()) == ["running", "done", "cancelled", "cancelled", "cancelled"]
    bench.end(me, claims[0], Outcome.CANCELLED)
    assert bench.statuses()[1] == "cancelled"


async def test_cancel_does_not_undo_a_result(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.run(edits.cancel(bench.table, see(bench, ids=["1"])))
    assert bench.end(me, claim, results={"y": 1.0}) is Verdict.ACCEPTED
    assert bench.statuses()[1] == "done"


async def test_delete_takes_logs_and_attempts_along(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    log = LogRow(logtable="epochs", seq=1, time=0.0, columns={"loss": 1.0})
    bench.record(me, Report(claim=claim, logs=(log,)))
    bench.end(me, claim)
    assert bench.run(edits.delete(bench.table, see(bench, ids=["1-2"]))) == 2
    assert list(bench.statuses()) == [3, 4, 5]
    assert bench.query("SELECT COUNT(*) FROM exp__epochs") == [(0,)]
    assert bench.receipts() == []


async def test_set_changes_queue_and_order(bench: Bench) -> None:
    chosen = see(bench, ids=["2,4"])
    assert bench.run(edits.set_scheduling(bench.table, chosen, queue="big", order=-7)) == 2
    assert bench.query("SELECT ID FROM exp WHERE pyexpd_queue = 'big' AND pyexpd_order = -7 ORDER BY ID") == [
        (2,),
        (4,),
    ]
    assert bench.run(edits.set_scheduling(bench.table, chosen, order=-7)) == 2


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({"ids": ["all"]}, [1, 2, 3, 4, 5]),
        ({"ids": ["2-3", "5"]}, [2, 3, 5]),
        ({"statuses": ["done"]}, [1]),
        ({"where": ["x >= 2", "x != 3"]}, [3, 5]),
        ({"where": ["note = 'a b'"]}, [1]),
        ({"where": ["y is null"]}, [2, 3, 4, 5]),
        ({"where": ["Y IS NOT NULL"], "ids": ["all"]}, [1]),
    ],
)
async def test_selectors(bench: Bench, selector: dict[str, list[str]], expected: list[int]) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, results={"y": 1.0, "note": "a b"})
    assert [row.id for row in see(bench, **selector)] == expected


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ({"ids": ["seven"]}, "'seven' is no experiment"),
        ({"ids": ["9-3"]}, "'9-3' runs backwards"),
        ({"statuses": ["dnoe"]}, "there is no status 'dnoe'"),
        ({"where": ["x ~ 3"]}, "is not a condition"),
        ({"where": ["lr < 3"]}, "has no column 'lr'"),
        ({"where": ["x = 1; DROP TABLE exp"]}, "1; DROP TABLE exp is no value"),
        ({"where": ["x = abc"]}, "abc is no number"),  # MySQL would take it for 0
    ],
)
async def test_bad_selectors_are_refused(bench: Bench, selector: dict[str, list[str]], words: str) -> None:
    with pytest.raises(exceptions.SelectorError) as caught:
        see(bench, **selector)
    assert words in str(caught.value)
    assert len(bench.statuses()) == 5


async def test_a_status_in_other_capitals_is_one_of_its_own(bench: Bench) -> None:
    """The collations of MySQL and MariaDB take it for the known one, and would count both under either name."""
    bench.execute("UPDATE exp SET status = 'done' WHERE ID IN (2, 4)")
    bench.execute("UPDATE exp SET status = 'DONE' WHERE ID IN (1, 3)")
    bench.execute("UPDATE exp SET status = NULL WHERE ID = 5")
    counts = {"done": 2, "DONE": 2, "": 1}
    assert bench.run(reads.count_by_status(bench.table)) == counts
    assert bench.run(occasions.all_finished(bench.table)) == counts


async def test_every_status_is_counted_and_everything_that_is_none(bench: Bench) -> None:
    """One of each in a table of five: those that have an index, the rare, and what is put there by hand."""
    for statuses in (
        ("created", "waiting", "running", "done", "error"),
        ("paused", "cancelled", "odd", "created ", ""),
    ):
        for number, status in enumerate(statuses, 1):
            bench.execute(f"UPDATE exp SET status = '{status}' WHERE ID = {number}")
        assert bench.run(reads.count_by_status(bench.table)) == dict.fromkeys(statuses, 1)
    bench.execute("UPDATE exp SET status = NULL WHERE ID = 3")  # it is shown as '' is, which ID 5 has
    assert bench.run(reads.count_by_status(bench.table)) == {"paused": 1, "cancelled": 1, "created ": 1, "": 2}
    bench.execute("DELETE FROM exp")
    assert bench.run(reads.count_by_status(bench.table)) == {}


async def test_counting_reads_indexes_and_sorts_nothing(make_bench: Callable[..., Bench]) -> None:
    """A table of five million experiments is counted while somebody waits for it."""
    bench = make_bench(rows=400)
    bench.execute("UPDATE exp SET status = 'done' WHERE ID <= 300")
    bench.execute("UPDATE exp SET status = 'error' WHERE ID <= 5")
    bench.execute("ANALYZE TABLE exp" if bench.database.server else "ANALYZE")
    asked = next(counts.count(bench.table))
    assert isinstance(asked, Do)
    if bench.database.server is None:
        plan = [str(row[-1]) for row in bench.query(f"EXPLAIN QUERY PLAN {asked.sql}", *asked.values)]
        used = [line.rpartition("INDEX ")[2].split()[0] for line in plan if "INDEX" in line]
        assert used == [f"exp__pyexpd_{name}" for name in ("claim", "waiting", "owner", "rare")]
        assert not any("TEMP B-TREE" in line for line in plan)
    else:
        (row,) = bench.query(f"EXPLAIN FORMAT=TRADITIONAL {asked.sql}", *asked.values)
        assert "Using index" in row[-1]
        assert "filesort" not in row[-1]


async def test_code_versions_are_those_of_the_last_results(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    me = bench.register()
    for number, claim in enumerate(bench.claim(me, 5)):
        bench.end(me, claim, ended=1000.0 + number, code_version=f"v{number // 3}")
    assert bench.run(reads.code_versions(bench.table)) == {"v0": 3, "v1": 2}
    monkeypatch.setattr(reads, "MOST_RESULTS", 3)
    assert bench.run(reads.code_versions(bench.table)) == {"v0": 1, "v1": 2}


async def test_reads_count_list_and_show(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, results={"y": 1.5}, code_version="v1")
    bench.execute("UPDATE exp SET status = 'odd' WHERE ID = 5")
    assert bench.run(reads.count_by_status(bench.table)) == {"created": 3, "done": 1, "odd": 1}
    assert bench.run(reads.count_unfinished(bench.table, queues=["default"])) == 3
    rows = bench.run(reads.experiments(bench.table, Selection("ID < ?", (3,)), limit=10))
    assert [(row["ID"], row["x"], row["y"], row["status"]) for row in rows] == [
        (1, 0, 1.5, "done"),
        (2, 1, None, "created"),
    ]
    assert [row["ID"] for row in bench.run(reads.experiments(bench.table, ALL, after=2, limit=2))] == [3, 4]
    (attempt,) = bench.run(reads.attempts(bench.table, 1))
    assert (attempt["outcome"], attempt["started"], attempt["ended"]) == ("done", 1000.0, 1001.5)
    assert bench.run(reads.code_versions(bench.table)) == {"v1": 1}
    assert bench.run(reads.finished_since(bench.table, 60)) == 0


async def test_rows_under_a_dead_looking_daemon_are_unfinished(bench: Bench) -> None:
    me = bench.register(lease_s=60)
    bench.claim(me, 5)
    assert bench.run(reads.count_unfinished(bench.table, queues=["default"])) == 0
    bench.kill_daemon(me)
    assert bench.run(reads.count_unfinished(bench.table, queues=["default"])) == 5
