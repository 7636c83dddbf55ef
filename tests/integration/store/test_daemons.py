"""Daemon rows: beats, verdicts, and what becomes of the experiments of the dead."""

from __future__ import annotations

import json
from collections.abc import Callable

from pyexp_daemon.model import Outcome, RetryPolicy, Verdict, make_token
from pyexp_daemon.store import daemons, leases
from tests.bench import POLICY, Bench


async def test_a_beat_renews_the_lease_and_reads_every_row_held(bench: Bench) -> None:
    me, other = bench.register("a"), bench.register("b")
    mine = bench.claim(me, 2)
    bench.claim(other, 1)
    bench.execute("UPDATE exp SET pyexpd_cancel = 1 WHERE ID = 2")
    beat = bench.run(daemons.beat(bench.table, me=me, lease_s=60))
    assert beat.alive
    assert sorted(beat.rows) == [(1, mine[0].token, False), (2, mine[0].token, True)]
    assert [row.beat for row in bench.run(daemons.look(bench.table))] == [1, 0]


async def test_a_beat_of_another_incarnation_with_the_same_number_renews_nothing(bench: Bench) -> None:
    """Numbers come back after a restore; the random identity does not."""
    from dataclasses import replace

    me = bench.register()
    stranger = replace(me, uuid=make_token())
    assert not bench.run(daemons.beat(bench.table, me=stranger, lease_s=60)).alive
    assert bench.run(daemons.beat(bench.table, me=me, lease_s=60)).alive


async def test_a_verdict_fails_when_the_daemon_has_beaten_since(bench: Bench) -> None:
    me = bench.register()
    (seen,) = bench.run(daemons.look(bench.table))
    bench.run(daemons.beat(bench.table, me=me, lease_s=60))
    assert not bench.run(daemons.declare_dead(bench.table, seen))
    (seen,) = bench.run(daemons.look(bench.table))
    assert bench.run(daemons.declare_dead(bench.table, seen))
    assert not bench.run(daemons.beat(bench.table, me=me, lease_s=60)).alive


async def test_the_rows_of_the_dead_are_requeued_once_and_charged_as_lost(bench: Bench) -> None:
    me, other = bench.register(), bench.register()
    bench.claim(me, 2)
    bench.claim(other, 1)
    assert bench.run(daemons.abandoned(bench.table)) == []
    bench.kill_daemon(me)
    assert bench.run(daemons.abandoned(bench.table)) == [me.id]
    assert bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY)) == [1, 2]
    assert bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY)) == []
    assert list(bench.statuses().values()) == ["created", "created", "running", "created", "created"]
    assert bench.receipts() == [(1, 1, "lost"), (2, 1, "lost")]
    ((tries, token),) = bench.query("SELECT pyexpd_tries, pyexpd_token FROM exp WHERE ID = 1")
    assert (json.loads(tries), token) == ({"lost": 1}, None)


async def test_the_living_are_never_swept(bench: Bench) -> None:
    me = bench.register()
    bench.claim(me, 2)
    assert bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY)) == []


async def test_an_owner_without_a_row_is_dead(bench: Bench) -> None:
    me = bench.register()
    bench.claim(me, 1)
    bench.execute("DELETE FROM exp__pyexpd_daemons")
    assert bench.run(daemons.abandoned(bench.table)) == [me.id]
    assert bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY)) == [1]


async def test_running_rows_without_a_token_are_left_alone(bench: Bench) -> None:
    """PyExperimenter's, or a person's."""
    bench.execute("UPDATE exp SET status = 'running' WHERE ID = 1")
    assert bench.run(daemons.abandoned(bench.table)) == []
    assert bench.statuses()[1] == "running"


async def test_too_many_losses_are_an_error_and_a_cancelled_one_is_cancelled(bench: Bench) -> None:
    me = bench.register()
    bench.claim(me, 2)
    bench.execute("UPDATE exp SET pyexpd_cancel = 1 WHERE ID = 2")
    bench.kill_daemon(me)
    once = RetryPolicy(tries={"lost": 1}, first_s=1, longest_s=1)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=once))
    assert bench.query("SELECT status, error FROM exp WHERE ID = 1") == [
        ("error", "its daemon died 1 times while it ran")
    ]
    assert bench.statuses()[2] == "cancelled"


async def test_a_sweep_takes_a_large_backlog_in_portions(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(rows=450)
    me = bench.register()
    bench.claim(me, 450)
    bench.kill_daemon(me)
    portions = []
    while rows := bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY)):
        portions.append(len(rows))
    assert portions == [200, 200, 50]


async def test_what_nobody_took_is_taken_back_uncharged(bench: Bench) -> None:
    """A cut network must not cost a week of computing."""
    me = bench.register()
    one, two, three, four = bench.claim(me, 4)
    bench.end(me, four)
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    thief = bench.register("thief")
    (stolen,) = bench.claim(thief, 1)
    again, token = bench.register("again"), make_token()

    back = bench.run(leases.take_back(bench.table, [one, two, three, four], me=again, token=token))

    assert stolen.experiment_id == 1
    assert [(claim.experiment_id, claim.attempt, claim.token) for claim in back] == [(2, 1, token), (3, 1, token)]
    assert bench.query("SELECT pyexpd_tries, pyexpd_daemon FROM exp WHERE ID = 2") == [(None, again.id)]
    assert bench.receipts() == [(1, 1, "lost"), (4, 1, "done")]
    assert bench.end(again, back[0], results={"y": 1.0}) is Verdict.ACCEPTED
    assert bench.end(again, one) is Verdict.SUPERSEDED


