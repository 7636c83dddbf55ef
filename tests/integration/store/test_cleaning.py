"""What `clean` deletes of the tables, and above all what it leaves; and the figures that go on counting it."""

from __future__ import annotations

import time

import pytest

from pyexp_daemon.model import Incarnation, Outcome, make_token
from pyexp_daemon.store import cleaning, commands, daemons, figures, occasions
from tests.bench import Bench

DAY = 86400.0


def attempt(bench: Bench, me: Incarnation, outcome: Outcome, *, days: float) -> int:
    """The next experiment in order gets an attempt that ended so many days ago; its ID."""
    (claim,) = bench.claim(me)
    ended = time.time() - days * DAY
    bench.end(me, claim, outcome, started=ended - 1, ended=ended)
    bench.execute("UPDATE exp SET status = 'created', pyexpd_not_before = NULL WHERE status = 'waiting'")
    return claim.experiment_id


def ask(bench: Bench, *asked: Incarnation) -> str:
    token, uuids = make_token(), [me.uuid for me in asked]
    bench.run(commands.ask(bench.table, incarnations=uuids, command="pause", asked_by="me", token=token))
    return token


def clean(bench: Bench, *, days: float) -> int:
    deleted = 0
    after: int | None = 0
    while after is not None:
        count, after = bench.run(cleaning.delete_attempts(bench.table, older_s=days * DAY, after=after))
        deleted += count
    return deleted


@pytest.fixture
def used(bench: Bench) -> Bench:
    """Long ago 1 failed, was superseded and is done; 2 and 3 failed then, and 2 is done now."""
    me = bench.register()
    attempt(bench, me, Outcome.CRASH, days=50)
    attempt(bench, me, Outcome.DONE, days=49)
    bench.execute(
        "INSERT INTO exp__pyexpd_attempts (experiment_id, attempt, token, ended, outcome)"
        f" SELECT 1, 1, '{'a' * 32}', ended, 'superseded' FROM exp__pyexpd_attempts WHERE outcome = 'crash'"
    )
    attempt(bench, me, Outcome.CRASH, days=48)
    attempt(bench, me, Outcome.DONE, days=1)
    attempt(bench, me, Outcome.CRASH, days=47)
    return bench


async def test_attempts_of_done_experiments_go_and_the_receipt_stays(used: Bench) -> None:
    assert used.run(cleaning.count(used.table, older_s=30 * DAY)) == {
        "attempts": 3,
        "daemons": 0,
        "commands": 0,
        "snapshots": 0,
        "snapshot_parts": 0,
    }
    assert clean(used, days=30) == 3
    assert used.receipts() == [(1, 2, "done"), (2, 2, "done"), (3, 1, "crash")]
    assert clean(used, days=0) == 0


async def test_a_result_that_was_reset_has_a_receipt_like_any_other(used: Bench) -> None:
    """After a reset and another run the old `done` is history."""
    me = used.register()
    used.execute("UPDATE exp SET status = 'created', pyexpd_attempt = pyexpd_attempt + 1 WHERE ID = 1")
    assert clean(used, days=30) == 1  # of experiment 2; experiment 1 is not done
    assert attempt(used, me, Outcome.DONE, days=0) == 1
    assert clean(used, days=30) == 3
    assert used.receipts() == [(1, 4, "done"), (2, 2, "done"), (3, 1, "crash")]


async def test_no_counter_runs_backwards(used: Bench) -> None:
    before = used.run(figures.count_attempts(used.table))
    assert before == {"crash": 3, "done": 2, "superseded": 1}
    clean(used, days=30)
    assert used.run(figures.count_attempts(used.table)) == before
    used.execute("UPDATE exp SET status = 'done', pyexpd_attempt = 9 WHERE ID = 3")
    clean(used, days=30)
    assert used.run(figures.count_attempts(used.table)) == before


