"""Declared dead and alive after all: nothing is lost, doubled or left running, whatever happens at the same moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.daemon import writer
from pyexp_daemon.daemon.claimer import Claimer, Prefetch
from pyexp_daemon.daemon.completer import Completer
from pyexp_daemon.daemon.hosts import alive_here
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.membership import Membership, Reactions
from pyexp_daemon.daemon.spool import Spool
from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, Verdict
from pyexp_daemon.store import daemons
from pyexp_daemon.store.unit import Unit
from tests.bench import POLICY, Bench


@dataclass
class Parts:
    """A daemon without a pool: what is claimed stays until a test ends it."""

    bench: Bench
    link: Link = field(init=False)
    ledger: Ledger = field(default_factory=Ledger)
    lost: list[Claim] = field(default_factory=list)
    forgotten: list[Claim] = field(default_factory=list)
    ended: list[tuple[int, Verdict]] = field(default_factory=list)
    owned: set[tuple[int, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.link = Link(self.bench.store)
        self.membership = Membership(
            self.bench.config,
            self.bench.table,
            self.link,
            self.ledger,
            name="d",
            slots=1,
            credentials=None,
            reactions=Reactions(
                registered=self._registered,
                rebound=self._rebound,
                lost=self.lost.append,
                cancelled=lambda claim: None,
                forgotten=self.forgotten.extend,
                owned=lambda: self.owned,
                unknown=self._unknown,
                told=lambda heard: None,
            ),
        )
        self.completer = Completer(
            self.link,
            self.bench.table,
            self.ledger,
            POLICY,
            spool=Spool(self.bench.config.state / "spool"),
            host="h",
            busy=lambda: False,
            ended=lambda attempt, verdict: self.ended.append((attempt.claim.experiment_id, verdict)),
            lost=self.lost.append,
            fenced=self.membership.fenced,
            writing=self.membership.writing,
        )
        self.claimer = self._claimer(("default",))

    def _claimer(self, queues: tuple[str, ...]) -> Claimer:
        return Claimer(self.link, self.bench.table, self.ledger, Prefetch(1), queues=queues, name="d", machine="m")

    def use_queues(self, *queues: str) -> None:
        self.claimer = self._claimer(queues)
        self.claimer.me = self.membership.me

    def _registered(self, me: Incarnation) -> None:
        self.claimer.me = self.completer.me = me

    async def _unknown(self, held: Sequence[tuple[int, str]]) -> Sequence[tuple[int, str]]:
        return held

    def _rebound(self, old: Claim, new: Claim) -> None:
        self.completer.rebind(old, new)

    def declare_dead(self, *, requeue: bool = True) -> None:
        me = self.membership.current
        self.bench.kill_daemon(me)
        if requeue:
            self.bench.run(daemons.sweep(self.bench.table, owner=me.id, policy=POLICY))


@asynccontextmanager
async def daemon(bench: Bench) -> AsyncIterator[Parts]:
    parts = Parts(bench)
    with anyio.fail_after(90):
        await parts.membership.register()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(parts.completer.run)
            yield parts
            tasks.cancel_scope.cancel()
        await parts.membership.leave()


def end(claim: Claim, y: float = 1.0) -> Attempt:
    return Attempt(claim=claim, outcome=Outcome.DONE, started=1.0, ended=2.0, results={"y": y})


async def test_an_end_that_arrives_while_coming_back_is_stored(bench: Bench) -> None:
    async with daemon(bench) as parts:
        (claim,) = await parts.claimer.claim(1)
        parts.declare_dead()
        former = parts.membership.current
        async with anyio.create_task_group() as both:
            both.start_soon(parts.membership.fenced, former)
            both.start_soon(parts.completer.finished, end(claim))
        await parts.completer.flush()
        assert parts.ended == [(1, Verdict.ACCEPTED)]
        assert parts.ledger.claims() == []
    assert bench.query("SELECT status, y, pyexpd_tries FROM exp WHERE ID = 1") == [("done", 1.0, None)]


async def test_results_that_arrive_while_coming_back_do_not_kill_their_run(bench: Bench) -> None:
    async with daemon(bench) as parts:
        (claim,) = await parts.claimer.claim(1)
        parts.declare_dead()
        former = parts.membership.current
        async with anyio.create_task_group() as both:
            both.start_soon(parts.membership.fenced, former)
            both.start_soon(parts.completer.results, claim, {"y": 3.0})
        assert parts.lost == []
        (held,) = parts.ledger.claims()
        await parts.completer.finished(end(held))
        await parts.completer.flush()
    assert bench.query("SELECT status, y FROM exp WHERE ID = 1") == [("done", 1.0)]


async def test_two_that_notice_together_register_once(bench: Bench) -> None:
    async with daemon(bench) as parts:
        parts.declare_dead()
        former = parts.membership.current
        async with anyio.create_task_group() as both:
            both.start_soon(parts.membership.fenced, former)
            both.start_soon(parts.membership.fenced, former)
        assert bench.query("SELECT state FROM exp__pyexpd_daemons ORDER BY id") == [("dead",), ("live",)]


async def test_coming_back_is_only_repeated_when_a_reply_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The take-back was committed and its reply lost: the same token again finds its own rows."""
    async with daemon(bench) as parts:
        claims = await parts.claimer.claim(3)
        parts.declare_dead()
        run, lose = parts.link.run, ["register", "take_back"]

        async def losing_replies(unit, **options):  # type: ignore[no-untyped-def]
            answer = await run(unit, **options)
            if unit.name in lose:
                lose.remove(unit.name)
                raise exceptions.ConnectionLost("cut", unknown=True)
            return answer

        monkeypatch.setattr(parts.link, "run", losing_replies)
        assert await parts.membership.fenced(parts.membership.current)
        assert lose == []
        assert parts.lost == []
        assert [claim.experiment_id for claim in parts.ledger.claims()] == [claim.experiment_id for claim in claims]
        me = parts.membership.current
        assert bench.query("SELECT DISTINCT pyexpd_daemon FROM exp WHERE status = 'running'") == [(me.id,)]
        assert bench.query("SELECT COUNT(*) FROM exp__pyexpd_daemons") == [(2,)]


