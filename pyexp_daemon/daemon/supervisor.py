"""The daemon: one process per node that claims experiments, runs them in slots, and writes back what came of them."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
from anyio.abc import TaskGroup

from pyexp_daemon import exceptions
from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon import facts
from pyexp_daemon.daemon.allotment import LAST_WORDS_S, Allotment
from pyexp_daemon.daemon.attempt_log import AttemptLog
from pyexp_daemon.daemon.claimer import Claimer, Pace, Prefetch
from pyexp_daemon.daemon.claiming import Claiming, Until
from pyexp_daemon.daemon.completer import Completer, Left
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.daemon.disk import DiskWatch, folders_of
from pyexp_daemon.daemon.ending import Ending
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.health import NodeHealth
from pyexp_daemon.daemon.heartbeat import Heard
from pyexp_daemon.daemon.ledger import Held, Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.membership import Membership, Reactions
from pyexp_daemon.daemon.news import News
from pyexp_daemon.daemon.options import RunOptions
from pyexp_daemon.daemon.orders import SIGNALS, Orders
from pyexp_daemon.daemon.promotion import Promotion
from pyexp_daemon.daemon.reload import merge
from pyexp_daemon.daemon.replay import Replay
from pyexp_daemon.daemon.rescue import Rescue
from pyexp_daemon.daemon.resources import retry_policy, slot_settings
from pyexp_daemon.daemon.services import kept_up
from pyexp_daemon.daemon.spool import Spool
from pyexp_daemon.events import reopen as reopen_log
from pyexp_daemon.failpoint import failpoint
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, SnapshotHead, SnapshotPart, Verdict
from pyexp_daemon.store import lookups, mark_of, open_store, reads, structure
from pyexp_daemon.store.migrations import VERSION
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Unit
from pyexp_daemon.worker.limits import SlotSettings
from pyexp_daemon.worker.pool import Pool
from pyexp_daemon.worker.strays import become_subreaper

log = get_logger()

HOUSEKEEP_S = 0.5
"""How often the small duties come round."""

BY_KEYFIELDS = "keyfields"
"""The source of the pause when the table has keyfields that this daemon does not know."""


class Supervisor:
    """One daemon, from its first registration to its last heartbeat."""

    def __init__(self, config: Config, options: RunOptions) -> None:
        self.config = config
        self.options = options
        self.table = Table.of(config.database, codecarbon=config.tracking is not None)
        self.control = Control(on_pause=self._hold, on_drain=self._tell_running)
        self.progress: dict[int, tuple[float | None, str | None]] = {}
        self._fleet = Fleet()
        self.link = Link(open_store(config, credentials=options.credentials, is_crowded=lambda: self._fleet.is_crowd))
        self._ledger = Ledger()
        self._prefetch = Prefetch(options.slots)
        self._attempt_log = AttemptLog()
        self._needs_version: int | None = None
        self._typical_s: float | None = None
        self._took_s: deque[float] = deque(maxlen=100)
        self._services: TaskGroup
        self._has_slots = False
        self.membership = Membership(
            config,
            self.table,
            self.link,
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
                unknown=self._unknown,
                told=self._told,
            ),
            fleet=self._fleet,
        )
        self.claimer = Claimer(
            self.link,
            self.table,
            self._ledger,
            self._prefetch,
            queues=config.daemon.queues,
            name=options.name,
            machine=self.membership.host.name,
            at_random=options.at_random,
            fleet=self._fleet,
        )
        spool = Spool(config.state / "spool" / mark_of(config, credentials=options.credentials))
        self.completer = Completer(
            self.link,
            self.table,
            self._ledger,
            retry_policy(config),
            spool=spool,
            host=self.membership.host.name,
            busy=lambda: not self.pool.is_idle,
            ended=self._ended,
            lost=self._lost,
            fenced=self.membership.fenced,
            writing=self.membership.writing,
            age_s=self._age_s,
        )
        self.replay = Replay(
            self.link,
            self.table,
            retry_policy(config),
            own=spool,
            host=self.membership.host.name,
            ended=self._attempt_log.ended,
        )
        self.allotment = Allotment(
            options.allocation,
            self.control,
            drain_s=lambda: self.config.daemon.drain_timeout_s,
            last_s=lambda: self.config.limits.grace_s + LAST_WORDS_S,
            needed_s=self._needed_s,
            is_idle=lambda: self.pool.is_idle,
            moved=self._moved,
            say=options.say,
        )
        self.pool = Pool(
            self._slot_settings(),
            slots=options.slots,
            events=_Events(self),
            reaps=options.guest is None,
        )
        self.news = News(self)
        self._disk = DiskWatch(self.control, folders_of(config), lambda: self.config.daemon.least_disk_bytes)
        turn_s = min(15.0, config.daemon.lease_s / 4)
        self.rescue = Rescue(
            self.link,
            self.table,
            self.membership.host,
            retry_policy(config),
            blind_until=lambda: self.membership.heartbeat.blind_until,
            is_own=self.membership.is_own,
            may_sweep=self.replay.may_sweep,
            database=config.database_path if config.database.provider == "sqlite" else None,
            turn_s=(turn_s, 2 * turn_s),
            dead=self.news.dead,
            fleet=self._fleet,
        )
        self.link.on_restored = self.membership.heartbeat.beat_now
        self.health = NodeHealth(
            self.link,
            self.table,
            self.control,
            self.membership,
            canary_s=lambda: self.config.daemon.canary_s,
            running_for=self.pool.running_for,
            flush=self.completer.flush,
            queues=lambda: self.claimer.queues,
        )
        self.claiming = Claiming(
            self.table,
            link=self.link,
            control=self.control,
            membership=self.membership,
            claimer=self.claimer,
            prefetch=self._prefetch,
            pace=Pace(
                shortest_s=config.daemon.poll.shortest_s, longest_s=config.daemon.poll.longest_s, fleet=self._fleet
            ),
            pool=self.pool,
            completer=self.completer,
            health=self.health,
            until=Until(empty=options.until_empty, most=options.max_experiments, broken=options.guest is not None),
            is_lease_short=lambda: self._is_lease_short() or not self.allotment.may_begin(),
        )
        self._ending = Ending(self.pool, self.completer, self.claiming, self.control, say=options.say)
        self._orders = Orders(
            self.link,
            self.table,
            self.control,
            running=lambda: len(self.pool.running),
            failure=lambda: self.pool.failure,
            patience_s=lambda: self.config.daemon.drain_timeout_s,
            reload=self._reload,
            dump=lambda: log.info("daemon.dump", **facts.at_length(self)),
            incarnations=self.membership.uuids,
        )

    async def run(self) -> None:
        """Claim and run experiments, as a process of its own, until told to end or done with what was asked for.

        Raises:
            DatabaseError: the database could not be used at the start.
            ChildrenCannotStart: the child processes die before they can do anything; what was held is handed back.
            ResultsNotStored: the database was away during the drain; some results are in the spool only, or lost.
            SchemaVersionError: the table was upgraded meanwhile by a step that this version cannot work with.
        """
        become_subreaper()
        async with anyio.create_task_group() as listening:
            listening.start_soon(kept_up, self._orders.listen_to_signals)  # first: whatever is said now is heard
            left = await self._live()
            # Everything is written: what is said from here on comes too late, and must not change how this ends.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            listening.cancel_scope.cancel()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # other threads do not block them, and hear them too
        self._say_how_it_ended(left)

    async def run_as_guest(self) -> None:
        """The same inside a call of another program, in any thread: signals and orphans are that program's.

        Raises:
            FunctionError: the function cannot be imported or called; what was held is handed back.
            and what `run` raises.
        """
        self._say_how_it_ended(await self._live())

    async def _live(self) -> Left:
        """From the first registration to the last heartbeat; what is not in the database then."""
        await self._join()
        if self.membership.me is None:
            await self.link.store.close()
            return Left()
        return await self._be_one_of_them()

    async def _join(self) -> None:
        """Register among the daemons of the table, unless stopped before."""
        while self.membership.me is None and not self.control.draining:
            self.control.reset_asked = False  # there is nothing to reset yet
            await self.control.unless_told(self.membership.register)

    async def _be_one_of_them(self) -> Left:
        """Serve as long as there is something to do, then end; what is not in the database after that."""
        me = self.membership.current
        log.info("daemon.started", name=self.options.name, slots=self.options.slots, pid=os.getpid(), id=me.id)
        self.options.notifier.ready("registered, slots are starting")
        try:
            async with anyio.create_task_group() as services:
                self._services = services
                self._has_slots = True
                services.start_soon(self.pool.run)
                for service in (
                    self._orders.obey,
                    self.completer.run,
                    self.membership.listen,
                    self.replay.run,
                    self.rescue.run,
                    self.health.run,
                    Promotion(self.link, self.table, promoted=self.control.wake, fleet=self._fleet).run,
                    self._housekeep,
                    self._wake_when_pool_changes,
                    self._tell_manager,
                    self._disk.run,
                    self.news.run,
                    self.news.notices.run,
                    self.allotment.run,
                ):
                    services.start_soon(kept_up, service)
                await self._serve()
                left = await self._drain()
                if not left:
                    await self.news.look()
                services.cancel_scope.cancel()
        finally:
            self._has_slots = False
            # The heartbeat is the last to stop: until here it kept what was running ours.
            with anyio.CancelScope(shield=True):
                self._attempt_log.close()
                try:
                    await self.completer.close()
                    await self.membership.leave(patience_s=2 if self.completer.waiting else 15)
                finally:
                    await self.link.store.close()
        return left

    def _say_how_it_ended(self, left: Left) -> None:
        log.info("daemon.stopped", **self.completer.totals.outcomes)
        failure = self.pool.failure
        if isinstance(failure, exceptions.ChildrenCannotStart) or (failure is not None and self.options.guest):
            raise failure
        if left:
            place = self.completer.spool.folder or self.completer.spool.base
            raise exceptions.ResultsNotStored(spooled=left.spooled, lost=left.lost, place=str(place))
        if self._needs_version is not None:
            raise exceptions.SchemaVersionError(
                f"table {self.table.name} was upgraded: it needs schema {self._needs_version}, this is {VERSION}",
                hint="upgrade pyexp_daemon on this node",
            )

    def _needed_s(self) -> float | None:
        """How long an experiment takes: at most, if that is limited, else as long as those that have ended here."""
        took_s = statistics.median(self._took_s) if self._took_s else self._typical_s
        return self.config.limits.timeout_s or took_s

    async def count_by_status(self) -> dict[str, int]:
        """How many experiments of the table each status has, for the one who watches.

        Raises:
            DatabaseError: the database does not answer now.
        """
        return await self.link.read(reads.count_by_status(self.table))

    async def look_up(self, claim: Claim, what: str, arguments: dict[str, Any]) -> Any:
        """What the database has, for a running experiment, once what it has stored so far is there.

        Raises:
            PyExperimenterError: there is no such thing.
        """
        unit = lookups.look_up(self.table, claim.experiment_id, what, arguments)
        await self.completer.stored(claim)  # it may be in the spool, because the database was away
        return await self._read(unit)

    async def _read(self, unit: Unit[Any]) -> Any:
        """What the database says, however long it is away."""
        while True:
            try:
                return await self.link.read(unit)
            except exceptions.ConnectionLost as error:
                await self.link.restored(error)

    async def _serve(self) -> None:
        """Claim until there is nothing more to do here; a reset begins anew."""
        await self.control.unless_told(self.replay.run_once)
        if self.options.allocation is not None:  # as long as none has ended here
            self._typical_s = await self.control.unless_told(lambda: self._read(reads.typical_duration(self.table)))
        await self.claiming.run()
        while self.control.reset_asked:
            await self._reset()
            await self.claiming.run()

    def _hold(self) -> None:
        """Nothing that was claimed ahead begins any more."""
        if self.pool.queued:
            self._services.start_soon(self.completer.release, self.claiming.take_queued())

    def _tell_running(self) -> None:
        """What runs is asked to stop as soon as this daemon is told to end, whatever it is doing just then."""
        self.pool.ask_to_stop()

    async def _drain(self) -> Left:
        """Hand back what has not started, wait for what runs, stop what takes too long, and write everything down.

        What is not in the database then: nothing, unless it is away.
        """
        self._services.start_soon(self.membership.show_draining)
        if self.control.deadline_at is not None:
            self.options.notifier.stopping()
        await self._ending.wait_for_running()
        self.options.notifier.stopping()
        with anyio.move_on_after(self.config.limits.grace_s + LAST_WORDS_S) as patience:
            await self._ending.hand_back_everything("the daemon was stopped")
        if not patience.cancelled_caught:
            return self.completer.lost
        await self.completer.give_up()
        with anyio.move_on_after(self.config.limits.grace_s + LAST_WORDS_S):
            await self.pool.wait_idle()
        left = await self.completer.left()
        if left.spooled:
            log.warning("results.spooled", count=left.spooled, folder=str(self.completer.spool.folder))
        if left.lost:
            log.error("results.lost", count=left.lost)
        return left

    async def _reset(self) -> None:
        """Hand everything back and begin anew: fresh code, the configuration as it is now, another incarnation."""
        self.control.reset_asked = False
        log.info("daemon.resetting", running=len(self.pool.running))
        await self.control.unless_told(self._begin_anew)

    async def _begin_anew(self) -> None:
        await self._ending.let_save(self.config.limits.grace_s)
        await self._ending.hand_back_everything("the daemon was reset")
        self._read_config_again()
        await self.membership.renew()
        await self.link.store.close()  # every connection; the next unit opens one again
        self.membership.heartbeat.reconnect()
        self.health.forget()
        await self.pool.retry()
        log.info("daemon.reset", id=self.membership.current.id)

    def _reload(self) -> str:
        """Read the configuration again, have idle slots replaced, reopen the log; what runs goes on."""
        self.options.notifier.reloading()
        answer = self._read_config_again()
        reopen_log()
        self.health.forget()
        if self._has_slots:
            self._services.start_soon(self.pool.retry)
        self.options.notifier.ready(answer)
        return answer

    def _read_config_again(self) -> str:
        """Take over what can be taken over; what came of it, in words."""
        try:
            reloaded = merge(self.config, self._load_config())
        except exceptions.ConfigError as error:
            log.error("config.refused", error=str(error))
            return f"refused: {error}"
        self._apply(reloaded.config)
        log.info("config.reloaded", changed=reloaded.changed, needs_restart=reloaded.needs_restart)
        return str(reloaded)

    def _load_config(self) -> Config:
        guest = self.options.guest
        return guest.reload() if guest else load_config(self.config.path, project=self.config.project)

    def _apply(self, config: Config) -> None:
        """Let every part work by this configuration from now on; children that run keep theirs to the end."""
        self.config = config
        self.completer.policy = self.rescue.policy = self.replay.policy = retry_policy(config)
        self.claimer.queues = config.daemon.queues
        self.claiming.pace.shortest_s = config.daemon.poll.shortest_s
        self.claiming.pace.longest_s = config.daemon.poll.longest_s
        self.pool.settings = self._slot_settings(incarnation=self.pool.incarnation)

    def _slot_settings(self, *, incarnation: str = "") -> SlotSettings:
        function = self.options.function or self.config.function or ""
        settings = slot_settings(self.config, function=function, slots=self.options.slots)
        if guest := self.options.guest:
            settings = replace(settings, pickled=guest.pickled, echo=guest.echo)
        return replace(settings, incarnation=incarnation, ends=self.allotment.ends)

    def _moved(self, ends: float | None) -> None:
        self.pool.tell_end(ends)

    @property
    def paused(self) -> str | None:
        """Why nothing is claimed; None when nothing keeps us from it."""
        broken = self.pool.failure
        return "; ".join(text for text in (self.control.paused, str(broken) if broken else None) if text) or None

    def _told(self, heard: Heard) -> None:
        """What a heartbeat brought beside the audit."""
        self._orders.hear(heard.commands)
        if heard.oldest > VERSION and self._needs_version is None:
            log.error("schema.too_new", needs=heard.oldest, known=VERSION)
            self._needs_version = heard.oldest
            self.control.drain(deadline_s=self.config.daemon.drain_timeout_s)
        self._mind_keyfields(structure.not_ours(self.table, heard.added))

    def _mind_keyfields(self, new: Sequence[str]) -> None:
        """Claim nothing while the table has keyfields without which we would run its experiments."""
        if not new:
            if self.control.is_paused_by(BY_KEYFIELDS):
                self.control.resume(BY_KEYFIELDS)  # adding it was given up
        elif not self.control.is_paused_by(BY_KEYFIELDS):
            log.error("keyfields.unknown", keyfields=list(new))
            reason = (
                f"the table has a new keyfield {', '.join(new)}: restart this daemon with the present configuration"
            )
            self.control.pause(BY_KEYFIELDS, reason)
            self.options.say(f"paused: {reason}")

    async def _wake_when_pool_changes(self) -> None:
        """A slot that is ready, or free again, wants work now."""
        while True:
            await self.pool.wait_change()
            self.control.wake()

    async def _housekeep(self) -> None:
        """Small regular duties."""
        said: str | None = None
        while True:
            await anyio.sleep(HOUSEKEEP_S)
            failpoint("loop.turn")
            self.membership.heartbeat.loop_ticked = time.monotonic()
            self.membership.heartbeat.abort_if_it_hangs(HOUSEKEEP_S)
            self.membership.heartbeat.facts = json.dumps(facts.in_short(self))
            await self.link.store.close_idle()
            if self._is_lease_short():
                await self.claiming.hand_back_queued()
                await self._ending.stop_running(Outcome.RELEASED, "the lease could not be renewed in time")
            await self.claiming.hand_back_what_does_not_begin()
            said = await self._say_what_is_broken(said)

    async def _tell_manager(self) -> None:
        await self.options.notifier.run(lambda: facts.in_words(self), is_draining=lambda: self.control.draining)

    def _is_lease_short(self) -> bool:
        """With `on_lease_lost: kill` no two runs of an experiment may overlap: ours end before our lease does."""
        if self.config.daemon.on_lease_lost != "kill":
            return False
        return self.membership.lease_left_s <= self.config.limits.grace_s + 1.0

    async def _say_what_is_broken(self, said: str | None) -> str | None:
        broken = self.pool.failure
        if broken is None:
            return None
        await self.claiming.hand_back_queued()
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

    def _age_s(self, claim: Claim) -> float:
        return self.pool.age_s(claim)

    async def _unknown(self, held: Sequence[Held]) -> Sequence[Held]:
        return await self.replay.finish(held)

    def _owned(self) -> set[Held]:
        return self.pool.held | self.completer.claims

    def _forgotten(self, claims: Sequence[Claim]) -> None:
        self._services.start_soon(self.completer.release, claims)

    def _cancelled(self, claim: Claim) -> None:
        self._services.start_soon(self.pool.stop, claim, Outcome.CANCELLED, "cancelled")

    def _lost(self, claim: Claim) -> None:
        """An experiment is not ours any more: stop what runs for it and write nothing.

        Unless it has ended here: then its end is on its way, or stored already and the reply is not. Its verdict tells.
        """
        if claim.key in self.completer.claims - self.pool.held:
            return
        log.warning("lease.lost", experiment_id=claim.experiment_id, attempt=claim.attempt)
        self._services.start_soon(self._stop_lost, claim)

    async def _stop_lost(self, claim: Claim) -> None:
        reason = "another daemon or a person took the experiment"
        if not await self.pool.stop(claim, Outcome.SUPERSEDED, reason):
            self._ledger.let_go(claim)

    def _ended(self, attempt: Attempt, verdict: Verdict) -> None:
        self.progress.pop(attempt.claim.experiment_id, None)
        self._attempt_log.ended(attempt, verdict)
        self.news.ended(attempt)
        if attempt.outcome is Outcome.DONE and attempt.started is not None and attempt.ended is not None:
            self._took_s.append(attempt.ended - attempt.started)
        if self.options.guest:
            self.options.guest.ended(attempt)
        if self.pool.is_idle:
            self.control.wake()  # it may have been the last

    def slot_freed(self, attempt: Attempt) -> None:
        """An attempt ended in its slot, and the next one has begun there; its end is not stored yet."""
        self.claiming.ended(attempt)
        self.health.ended(attempt)


class _Events:
    """What the pool reports, handed to the parts it concerns."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def results(self, claim: Claim, results: dict[str, Any]) -> None:
        await self._supervisor.completer.results(claim, results)

    async def snapshot(self, claim: Claim, part: SnapshotPart, head: SnapshotHead | None) -> None:
        await self._supervisor.completer.snapshot(claim, part, head)

    async def look_up(self, claim: Claim, what: str, arguments: dict[str, Any]) -> Any:
        return await self._supervisor.look_up(claim, what, arguments)

    async def logs(self, claim: Claim, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        await self._supervisor.completer.logs(claim, rows)

    async def finished(self, attempt: Attempt) -> None:
        failpoint("attempt.ended")
        self._supervisor.slot_freed(attempt)
        await self._supervisor.completer.finished(attempt)

    def progress(self, claim: Claim, fraction: float | None, description: str | None) -> None:
        self._supervisor.progress[claim.experiment_id] = (fraction, description)