async def test_chunks_take_everything(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """More attempts of one experiment than a chunk holds, and more experiments."""
    monkeypatch.setattr(cleaning, "CHUNK", 2)
    bench.register()
    for number in range(7):
        bench.execute(
            "INSERT INTO exp__pyexpd_attempts (experiment_id, attempt, token, ended, outcome)"
            f" SELECT {1 + number % 2}, {number}, '{number:032d}', beat_at, 'crash' FROM exp__pyexpd_daemons"
        )
    bench.execute("UPDATE exp SET status = 'done', pyexpd_attempt = 99")
    assert clean(bench, days=-1) == 7
    assert bench.receipts() == []


async def test_daemons_that_ended_go_unless_something_runs_under_them(bench: Bench) -> None:
    live, stopped, holder = bench.register("live"), bench.register("stopped"), bench.register("holder")
    ask(bench, live, stopped)
    bench.claim(holder)
    bench.run(daemons.change_state(bench.table, me=stopped, state="stopped"))
    bench.kill_daemon(holder)
    assert bench.run(cleaning.delete_daemons(bench.table, older_s=DAY)) == 0
    assert bench.run(cleaning.count(bench.table, older_s=-DAY)) == {
        "attempts": 0,
        "daemons": 1,
        "commands": 0,
        "snapshots": 0,
        "snapshot_parts": 0,
    }
    assert bench.run(cleaning.delete_daemons(bench.table, older_s=-DAY)) == 1
    assert bench.query("SELECT name FROM exp__pyexpd_daemons ORDER BY id") == [("live",), ("holder",)]
    assert bench.query("SELECT incarnation FROM exp__pyexpd_commands") == [(live.uuid,)]


async def test_commands_go_when_they_were_answered(bench: Bench) -> None:
    me = bench.register()
    first = ask(bench, me)
    ask(bench, me)
    bench.run(commands.answer(bench.table, token=first, incarnations=[me.uuid], text="paused"))
    assert bench.run(cleaning.delete_commands(bench.table, older_s=DAY)) == 0
    assert bench.run(cleaning.delete_commands(bench.table, older_s=-DAY)) == 1
    assert bench.query("SELECT id FROM exp__pyexpd_commands") == [(2,)]


async def test_the_oldest_running_experiment(bench: Bench) -> None:
    assert bench.run(figures.oldest_running(bench.table)) is None
    bench.claim(bench.register(), 2)
    earlier = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - 3600))
    bench.execute(f"UPDATE exp SET start_date = '{earlier}' WHERE ID = 2")
    assert bench.run(figures.oldest_running(bench.table)) == pytest.approx(3600, abs=20)


async def test_one_daemon_tells_of_the_end_and_of_every_end(bench: Bench) -> None:
    me = bench.register()
    assert bench.run(occasions.all_finished(bench.table)) is None
    for _ in range(5):
        attempt(bench, me, Outcome.DONE, days=0)
    assert bench.run(occasions.all_finished(bench.table)) == {"done": 5}
    assert [bench.run(occasions.be_first(bench.table)) for _ in range(3)] == [True, False, False]
    bench.execute("UPDATE exp SET status = 'created', pyexpd_attempt = pyexpd_attempt + 1 WHERE ID = 1")
    assert bench.run(occasions.all_finished(bench.table)) is None
    attempt(bench, me, Outcome.DONE, days=-1)
    assert bench.run(occasions.be_first(bench.table))
    bench.execute("UPDATE exp SET status = 'waiting' WHERE ID = 1")
    assert bench.run(occasions.all_finished(bench.table)) is None


async def test_only_experiments_without_a_try_left_have_failed_for_good(bench: Bench) -> None:
    bench.execute("UPDATE exp SET status = 'error', pyexpd_attempt = 2 WHERE ID IN (2, 4, 5)")
    bench.execute("UPDATE exp SET status = 'waiting', pyexpd_attempt = 2 WHERE ID = 3")
    asked = {1: 0, 2: 2, 3: 2, 5: 1}  # 5 was tried again elsewhere, where that is told
    assert bench.run(occasions.failed_for_good(bench.table, asked)) == [2]
