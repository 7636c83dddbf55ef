"""The daemon: one process per node that claims experiments, runs them in slots, and writes back what came of them."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from pyexp_daemon import exceptions
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.claimer import Claimer, Pace, Prefetch
from pyexp_daemon.daemon.completer import AttemptLog, Completer
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.daemon.ledger import Held, Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.membership import Membership, Reactions
from pyexp_daemon.daemon.rescue import Rescue
from pyexp_daemon.daemon.resources import retry_policy, slot_settings
from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, Verdict
from pyexp_daemon.store import daemons, open_store, reads
from pyexp_daemon.store.tables import Table
from pyexp_daemon.worker.pool import Pool, PoolState
from pyexp_daemon.worker.strays import become_subreaper

log = structlog.get_logger()

PROMOTE_S = 1.0
"""How often waiting experiments are looked at."""

HOUSEKEEP_S = 0.5
"""How often the small duties come round."""

LAST_WORDS_S = 10.0
"""How long a drain waits, beyond the grace of the children, for the database to take what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What `pyexpd run` was asked for beyond the configuration."""

    function: str
    slots: int
    name: str
    until_empty: bool = False
    max_experiments: int | None = None
    at_random: bool = False
    credentials: Path | None = None
    say: Callable[[str], None] = lambda text: None
    """Told, in words, what a person at the terminal should know."""


class Supervisor:
    """One daemon, from its first registration to its last heartbeat."""

    def __init__(self, config: Config, options: RunOptions) -> None:
        self.config = config
        self.options = options
        self.table = Table.of(config.database)
        self.control = Control()
        self.progress: dict[int, tuple[float | None, str | None]] = {}
        self._link = Link(open_store(config, credentials=options.credentials))
        self._ledger = Ledger()
        self._prefetch = Prefetch(options.slots)
        self._pace = Pace(shortest_s=config.daemon.poll.shortest_s, longest_s=config.daemon.poll.longest_s)
        self._attempt_log = AttemptLog()
        self._claimed = 0
        self._last_begun = 0.0
        self._services: TaskGroup
        self.membership = Membership(
            config,
            self.table,
            self._link,
            self._ledger,
            name=options.name,
            slots=options.slots,
            credentials=options.credentials,
            reactions=Reactions(
                registered=self._registered,
                rebound=self._rebound,
                lost=self._lost,
                cancelled=self._cancelled,
                forgotten=self._forgotten,
                owned=self._owned,
            ),
        )
        self.claimer = Claimer(
            self._link,
            self.table,
            self._ledger,
            self._prefetch,
            queues=config.daemon.queues,
            name=options.name,
            machine=self.membership.host.name,
            at_random=options.at_random,
        )
        self.completer = Completer(
            self._link,
            self.table,
            self._ledger,
            retry_policy(config),
            host=self.membership.host.name,
            busy=lambda: not self.pool.is_idle,
            ended=self._ended,
            lost=self._lost,
            fenced=self.membership.fenced,
            writing=self.membership.writing,
        )
        self.pool = Pool(
            slot_settings(config, function=options.function, slots=options.slots),
            slots=options.slots,
            events=_Events(self),
        )
        turn_s = min(15.0, config.daemon.lease_s / 4)
        self._rescue = Rescue(
            self._link,
            self.table,
            self.membership.host,
            retry_policy(config),
            blind_until=lambda: self.membership.heartbeat.last_trouble,
            is_own=self.membership.is_own,
            database=config.database_path if config.database.provider == "sqlite" else None,
            turn_s=(turn_s, 2 * turn_s),
        )

    async def run(self) -> None:
        """Claim and run experiments until drained, empty or done with the number asked for.

        Raises:
            DatabaseError: the database could not be used at the start.
            ChildrenCannotStart: the child processes die before they can do anything; what was held is handed back.
            ResultsNotStored: the database was away during the drain; some results were not written.
        """
        become_subreaper()
        await self.membership.register()
        me = self.membership.current
        log.info("daemon.started", name=self.options.name, slots=self.options.slots, pid=os.getpid(), id=me.id)
        lost = 0
        try:
            async with anyio.create_task_group() as services:
                self._services = services
                services.start_soon(self.pool.run)
                for service in (
                    self._listen_to_signals,
                    self.completer.run,
                    self.membership.listen,
                    self._rescue.run,
                    self._promote,
                    self._housekeep,
                    self._wake_when_pool_changes,
                ):
                    services.start_soon(_kept_up, service)
                await self._claim_until_drained()
                lost = await self._drain()
                services.cancel_scope.cancel()
        finally:
            # The heartbeat is the last to stop: until here it kept what was running ours.
            with anyio.CancelScope(shield=True):
                self._attempt_log.close()
                await self.membership.leave(patience_s=2 if lost else 15)
                await self._link.store.close()
        log.info("daemon.stopped", **self.completer.totals.outcomes)
        if isinstance(self.pool.failure, exceptions.ChildrenCannotStart):
            raise self.pool.failure
        if lost:
            raise exceptions.ResultsNotStored(lost)

    async def count_by_status(self) -> dict[str, int]:
        """How many experiments of the table each status has, for the one who watches.

        Raises:
            DatabaseError: the database does not answer now.
        """
        return await self._link.read(reads.count_by_status(self.table))

    async def _claim_until_drained(self) -> None:
        while not self.control.draining:
            if isinstance(self.pool.failure, exceptions.ChildrenCannotStart):
                return
            wanted = self._wanted()
            if wanted:
                pause = await self._claim(wanted)
                if pause and await self._is_over():
                    return
            else:
                pause = 1.0
                if self._budget() == 0 and self._is_idle():
                    return
            if pause:
                await self.control.sleep(pause)

    async def _claim(self, wanted: int) -> float:
        """Claim and hand out up to `wanted` experiments; how long to wait before the next claim."""
        me = self.membership.current
        try:
            claims = await self.control.unless_draining(lambda: self.claimer.claim(wanted)) or []
        except exceptions.Fenced:
            await self.control.unless_draining(lambda: self.membership.fenced(me))
            return 0
        except exceptions.ConnectionLost as error:
            await self.control.unless_draining(partial(self._link.restored, error))
            return 0
        except exceptions.DatabaseError as error:
            # A migration, a dropped table, a changed password: it may be put right while we wait.
            log.error("claim.refused", error=str(error))
            return 60.0
        if self.control.draining or self._is_lease_short():
            await self.completer.release(claims)
            return 0
        self._claimed += len(claims)
        for claim in claims:
            self.pool.give(claim)
        if claims:
            self._pace.found()
            self._last_begun = anyio.current_time()
            return 0
        return self._pace.nothing()

    def _wanted(self) -> int:
        """How many experiments to claim now: for idle slots, and ahead when they are short."""
        if self.pool.state is not PoolState.READY or self._is_lease_short():
            return 0
        ahead = self._prefetch.rows()
        held = len(self.pool.queued)
        if held > ahead // 2 and not self.pool.free:
            return 0  # in groups: a claim for one row costs as much as a claim for all
        return max(0, min(self.pool.free + ahead - held, self._budget()))

    def _budget(self) -> int:
        most = self.options.max_experiments
        return 10**9 if most is None else max(0, most - self._claimed)

    def _is_idle(self) -> bool:
        return self.pool.is_idle and not self.completer.waiting

    async def _is_over(self) -> bool:
        """After a claim that found nothing: whether that was all, when we were asked to stop at the end.

        An empty answer of a claim proves nothing, for rows locked elsewhere were passed over: what counts is a plain
        count, twice. Rows that run under a daemon that looks dead are waited for, to rescue them.
        """
        if not self.options.until_empty or not self._is_idle():
            return False
        unit = reads.count_unfinished(self.table, queues=self.config.daemon.queues)
        for _ in range(2):
            try:
                if await self._link.read(unit):
                    return False
            except exceptions.DatabaseError:
                return False
        return self._is_idle()

    async def _drain(self) -> int:
        """Hand back what has not started, wait for what runs, stop what takes too long, and write everything down.

        How many results could not be written: none, unless the database is away.
        """
        self.pool.ask_to_stop()
        await self._hand_back_queued()
        await self._wait_for_running()
        with anyio.move_on_after(self.config.limits.grace_s + LAST_WORDS_S) as patience:
            while not self.pool.is_idle:
                await self._hand_back_queued()
                await self._stop_running(Outcome.RELEASED, "the daemon was stopped")
                with anyio.move_on_after(1):
                    await self.pool.wait_change()
            await self.completer.release(self.claimer.take_left_over())
            await self.completer.flush()
        if not patience.cancelled_caught:
            return 0
        lost = len(self._ledger.claims())
        log.error("results.lost", count=lost)
        self.completer.give_up()
        with anyio.move_on_after(self.config.limits.grace_s + LAST_WORDS_S):
            await self.pool.wait_idle()
        return lost

    async def _hand_back_queued(self) -> None:
        claims = self.pool.take_back()
        self._claimed -= len(claims)
        await self.completer.release(claims)

    async def _stop_running(self, outcome: Outcome, reason: str) -> None:
        async with anyio.create_task_group() as stopping:
            for claim in self.pool.running:
                stopping.start_soon(self.pool.stop, claim, outcome, reason)

    async def _wait_for_running(self) -> None:
        running = self.pool.running
        if not running:
            return
        patience = self.control.deadline_s
        log.info("daemon.draining", running=len(running), deadline_s=patience)
        self.options.say(
            f"stopping: waiting {'' if patience is None else f'at most {patience:g} s '}for {len(running)} running"
            f" experiment{'s' if len(running) > 1 else ''}; a second Ctrl-C (or TERM) stops and hands back at once"
        )
        end = None if patience is None else anyio.current_time() + patience
        while self.pool.running and not self.control.skip_wait:
            left = 1.0 if end is None else min(1.0, end - anyio.current_time())
            if left <= 0:
                return
            await self.control.sleep(left)

    async def _listen_to_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            async for number in received:
                log.info("signal.received", signal=signal.Signals(number).name)
                if number == signal.SIGHUP:
                    self._services.start_soon(self.pool.retry)  # an import may take its time: TERM must not wait
                else:
                    self.control.drain(deadline_s=self.config.daemon.drain_timeout_s)

    async def _wake_when_pool_changes(self) -> None:
        """A slot that is ready, or free again, wants work now."""
        while True:
            await self.pool.wait_change()
            self.control.wake()

    async def _promote(self) -> None:
        """Bring back waiting experiments that are due."""
        while True:
            try:
                while await self._link.read(daemons.is_due(self.table)):
                    await self._link.run(daemons.promote(self.table), role="admin")
                    self.control.wake()
            except exceptions.ConnectionLost as error:
                await self._link.restored(error)
            except exceptions.DatabaseError as error:
                log.error("promotion.failed", error=str(error))
                await anyio.sleep(30)
            await anyio.sleep(PROMOTE_S * random.uniform(0.75, 1.25))

    async def _housekeep(self) -> None:
        """Small regular duties."""
        said: str | None = None
        while True:
            await anyio.sleep(HOUSEKEEP_S)
            self.membership.heartbeat.loop_ticked = time.monotonic()
            await self._link.store.close_idle()
            if self._is_lease_short():
                await self._hand_back_queued()
                await self._stop_running(Outcome.RELEASED, "the lease could not be renewed in time")
            await self._hand_back_what_does_not_begin()
            said = await self._say_what_is_broken(said)

    def _is_lease_short(self) -> bool:
        """With `on_lease_lost: kill` no two runs of an experiment may overlap: ours end before our lease does."""
        if self.config.daemon.on_lease_lost != "kill":
            return False
        return self.membership.lease_left_s <= self.config.limits.grace_s + 1.0

    async def _hand_back_what_does_not_begin(self) -> None:
        """Rows claimed ahead wait for short experiments; behind a long one they are for others."""
        if self.pool.queued and anyio.current_time() - self._last_begun > self._prefetch.patience_s:
            self._prefetch.forget()
            await self._hand_back_queued()

    async def _say_what_is_broken(self, said: str | None) -> str | None:
        broken = self.pool.failure
        if broken is None:
            return None
        await self._hand_back_queued()
        if str(broken) != said:
            log.error("function.broken", error=str(broken), traceback=getattr(broken, "traceback", None))
            self.options.say(f"paused: {broken}; repair it and send HUP (kill -HUP {os.getpid()})")
        return str(broken)

    def _registered(self, me: Incarnation) -> None:
        self.claimer.me = self.completer.me = me
        self.pool.incarnation = me.uuid

    def _rebound(self, old: Claim, new: Claim) -> None:
        self.pool.rebind(old, new)
        self.completer.rebind(old, new)

    def _owned(self) -> set[Held]:
        return {claim.key for claim in (*self.pool.running, *self.pool.queued)} | self.completer.claims

    def _forgotten(self, claims: Sequence[Claim]) -> None:
        self._services.start_soon(self.completer.release, claims)

    def _cancelled(self, claim: Claim) -> None:
        self._services.start_soon(self.pool.stop, claim, Outcome.CANCELLED, "cancelled")

    def _lost(self, claim: Claim) -> None:
        """An experiment is not ours any more: stop what runs for it and write nothing."""
        log.warning("lease.lost", experiment_id=claim.experiment_id, attempt=claim.attempt)
        self._services.start_soon(self._stop_lost, claim)

    async def _stop_lost(self, claim: Claim) -> None:
        reason = "another daemon or a person took the experiment"
        if not await self.pool.stop(claim, Outcome.SUPERSEDED, reason):
            self._ledger.let_go(claim)

    def _ended(self, attempt: Attempt, verdict: Verdict) -> None:
        self.progress.pop(attempt.claim.experiment_id, None)
        self._attempt_log.ended(attempt, verdict)
        if self.pool.is_idle:
            self.control.wake()  # it may have been the last

    def slot_freed(self, attempt: Attempt) -> None:
        """An attempt ended in its slot, and the next one has begun there; its end is not stored yet."""
        if attempt.started is not None and attempt.ended is not None:
            self._prefetch.ran(attempt.ended - attempt.started)
            self._last_begun = anyio.current_time()
        self.control.wake()


class _Events:
    """What the pool reports, handed to the parts it concerns."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def results(self, claim: Claim, results: dict[str, Any]) -> None:
        await self._supervisor.completer.results(claim, results)

    async def logs(self, claim: Claim, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        await self._supervisor.completer.logs(claim, rows)

    async def finished(self, attempt: Attempt) -> None:
        self._supervisor.slot_freed(attempt)
        await self._supervisor.completer.finished(attempt)

    def progress(self, claim: Claim, fraction: float | None, description: str | None) -> None:
        self._supervisor.progress[claim.experiment_id] = (fraction, description)


async def _kept_up(service: Callable[[], Awaitable[None]]) -> None:
    """Run a service for as long as the daemon lives: no fault of one turn may end them all."""
    while True:
        try:
            return await service()
        except Exception:
            log.exception("service.failed", service=service.__name__)
            await anyio.sleep(5)
