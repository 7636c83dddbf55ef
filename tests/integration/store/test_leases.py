"""Claim, write under a claim, give back: one result per experiment, and only from the holder."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from contextlib import closing

import anyio
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import Claim, Incarnation, LogRow, Outcome, Report, RetryPolicy, Verdict, make_token
from pyexp_daemon.store import leases, reports
from tests.bench import POLICY, Bench, ended


async def test_a_claim_takes_the_smallest_order_first_and_marks_the_rows(bench: Bench) -> None:
    bench.execute("UPDATE exp SET pyexpd_order = -5 WHERE ID = 4")
    me = bench.register()

    claims = bench.claim(me, 2, name="node-1", machine="m")

    assert [(c.experiment_id, c.attempt, c.keyfields) for c in claims] == [(4, 1, {"x": 3}), (1, 1, {"x": 0})]
    assert bench.query(
        "SELECT ID, status, name, machine, pyexpd_daemon, pyexpd_token FROM exp WHERE status = 'running' ORDER BY ID"
    ) == [(ID, "running", "node-1", "m", me.id, claims[0].token) for ID in (1, 4)]


async def test_concurrent_claims_never_share_an_experiment(make_bench) -> None:  # type: ignore[no-untyped-def]
    """However many daemons claim at once, each experiment goes to exactly one."""
    bench = make_bench(rows=200)
    mine: dict[int, list[int]] = {}

    async def claim_all(number: int, me: Incarnation) -> None:
        from pyexp_daemon.store import open_store

        store = open_store(bench.config)
        mine[number] = []
        while claims := await store.run(
            leases.claim(bench.table, me=me, token=make_token(), queue="default", limit=7), role="claim"
        ):
            mine[number] += [claim.experiment_id for claim in claims]
        await store.close()

    with anyio.fail_after(90):
        async with anyio.create_task_group() as daemons:
            for number in range(8):
                daemons.start_soon(claim_all, number, bench.register(f"d{number}"))

    assert sorted(itertools.chain(*mine.values())) == list(range(1, 201))
    assert bench.query("SELECT MAX(pyexpd_attempt), MIN(pyexpd_attempt) FROM exp") == [(1, 1)]


async def test_a_fenced_daemon_claims_nothing(bench: Bench) -> None:
    me = bench.register()
    bench.kill_daemon(me)
    with pytest.raises(exceptions.Fenced):
        bench.claim(me)
    assert set(bench.statuses().values()) == {"created"}


async def test_an_empty_queue_gives_no_claim(bench: Bench) -> None:
    me = bench.register()
    assert bench.run(leases.claim(bench.table, me=me, token=make_token(), queue="other", limit=3)) == []
    assert not bench.run(leases.waits(bench.table, queue="other"))
    assert bench.run(leases.waits(bench.table, queue="default"))


async def test_random_claims_take_every_experiment_once(make_bench) -> None:  # type: ignore[no-untyped-def]
    bench = make_bench(rows=40)
    me = bench.register()
    order = [bench.claim(me, 1, at_random=True)[0].experiment_id for _ in range(40)]
    assert sorted(order) == list(range(1, 41))
    assert order != sorted(order)
    assert bench.claim(me, 1, at_random=True) == []


async def test_the_end_writes_results_status_and_receipt_and_frees_the_row(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)

    verdict = bench.end(
        me, claim, results={"y": 0.1, "note": "grün 🌱"}, pid=7, cpu_seconds=0.5, code_version="abc", log_tail="tail"
    )

    assert verdict is Verdict.ACCEPTED
    assert bench.query("SELECT status, y, note, error, pyexpd_daemon, pyexpd_token FROM exp WHERE ID = 1") == [
        ("done", 0.1, "grün 🌱", None, None, None)
    ]
    assert bench.query("SELECT end_date IS NOT NULL FROM exp WHERE ID = 1") == [(1,)]
    assert bench.query(
        "SELECT attempt, daemon, host, pid, outcome, cpu_seconds, code_version, log_tail, result"
        " FROM exp__pyexpd_attempts"
    ) == [(1, me.id, "host", 7, "done", 0.5, "abc", "tail", None)]


async def test_a_group_of_ends_with_different_results_is_one_write(make_bench) -> None:  # type: ignore[no-untyped-def]
    bench = make_bench(rows=100)
    me = bench.register()
    claims = bench.claim(me, 100)
    reports = [
        ended(claim, results={"y": claim.keyfields["x"] / 7, "note": f"n{claim.keyfields['x']}"}) for claim in claims
    ]
    assert set(bench.record(me, *reports)) == {Verdict.ACCEPTED}
    rows = bench.query("SELECT x, y, note, status FROM exp ORDER BY x")
    assert rows == [(x, x / 7, f"n{x}", "done") for x in range(100)]


async def test_values_of_different_types_in_one_group_keep_their_types(bench: Bench) -> None:
    me = bench.register()
    claims = bench.claim(me, 5)
    values = [1, 0.1, None, 2**53 + 1, 1e-300]
    bench.record(me, *(ended(claim, results={"y": value}) for claim, value in zip(claims, values, strict=True)))
    assert [row[0] for row in bench.query("SELECT y FROM exp ORDER BY ID")] == [1.0, 0.1, None, float(2**53), 1e-300]


async def test_a_repeated_end_is_known_and_changes_nothing(bench: Bench) -> None:
    """A COMMIT whose reply was lost: the same unit again finds its own receipt."""
    me = bench.register()
    (claim,) = bench.claim(me)
    assert bench.end(me, claim, results={"y": 1.0}) is Verdict.ACCEPTED
    assert bench.end(me, claim, results={"y": 2.0}) is Verdict.KNOWN
    assert bench.query("SELECT y FROM exp WHERE ID = 1") == [(1.0,)]
    assert bench.receipts() == [(1, 1, "done")]


async def test_a_late_end_is_superseded_and_keeps_its_result_beside(bench: Bench) -> None:
    old, new = bench.register("old"), bench.register("new")
    (claim,) = bench.claim(old)
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 1")
    (taken,) = bench.claim(new)
    assert bench.end(old, claim, results={"y": 6.0}) is Verdict.SUPERSEDED
    assert bench.end(new, taken, results={"y": 7.0}) is Verdict.ACCEPTED
    assert bench.query("SELECT status, y FROM exp WHERE ID = 1") == [("done", 7.0)]
    assert bench.receipts() == [(1, 1, "superseded"), (1, 2, "done")]
    ((result,),) = bench.query("SELECT result FROM exp__pyexpd_attempts WHERE outcome = 'superseded'")
    assert json.loads(result) == {"y": 6.0}


async def test_a_claim_by_pyexperimenter_after_a_hand_edit_fences_the_old_owner(bench: Bench) -> None:
    """It leaves our token in the row; the start date gives it away."""
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 1")
    bench.execute("UPDATE exp SET status = 'running', start_date = '2031-01-01 00:00:00' WHERE ID = 1")
    assert bench.end(me, claim, results={"y": 1.0}) is Verdict.SUPERSEDED
    assert bench.query("SELECT status, y FROM exp WHERE ID = 1") == [("running", None)]


async def test_a_superseded_end_takes_its_token_out_of_a_row_edited_by_hand(bench: Bench) -> None:
    """Else what PyExperimenter runs there next would look like ours, and the audit would hand it back."""
    me = bench.register()
    first, second = bench.claim(me, 2)
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 1")
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 2")
    bench.execute("UPDATE exp SET status = 'running', start_date = '2031-01-01 00:00:00' WHERE ID = 2")
    assert bench.record(me, ended(first), ended(second)) == [Verdict.SUPERSEDED, Verdict.SUPERSEDED]
    assert bench.query("SELECT status, pyexpd_token, pyexpd_daemon FROM exp WHERE ID < 3 ORDER BY ID") == [
        ("created", None, None),
        ("running", None, None),
    ]


async def test_nothing_stale_survives_a_hand_edit_and_a_claim(bench: Bench) -> None:
    me = bench.register()
    bench.claim(me)
    bench.execute("UPDATE exp SET status = 'created', pyexpd_cancel = 1, error = 'old' WHERE ID = 1")
    (claim,) = bench.claim(me)
    assert bench.query("SELECT pyexpd_token, pyexpd_cancel, error FROM exp WHERE ID = 1") == [(claim.token, 0, None)]


async def test_results_and_logs_while_it_runs_need_the_claim(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 2")
    rows = (LogRow(logtable="epochs", seq=1, time=0.0, columns={"loss": 0.5, "word": "a"}),)
    verdicts = bench.record(
        me, Report(claim=first, results={"y": 3.0}, logs=rows), Report(claim=second, results={"y": 4.0}, logs=rows)
    )
    assert verdicts == [Verdict.ACCEPTED, Verdict.SUPERSEDED]
    assert bench.query("SELECT ID, status, y FROM exp WHERE ID < 3 ORDER BY ID") == [
        (1, "running", 3.0),
        (2, "created", None),
    ]
    assert bench.query("SELECT experiment_id, loss, word, pyexpd_attempt FROM exp__epochs") == [(1, 0.5, "a", 1)]


async def test_results_alone_are_one_statement_that_needs_the_claim(make_bench) -> None:  # type: ignore[no-untyped-def]
    """Of one experiment or of several, with values of the same types or not; then each part of a claim is missed."""
    bench = make_bench(rows=8)
    me = bench.register()
    claims = [*bench.claim(me, 5), *bench.claim(me, 3)]
    given = [Report(claim=claim, results={"y": claim.experiment_id / 2}) for claim in claims]
    mixed = [Report(claim=claims[0], results={"y": 7}), Report(claim=claims[1], results={"y": None, "note": "both"})]
    for group in (given[:1], given[2:], mixed, mixed):  # the same again changes nothing, and is no loss
        assert reports.are_results(group)
        assert bench.run(reports.store_results(bench.table, group)) is True
    stored = [(1, 7.0, None), (2, None, "both"), *((number, number / 2, None) for number in range(3, 9))]
    assert bench.query("SELECT ID, y, note FROM exp ORDER BY ID") == stored

    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 2")
    bench.execute("UPDATE exp SET start_date = '2031-01-01 00:00:00' WHERE ID = 4")
    bench.execute(f"UPDATE exp SET pyexpd_token = '{claims[0].token}' WHERE ID = 6")  # that of others in the group
    again = [Report(claim=claim, results={"y": -1.0}) for claim in claims]
    assert bench.run(reports.store_results(bench.table, again)) is False
    kept = {2: None, 4: 2.0, 6: 3.0}
    assert bench.query("SELECT ID, y FROM exp ORDER BY ID") == [
        (number, kept.get(number, -1.0)) for number in range(1, 9)
    ]
    verdicts = bench.record(me, *again)
    assert [number for number, verdict in enumerate(verdicts, 1) if verdict is not Verdict.ACCEPTED] == [2, 4, 6]


async def test_a_repeated_write_stores_each_log_row_once(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    rows = tuple(LogRow(logtable="epochs", seq=n, time=0.0, columns={"loss": float(n)}) for n in (1, 2, 3))
    bench.record(me, Report(claim=claim, logs=rows[:2]))
    bench.record(me, Report(claim=claim, logs=rows), repeated=True)
    assert bench.query("SELECT loss FROM exp__epochs ORDER BY ID") == [(1.0,), (2.0,), (3.0,)]


@pytest.mark.parametrize(
    ("outcome", "times", "statuses"),
    [
        (Outcome.ERROR, 1, ["error"]),
        (Outcome.TIMEOUT, 1, ["error"]),
        (Outcome.STALLED, 2, ["waiting", "error"]),
        (Outcome.CRASH, 3, ["waiting", "waiting", "error"]),
        (Outcome.RELEASED, 2, ["created", "created"]),
        (Outcome.PAUSED, 1, ["paused"]),
        (Outcome.CANCELLED, 1, ["cancelled"]),
    ],
)
async def test_each_outcome_uses_its_own_budget(
    bench: Bench, outcome: Outcome, times: int, statuses: list[str]
) -> None:
    me = bench.register()
    seen = []
    for _ in range(times):
        bench.execute("UPDATE exp SET status = 'created', pyexpd_not_before = NULL WHERE ID = 1")
        (claim,) = bench.claim(me)
        bench.end(me, claim, outcome, error="why")
        seen.append(bench.statuses()[1])
    assert seen == statuses
    ((tries,),) = bench.query("SELECT pyexpd_tries FROM exp WHERE ID = 1")
    charged = outcome in (Outcome.ERROR, Outcome.TIMEOUT, Outcome.STALLED, Outcome.CRASH)
    assert (json.loads(tries) if tries else None) == ({outcome.value: times} if charged else None)
    assert len(bench.receipts()) == times


async def test_a_retry_waits_for_its_backoff_and_is_promoted_when_due(bench: Bench) -> None:
    from pyexp_daemon.store import daemons

    me = bench.register()
    (claim,) = bench.claim(me)
    policy = RetryPolicy(tries={"error": 2}, first_s=100.0, longest_s=3600.0)
    bench.record(me, ended(claim, Outcome.ERROR, error="e"), policy=policy)
    assert bench.statuses()[1] == "waiting"
    assert bench.run(daemons.promote(bench.table)) == 0
    back = "pyexpd_not_before - INTERVAL 101 SECOND" if bench.database.server else "pyexpd_not_before - 101"
    bench.execute(f"UPDATE exp SET pyexpd_not_before = {back} WHERE ID = 1")
    assert bench.run(daemons.promote(bench.table)) == 1
    assert bench.query("SELECT status, pyexpd_not_before, error FROM exp WHERE ID = 1") == [("created", None, "e")]


async def test_a_claim_that_never_started_goes_back_without_a_trace(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.record(me, ended(claim, Outcome.RELEASED, started=None, ended=None))
    assert bench.query("SELECT status, pyexpd_token, start_date, pyexpd_tries FROM exp WHERE ID = 1") == [
        ("created", None, None, None)
    ]
    assert bench.receipts() == []


async def test_a_cancel_flag_wins_over_everything_but_done(bench: Bench) -> None:
    me = bench.register()
    claims = bench.claim(me, 4)
    bench.execute("UPDATE exp SET pyexpd_cancel = 1 WHERE ID < 5")
    outcomes = [Outcome.DONE, Outcome.ERROR, Outcome.RELEASED, Outcome.CRASH]
    bench.record(me, *(ended(claim, outcome) for claim, outcome in zip(claims, outcomes, strict=True)))
    assert [bench.statuses()[ID] for ID in (1, 2, 3, 4)] == ["done", "cancelled", "cancelled", "cancelled"]
    assert bench.query("SELECT MAX(pyexpd_cancel) FROM exp") == [(0,)]


async def test_values_that_are_no_numbers_become_null_with_a_warning(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, results={"y": math.nan})
    assert bench.query("SELECT status, y FROM exp WHERE ID = 1") == [("done", None)]
    ((warning,),) = bench.query("SELECT error FROM exp__pyexpd_attempts")
    assert "y" in warning
    assert "NULL" in warning


async def test_one_bad_value_refuses_the_whole_unit_and_changes_nothing(bench: Bench) -> None:
    """The completer halves the group; the store only says that a row of it is bad."""
    bad = "x" * 300 if bench.database.server else 2**70
    me = bench.register()
    first, second = bench.claim(me, 2)
    with pytest.raises(exceptions.RowRefused):
        bench.record(me, ended(first, results={"note": "fine"}), ended(second, results={"note": bad}))
    assert bench.statuses()[1] == "running"
    assert bench.receipts() == []
    assert bench.end(me, first, results={"note": "fine"}) is Verdict.ACCEPTED


async def test_a_lost_claim_is_read_back_by_its_token(bench: Bench) -> None:
    me = bench.register()
    claims = bench.claim(me, 3)
    started = claims[0].start_date
    assert bench.run(leases.read_back(bench.table, me=me, token=claims[0].token, started=started)) == claims
    assert bench.run(leases.read_back(bench.table, me=me, token=make_token(), started=started)) == []


async def test_what_pyexperimenter_claimed_after_a_hand_edit_is_not_read_back(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    bench.execute(f"UPDATE exp SET status = 'created' WHERE ID = {first.experiment_id}")
    bench.execute(
        f"UPDATE exp SET status = 'running', start_date = '2031-01-01 00:00:00' WHERE ID = {first.experiment_id}"
    )
    unit = leases.read_back(bench.table, me=me, token=first.token, started=first.start_date)
    assert bench.run(unit) == [second]


async def test_rows_under_unknown_tokens_are_handed_back_uncharged(bench: Bench) -> None:
    me = bench.register()
    claims = bench.claim(me, 3)
    held = [(claim.experiment_id, claim.token) for claim in claims[:2]]
    assert bench.run(leases.release_unknown(bench.table, me=me, held=[*held, (3, make_token())])) == 2
    assert [bench.statuses()[ID] for ID in (1, 2, 3)] == ["created", "created", "running"]
    assert bench.query("SELECT pyexpd_tries FROM exp WHERE ID = 1") == [(None,)]


async def test_result_timestamps_are_written_beside_results(make_bench) -> None:  # type: ignore[no-untyped-def]
    bench = make_bench(result_timestamps=True)
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, results={"y": 1.0})
    assert bench.query("SELECT y_timestamp IS NOT NULL, note_timestamp IS NULL FROM exp WHERE ID = 1") == [(1, 1)]


async def test_a_unit_cancelled_from_outside_leaves_no_transaction_behind(bench: Bench) -> None:
    me = bench.register()
    with anyio.move_on_after(0) as scope:
        await bench.store.run(
            leases.claim(bench.table, me=me, token=make_token(), queue="default", limit=2), role="claim"
        )
    assert scope.cancel_called
    # Whether or not the cancelled one took its rows, the next one works at once and gets others.
    claims: list[Claim] = await bench.store.run(
        leases.claim(bench.table, me=me, token=make_token(), queue="default", limit=2), role="claim"
    )
    assert len(claims) == 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("locked_s", [0.5, 6.0])
async def test_a_unit_cancelled_while_it_waits_for_the_lock_leaves_no_transaction_behind(
    bench: Bench, locked_s: float
) -> None:
    """It gets the lock after all and comes to its end, or gives up; in both cases others may write at once."""
    me = bench.register()
    unit = leases.claim(bench.table, me=me, token=make_token(), queue="default", limit=2)

    async def claim() -> None:
        with anyio.move_on_after(0.2):
            await bench.store.run(unit, role="claim")

    with closing(bench.database.connect()) as other:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(claim)
            await anyio.sleep(locked_s)
            other.execute("ROLLBACK")
        other.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    assert sorted(Counter(bench.statuses().values()).items()) == (
        [("created", 3), ("running", 2)] if locked_s < 2 else [("created", 5)]
    )


async def test_async_and_blocking_drivers_run_the_same_units(bench: Bench) -> None:
    me = bench.register()
    (claim,) = await bench.store.run(
        leases.claim(bench.table, me=me, token=make_token(), queue="default", limit=1), role="claim"
    )
    verdicts = await bench.store.run(
        reports.record(bench.table, [ended(claim, results={"y": 2.5})], me=me, host="h", policy=POLICY)
    )
    assert verdicts == [Verdict.ACCEPTED]
    assert bench.query("SELECT y FROM exp WHERE ID = 1") == [(2.5,)]