async def test_rows_not_requeued_yet_are_taken_back_too(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.kill_daemon(me)
    again = bench.register("again")
    (back,) = bench.run(leases.take_back(bench.table, [claim], me=again, token=make_token()))
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    assert bench.end(again, back) is Verdict.ACCEPTED


async def test_what_pyexperimenter_claimed_after_a_hand_edit_is_not_taken_back(bench: Bench) -> None:
    """It leaves our token in the row, and writes another start date."""
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 1")
    bench.execute("UPDATE exp SET status = 'running', start_date = '2031-01-01 00:00:00' WHERE ID = 1")
    bench.kill_daemon(me)
    assert bench.run(leases.take_back(bench.table, [claim], me=bench.register("again"), token=make_token())) == []
    assert bench.query("SELECT pyexpd_token, pyexpd_daemon FROM exp WHERE ID = 1") == [(claim.token, me.id)]


async def test_what_is_requeued_before_the_reply_came_is_taken_back_again(bench: Bench) -> None:
    """The network breaks amid coming back, for so long that the next incarnation is declared dead as well."""
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    again, token = bench.register("again"), make_token()
    bench.run(leases.take_back(bench.table, [claim], me=again, token=token))  # its reply is lost
    bench.kill_daemon(again)
    bench.run(daemons.sweep(bench.table, owner=again.id, policy=POLICY))

    (back,) = bench.run(leases.take_back(bench.table, [claim], me=again, token=token))

    assert bench.query("SELECT status, pyexpd_token, pyexpd_tries FROM exp WHERE ID = 1") == [("running", token, None)]
    assert bench.receipts() == []
    assert bench.end(again, back) is Verdict.ACCEPTED


async def test_a_reset_row_is_not_taken_back(bench: Bench) -> None:
    from pyexp_daemon.store import edits

    me = bench.register()
    (claim,) = bench.claim(me)
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    bench.run(edits.reset(bench.table, [edits.Seen(1, "created", 1)]))
    assert bench.run(leases.take_back(bench.table, [claim], me=bench.register("again"), token=make_token())) == []


async def test_the_end_of_a_requeued_row_that_nobody_took_is_accepted(bench: Bench) -> None:
    """A result that exists is not computed again; the loss that was none is not charged."""
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    assert bench.end(me, claim, results={"y": 5.0}) is Verdict.ACCEPTED
    assert bench.query("SELECT status, y, pyexpd_tries FROM exp WHERE ID = 1") == [("done", 5.0, None)]
    assert bench.receipts() == [(1, 1, "done")]


async def test_what_was_requeued_and_had_not_begun_was_no_loss(bench: Bench) -> None:
    """Handed back by its daemon after all: neither charged as lost nor, if it is said twice, uncharged twice."""
    me = bench.register()
    (lost,) = bench.claim(me)
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    again = bench.register("again")
    (claim,) = bench.claim(again)
    bench.kill_daemon(again)
    bench.run(daemons.sweep(bench.table, owner=again.id, policy=POLICY))
    for verdict in (Verdict.ACCEPTED, Verdict.SUPERSEDED):
        assert bench.end(again, claim, Outcome.RELEASED, started=None) is verdict
        assert bench.query("SELECT status, pyexpd_tries FROM exp WHERE ID = 1") == [("created", '{"lost": 1}')]
        assert bench.receipts() == [(1, lost.attempt, "lost")]


async def test_a_late_end_after_another_claim_replaces_only_the_lost_receipt(bench: Bench) -> None:
    me, other = bench.register(), bench.register()
    (claim,) = bench.claim(me)
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    (taken,) = bench.claim(other)
    assert bench.end(me, claim, results={"y": 5.0}) is Verdict.SUPERSEDED
    assert bench.end(other, taken, Outcome.DONE, results={"y": 6.0}) is Verdict.ACCEPTED
    assert bench.end(me, claim, results={"y": 5.0}) is Verdict.SUPERSEDED
    assert bench.receipts() == [(1, 1, "superseded"), (1, 2, "done")]
    assert bench.query("SELECT y FROM exp WHERE ID = 1") == [(6.0,)]


async def test_a_receipt_is_not_overwritten_by_a_sweep(bench: Bench) -> None:
    """Somebody sets the row to `done` while it runs, and back to `running` after its end was superseded."""
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.execute("UPDATE exp SET status = 'done' WHERE ID = 1")
    assert bench.end(me, claim) is Verdict.SUPERSEDED
    bench.execute("UPDATE exp SET status = 'running' WHERE ID = 1")
    bench.kill_daemon(me)
    assert bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY)) == [1]
    assert bench.receipts() == [(1, 1, "superseded")]


async def test_stopping_is_said_once_and_not_by_the_dead(bench: Bench) -> None:
    me = bench.register()
    assert bench.run(daemons.change_state(bench.table, me=me, state="draining"))
    assert bench.run(daemons.beat(bench.table, me=me, lease_s=60)).alive
    assert bench.run(daemons.change_state(bench.table, me=me, state="stopped"))
    assert not bench.run(daemons.change_state(bench.table, me=me, state="draining"))
    assert [row.state for row in bench.run(daemons.look(bench.table, states=("stopped",)))] == ["stopped"]
