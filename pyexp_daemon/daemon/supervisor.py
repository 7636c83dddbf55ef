"""The daemon: one process per node that claims experiments, runs them in slots, and writes back what came of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from pyexp_daemon.daemon.heartbeat import Heard, Heartbeat
from pyexp_daemon.daemon.hosts import Host, LockFile, lease_lock_path, make_row
from pyexp_daemon.daemon.ledger import Audit, Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.mailbox import Mailbox
from pyexp_daemon.daemon.rescue import Rescue
from pyexp_daemon.daemon.resources import threads_per_slot, visible_gpus
from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, RetryPolicy, Verdict, make_token
from pyexp_daemon.store import daemons, leases, open_blocking_store, open_store, reads
from pyexp_daemon.store.tables import Table
from pyexp_daemon.worker.pool import Pool, PoolState, SlotSettings
from pyexp_daemon.worker.strays import become_subreaper

log = structlog.get_logger()

PROMOTE_S = 1.0
"""How often waiting experiments are looked at."""


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
        self.me: Incarnation | None = None
        self.progress: dict[int, tuple[float | None, str | None]] = {}
        self._host = Host.here()
        self._policy = retry_policy(config)
        self._ledger = Ledger()
        self._heard: Mailbox[Heard] = Mailbox()
        self._link = Link(open_store(config, credentials=options.credentials))
        self._prefetch = Prefetch(options.slots)
        self._pace = Pace(shortest_s=config.daemon.poll.shortest_s, longest_s=config.daemon.poll.longest_s)
        self._attempt_log = AttemptLog()
        self._claimed = 0
        self._coming_back = anyio.Lock()
        self._lease_lock: LockFile | None = None
        self._services: TaskGroup
        self.claimer = Claimer(
            self._link,
            self.table,
            self._ledger,
            self._prefetch,
            queues=config.daemon.queues,
            name=options.name,
            machine=self._host.name,
            at_random=options.at_random,
        )
        self.completer = Completer(
            self._link,
            self.table,
            self._ledger,
            self._policy,
            host=self._host.name,
            busy=lambda: bool(self.pool.running or self.pool.queued),
            ended=self._ended,
            lost=self._lost,
            fenced=self._fenced,
        )
        self.pool = Pool(
            slot_settings(config, function=options.function, slots=options.slots),
            slots=options.slots,
            events=_Events(self),
        )
        self._heartbeat = Heartbeat(
            lambda: open_blocking_store(
                config,
                credentials=options.credentials,
                deadline_s=min(10.0, config.daemon.lease_s / 3),
                daemon=True,
            ),
            self.table,
            self._ledger,
            self._heard,
            every_s=config.daemon.heartbeat_s,
            lease_s=config.daemon.lease_s,
            watchdog_s=config.daemon.watchdog_s,
        )
        turn_s = min(15.0, config.daemon.lease_s / 4)
        self._rescue = Rescue(
            self._link,
            self.table,
            self._host,
            self._policy,
            blind_until=lambda: self._heartbeat.last_trouble,
            database=config.database_path if config.database.provider == "sqlite" else None,
            turn_s=(turn_s, 2 * turn_s),
        )

    async def run(self) -> None:
        """Claim and run experiments until drained, empty or done with the number asked for.

        Raises:
            DatabaseError: the database could not be used at the start.
            ChildrenCannotStart: the child processes die before they can do anything.
        """
        become_subreaper()
        await self._register()
        log.info("daemon.started", name=self.options.name, slots=self.options.slots, pid=os.getpid(), id=self._me.id)
        try:
            async with anyio.create_task_group() as services:
                self._services = services
                for service in (self._listen_to_signals, self.completer.run, self.pool.run, self._listen_to_heartbeat):
                    services.start_soon(service)
                for service in (self._rescue.run, self._promote, self._housekeep):
                    services.start_soon(service)
                await self._claim_until_drained()
                await self._drain()
                services.cancel_scope.cancel()
        finally:
            # The heartbeat is the last to stop: until here it kept what was running ours.
            with anyio.CancelScope(shield=True):
                await self._leave()
        log.info("daemon.stopped", **self.completer.totals.outcomes)

    async def count_by_status(self) -> dict[str, int]:
        """How many experiments of the table each status has, for the one who watches.

        Raises:
            DatabaseError: the database does not answer now.
        """
        return await self._link.read(reads.count_by_status(self.table))

    @property
    def _me(self) -> Incarnation:
        assert self.me is not None
        return self.me

    async def _register(self) -> None:
        uuid = make_token()
        lock = None
        if self.config.database.provider == "sqlite":  # locked before the row exists: nobody may see it unlocked
            lock = LockFile(lease_lock_path(self.config.database_path, uuid))
        row = make_row(
            self._host,
            uuid,
            name=self.options.name,
            slots=self.options.slots,
            lease_s=self.config.daemon.lease_s,
            lock=lock,
        )
        self.me = await self._link.run(daemons.register(self.table, row), role="admin")
        self._lease_lock, former = lock, self._lease_lock
        if former is not None:
            former.release(remove=True)
        self.claimer.me = self.completer.me = self._rescue.me = self.me
        self.pool.incarnation = uuid
        self._heartbeat.start(self.me)

    async def _leave(self) -> None:
        self._attempt_log.close()
        with anyio.move_on_after(15):
            try:
                await self._link.run(daemons.change_state(self.table, me=self._me, state="stopped"), role="admin")
            except exceptions.DatabaseError as error:
                log.warning("daemon.not_signed_off", error=str(error))
        await anyio.to_thread.run_sync(self._heartbeat.stop)
        await self._link.store.close()
        if self._lease_lock is not None:
            self._lease_lock.release(remove=True)

    async def _claim_until_drained(self) -> None:
        while not self.control.draining:
            if isinstance(self.pool.failure, exceptions.ChildrenCannotStart):
                raise self.pool.failure
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
        try:
            claims = await self.claimer.claim(wanted)
        except exceptions.Fenced:
            await self._fenced()
            return 0
        except exceptions.ConnectionLost as error:
            await self._link.restored(error)
            return 0
        except exceptions.DatabaseError as error:
            # A migration, a dropped table, a changed password: it may be put right while we wait.
            log.error("claim.refused", error=str(error))
            return 60.0
        self._claimed += len(claims)
        for claim in claims:
            self.pool.give(claim)
        if claims:
            self._pace.found()
            return 0
        return self._pace.nothing()

    def _wanted(self) -> int:
        """How many experiments to claim now: for idle slots, and ahead when they are short."""
        if self.pool.state is not PoolState.READY or self.control.paused:
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
        return not (self.pool.running or self.pool.queued or self.completer.waiting)

    async def _is_over(self) -> bool:
        """After a claim that found nothing: whether that was all, when we were asked to stop at the end.

        An empty answer of a claim proves nothing, for rows locked elsewhere were passed over: what counts is a plain
        count, twice. Rows that run under a daemon that looks dead are waited for, to rescue them.
        """
        if not self.options.until_empty or not self._is_idle():
            return False
        for _ in range(2):
            try:
                left = await self._link.read(reads.count_unfinished(self.table))
            except exceptions.DatabaseError:
                return False
            if left:
                return False
        return self._is_idle()

    async def _drain(self) -> None:
        """Hand back what has not started, wait for what runs, stop what takes too long, and write everything down."""
        self.pool.ask_to_stop()
        await self.completer.release(self.pool.take_back())
        await self._wait_for_running()
        async with anyio.create_task_group() as stopping:
            for claim in self.pool.running:
                stopping.start_soon(self.pool.stop, claim, Outcome.RELEASED, "the daemon was stopped")
        await self.pool.wait_idle()
        await self.completer.flush()

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
                    await self.pool.retry()
                    self.control.wake()
                else:
                    self.control.drain(deadline_s=self.config.daemon.drain_timeout_s)

    async def _listen_to_heartbeat(self) -> None:
        while True:
            heard = await self._heard.take()
            if heard.me != self.me:
                continue
            if not heard.alive:
                await self._come_back()
            else:
                await self._reconcile(heard.audit)

    async def _reconcile(self, audit: Audit) -> None:
        """Bring what we do in line with what the database says we hold."""
        if audit.unknown:
            try:
                count = await self._link.run(leases.release_unknown(self.table, me=self._me, held=audit.unknown))
                log.warning("claims.handed_back", count=count)
            except exceptions.DatabaseError as error:
                log.warning("claims.not_handed_back", error=str(error))  # the next heartbeat sees them again
        for held in audit.taken:
            if claim := self._ledger.find(held):
                self._lost(claim)
        for held in audit.cancelled:
            if claim := self._ledger.find(held):
                self._services.start_soon(self.pool.stop, claim, Outcome.CANCELLED, "cancelled")

    async def _fenced(self) -> bool:
        """Whether we were declared dead; if so we are back, as a new incarnation, when this returns."""
        try:
            beat = await self._link.run(
                daemons.beat(self.table, me=self._me, lease_s=self.config.daemon.lease_s), role="admin"
            )
        except exceptions.DatabaseError:
            return False
        if not beat.alive:
            await self._come_back()
        return not beat.alive

    async def _come_back(self) -> None:
        """Register anew, and get hold again of the experiments that nobody took since we were declared dead."""
        async with self._coming_back:
            former = self._me
            log.warning("daemon.fenced", id=former.id)
            while True:
                try:
                    await self._register()
                    old = self._ledger.claims()
                    unit = leases.take_back(self.table, old, me=self._me, token=make_token())
                    back = {claim.experiment_id: claim for claim in await self._link.run(unit)} if old else {}
                    break
                except exceptions.DatabaseError as error:
                    await self._link.restored(error)
            for claim in old:
                new = back.get(claim.experiment_id)
                if new is None:
                    self._lost(claim)
                    continue
                self._ledger.rebind(claim, new)
                self.pool.rebind(claim, new)
                self.completer.rebind(claim, new)
            log.info("daemon.back", id=self._me.id, taken_back=len(back), lost=len(old) - len(back))

    async def _promote(self) -> None:
        """Bring back waiting experiments that are due."""
        while True:
            try:
                while await self._link.run(daemons.promote(self.table), role="admin"):
                    self.control.wake()
            except exceptions.ConnectionLost as error:
                await self._link.restored(error)
            except exceptions.DatabaseError as error:
                log.error("promotion.failed", error=str(error))
                await anyio.sleep(30)
            await anyio.sleep(PROMOTE_S)

    async def _housekeep(self) -> None:
        """Small regular duties: tick for the watchdog, close idle connections, say when the function is broken."""
        said: str | None = None
        while True:
            await anyio.sleep(0.5)
            self._heartbeat.loop_ticked = time.monotonic()
            self._stop_before_the_lease_ends()
            await self._link.store.close_idle()
            broken = self.pool.failure
            if broken is not None and str(broken) != said:
                said = str(broken)
                log.error("function.broken", error=said, traceback=getattr(broken, "traceback", None))
                self.options.say(f"paused: {said}; repair it and send HUP (kill -HUP {os.getpid()})")
            elif broken is None:
                said = None

    def _stop_before_the_lease_ends(self) -> None:
        """With `on_lease_lost: kill` no two runs of an experiment may overlap, so ours end before our lease does."""
        if self.config.daemon.on_lease_lost != "kill":
            return
        left = self.config.daemon.lease_s - (time.monotonic() - self._heartbeat.last_success)
        if left <= self.config.limits.grace_s + 1.0:
            for claim in self.pool.running:
                self._services.start_soon(
                    self.pool.stop, claim, Outcome.RELEASED, "the lease could not be renewed in time"
                )

    def _ended(self, attempt: Attempt, verdict: Verdict) -> None:
        self.progress.pop(attempt.claim.experiment_id, None)
        self._attempt_log.ended(attempt, verdict)
        if not (self.pool.running or self.pool.queued):
            self.control.wake()  # it may have been the last

    def _lost(self, claim: Claim) -> None:
        """An experiment is not ours any more: stop what runs for it and write nothing."""
        log.warning("lease.lost", experiment_id=claim.experiment_id, attempt=claim.attempt)
        self._services.start_soon(self._stop_lost, claim)

    async def _stop_lost(self, claim: Claim) -> None:
        reason = "another daemon or a person took the experiment"
        if not await self.pool.stop(claim, Outcome.SUPERSEDED, reason):
            self._ledger.let_go(claim)

    def slot_freed(self, attempt: Attempt) -> None:
        """An attempt ended in its slot; its end is not stored yet."""
        if attempt.started is not None and attempt.ended is not None:
            self._prefetch.ran(attempt.ended - attempt.started)
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


def retry_policy(config: Config) -> RetryPolicy:
    """The budgets of an experiment as the configuration gives them."""
    limits = config.limits
    return RetryPolicy(
        tries=limits.tries.model_dump(), first_s=limits.backoff.first_s, longest_s=limits.backoff.longest_s
    )


def slot_settings(config: Config, *, function: str, slots: int) -> SlotSettings:
    """What each of so many slots of this node runs, and within which bounds."""
    return SlotSettings(
        incarnation="",
        python=config.daemon.python or sys.executable,
        function=function,
        project=config.project,
        custom=config.custom,
        resultfields=tuple(config.database.table.resultfields),
        logtables={name: tuple(columns) for name, columns in config.database.logtables.items()},
        logs=config.logs,
        workdirs=config.logs / "work",
        threads=threads_per_slot(config, slots),
        gpus=visible_gpus(config),
        isolation=config.daemon.isolation,
        recycle_experiments=config.daemon.recycle.experiments,
        recycle_memory_bytes=config.daemon.recycle.memory_bytes,
        timeout_s=config.limits.timeout_s,
        memory_bytes=config.limits.memory_bytes,
        log_size_bytes=config.limits.log_size_bytes,
        grace_s=config.limits.grace_s,
    )