async def test_a_row_set_to_created_by_hand_is_not_taken_back(bench: Bench) -> None:
    async with daemon(bench) as parts:
        (claim,) = await parts.claimer.claim(1)
        parts.declare_dead(requeue=False)
        bench.execute("UPDATE exp SET status = 'created' WHERE ID = 1")
        await parts.membership.fenced(parts.membership.current)
        assert parts.lost == [claim]


async def test_a_claim_is_of_one_queue_and_the_next_one_has_its_turn_after_it(bench: Bench) -> None:
    """What one gave would be known to nobody while another one is asked."""
    bench.execute("UPDATE exp SET pyexpd_queue = 'other' WHERE ID < 3")
    async with daemon(bench) as parts:
        parts.use_queues("default", "other")
        claimed = [[claim.experiment_id for claim in await parts.claimer.claim(9)] for _ in range(3)]
    assert claimed == [[3, 4, 5], [1, 2], []]


async def test_a_claim_whose_reply_was_lost_is_read_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with daemon(bench) as parts:
        run = bench.store.run

        async def lose_the_reply(unit: Unit[Any], **options: Any) -> Any:
            answer = await run(unit, **options)
            if unit.name == "claim":
                raise exceptions.ConnectionLost("its reply was lost", unknown=True)
            return answer

        monkeypatch.setattr(bench.store, "run", lose_the_reply)
        claims = await parts.claimer.claim(2)
        assert [claim.experiment_id for claim in claims] == [1, 2]
        assert parts.ledger.claims() == claims
        assert {token for (token,) in bench.query("SELECT pyexpd_token FROM exp WHERE ID < 3")} == {claims[0].token}


async def test_what_is_held_and_known_to_nobody_is_handed_back_at_the_second_heartbeat(bench: Bench) -> None:
    async with daemon(bench) as parts:
        one, two = await parts.claimer.claim(2)
        parts.owned = {one.key}
        parts.membership._hand_back_forgotten()
        assert parts.forgotten == []
        parts.membership._hand_back_forgotten()
        assert parts.forgotten == [two]


async def test_leaving_hands_back_rows_of_a_claim_that_was_given_up(bench: Bench) -> None:
    async with daemon(bench) as parts:
        bench.claim(parts.membership.current, 2)  # under a token this daemon does not know
    assert set(bench.statuses().values()) == {"created"}
    assert bench.query("SELECT state FROM exp__pyexpd_daemons") == [("stopped",)]


async def test_former_incarnations_of_this_process_are_cleared_away_and_not_killed(bench: Bench) -> None:
    from pyexp_daemon.daemon.rescue import Rescue

    async with daemon(bench) as parts:
        former = parts.membership.current
        parts.membership.me = None
        alive_here.discard(former.uuid)  # as after a registration whose reply was lost
        await parts.membership.register()
        rescue = Rescue(
            parts.link,
            bench.table,
            parts.membership.host,
            POLICY,
            blind_until=lambda: 0.0,
            is_own=parts.membership.is_own,
        )
        await rescue.run_once()
        states = dict(bench.query("SELECT id, state FROM exp__pyexpd_daemons"))
        assert states == {former.id: "dead", parts.membership.current.id: "live"}


async def test_a_daemon_declared_dead_by_mistake_does_not_requeue_what_it_runs_itself(bench: Bench) -> None:
    from pyexp_daemon.daemon.rescue import Rescue

    async with daemon(bench) as parts:
        (claim,) = await parts.claimer.claim(1)
        parts.declare_dead(requeue=False)
        own, others = (
            Rescue(parts.link, bench.table, parts.membership.host, POLICY, blind_until=lambda: 0.0, is_own=is_own)
            for is_own in (parts.membership.is_own, lambda row: False)
        )
        assert await own.run_once(everywhere=True) == 0
        assert bench.statuses()[claim.experiment_id] == "running"
        assert await others.run_once(everywhere=True) == 1


async def test_a_refusal_of_an_unknown_kind_blocks_only_its_own_row(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger of the user's own refuses one row, with a number no table of errors knows."""
    monkeypatch.setattr(writer, "REFUSED_PAUSE_S", 0.01)
    bench = make_bench(rows=8)
    condition, refusal = "NEW.ID = 5 AND NEW.y IS NOT NULL", "no such luck"
    if bench.database.server is None:
        bench.execute(
            f"CREATE TRIGGER guard BEFORE UPDATE ON exp WHEN {condition} BEGIN SELECT RAISE(ABORT, '{refusal}'); END"
        )
    else:
        signal = f"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO = 5555, MESSAGE_TEXT = '{refusal}'"
        bench.execute(
            f"CREATE TRIGGER guard BEFORE UPDATE ON exp FOR EACH ROW BEGIN IF {condition} THEN {signal}; END IF; END"
        )
    async with daemon(bench) as parts:
        for claim in await parts.claimer.claim(8):
            await parts.completer.finished(end(claim))
        await parts.completer.flush()
    statuses = bench.statuses()
    assert statuses.pop(5) == "error"
    assert set(statuses.values()) == {"done"}
    assert refusal in bench.query("SELECT error FROM exp WHERE ID = 5")[0][0]
