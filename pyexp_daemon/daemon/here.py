"""Experiments in this process: claimed, held and recorded like any other, with the terminal attached."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.abc import TaskStatus
from anyio.from_thread import start_blocking_portal

from pyexp_daemon import exceptions
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.allotment import LAST_WORDS_S
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.heartbeat import Heard, Heartbeat
from pyexp_daemon.daemon.hosts import Host, alive_here, lock_lease, make_row
from pyexp_daemon.daemon.ledger import Held, Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.mailbox import Mailbox
from pyexp_daemon.daemon.orders import Orders
from pyexp_daemon.daemon.promotion import Promotion
from pyexp_daemon.daemon.replay import Replay
from pyexp_daemon.daemon.rescue import Rescue
from pyexp_daemon.daemon.resources import (
    end_of_allocation,
    result_processor,
    retry_policy,
    snapshot_report,
    store_here,
)
from pyexp_daemon.daemon.services import kept_up
from pyexp_daemon.daemon.spool import Spool
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Attempt, Claim, Incarnation, LogRow, Outcome, Report, Verdict, make_token
from pyexp_daemon.result_processor import ResultProcessor
from pyexp_daemon.store import (
    commands,
    daemons,
    leases,
    lookups,
    mark_of,
    open_blocking_store,
    open_store,
    reads,
    reports,
    structure,
)
from pyexp_daemon.store.migrations import VERSION
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Unit
from pyexp_daemon.store.values import local_time
from pyexp_daemon.worker.child import Meter, describe, judge
from pyexp_daemon.worker.emissions import Emissions
from pyexp_daemon.worker.function import Function
from pyexp_daemon.worker.provenance import code_version

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

T = TypeVar("T")
log = get_logger()

_LONGEST_PAUSE_S = 10.0


def load_function(spec: str, *, project: Path) -> Function:
    """Import the experiment function into this process; what went wrong in the user's module is shown on stderr.

    Raises:
        FunctionError: it cannot be imported or called.
    """
    os.chdir(project)
    try:
        return Function.imported(spec, project=str(project))
    except exceptions.FunctionError:
        raise
    except Exception as error:
        _show_users_part(error)
        raise exceptions.FunctionError(f"{spec} cannot be imported: {type(error).__name__}: {error}") from error


def _show_users_part(error: Exception) -> None:
    """Print the traceback from the first line of the user's code on; nothing when no such line ran."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parents[1])
    users = [not frame.filename.startswith((package, importlib.__path__[0], "<frozen")) for frame in frames]
    if any(users):
        shown = traceback.StackSummary.from_list(frames[users.index(True) :]).format()
        last = traceback.format_exception_only(error)
        sys.stderr.write("".join(["Traceback (most recent call last):\n", *shown, *last]))


class Here:
    """A daemon without slots: its own row and its own heartbeat, so that nobody rescues what it runs."""

    def __init__(self, config: Config, *, name: str, credentials: Path | None = None) -> None:
        self._config = config
        self._name = name
        self.table = Table.of(config.database, codecarbon=config.tracking is not None)
        self._host = Host.here()
        self._policy = retry_policy(config)
        self._ledger = Ledger()
        self._control = Control()
        self._ear: _Ear
        self._credentials = credentials
        self._queues: Sequence[str] = ()
        """Those that it claims from."""
        self._interrupted = Outcome.RELEASED
        self._is_interrupted = False
        self._heartbeat: Heartbeat

    def run(self, experiment_id: int, function: Function, *, paused: bool = False) -> Attempt | None:
        """Run one created or waiting experiment, or else a paused one; None when it is no such experiment.

        An exception of the function is shown on stderr and recorded. An interrupt hands the experiment back (one that
        was paused is paused again) and is raised again.

        Returns:
            The attempt that was recorded.

        Raises:
            LeaseLost: somebody else took the experiment while it ran; its row was not touched.
        """
        statuses = ("paused",) if paused else ("created", "waiting")
        self._interrupted = Outcome.PAUSED if paused else Outcome.RELEASED
        return self._run(
            function, lambda **who: leases.claim_one(experiment_id=experiment_id, statuses=statuses, **who)
        )

    def add_and_run(self, row: tuple[Sequence[Any], bytes], function: Function) -> Attempt | None:
        """Insert an experiment that nobody else can take, and run it; None when the table has it already.

        Args:
            row: the values of the keyfields in declared order, and their fingerprint.

        Returns, raises: as `run`.
        """
        return self._run(function, lambda **who: leases.add_claimed(row=row, **who))

    def run_open(
        self, function: Function, *, most: int | None, at_random: bool, ended: Callable[[Attempt], None]
    ) -> int:
        """Run open experiments one after the other, until none is left or `most` were run; how many were.

        Those that wait after a failure are waited for, and those of daemons that look dead; not what runs elsewhere. An
        exception of the function is shown on stderr and recorded; an interrupt hands the experiment back and is raised
        again. Told to stop or to drain, it ends after the experiment that runs.

        Args:
            ended: told of every attempt when its end is stored.
        """
        store_here(self._config)  # if it fails, nothing was claimed
        self._queues = self._config.daemon.queues
        store, count = self._open(), 0
        try:
            while True:
                try:
                    with self._registered(store) as me, self._beside(self._serve, me):
                        while most is None or count < most:
                            claim = self._claim_next(store, me, at_random=at_random)
                            if claim is None:
                                return count
                            count += 1
                            self._run_claimed(store, me, claim, function, ended)
                        return count
                except exceptions.Fenced:  # declared dead, while this machine slept say
                    self._check_keyfields(store)
                    log.warning("daemon.fenced", id=me.id)
                    time.sleep(1)
        finally:
            store.close()

    def _check_keyfields(self, store: BlockingStore) -> None:
        """Whether we may claim at all.

        Raises:
            TableHasWrongStructureError: the table has keyfields without which we would run its experiments.
        """
        state = _insist(lambda _: store.read(structure.inspect(self.table)))
        if new := structure.not_ours(self.table, state.added):
            raise exceptions.TableHasWrongStructureError(
                f"table {self.table.name} has a new keyfield {', '.join(new)}",
                hint="add it to the keyfields of the configuration",
            )

    def _run_claimed(
        self,
        store: BlockingStore,
        me: Incarnation,
        claim: Claim,
        function: Function,
        ended: Callable[[Attempt], None],
    ) -> None:
        """Run one experiment of several; that somebody took it meanwhile is not the end."""
        try:
            attempt = self._attempt(store, me, claim, function)
            self._record(store, me, attempt)
            ended(attempt)
        except exceptions.LeaseLost:
            log.warning("lease.lost", experiment_id=claim.experiment_id, attempt=claim.attempt)
        self._ledger.let_go(claim)
        if self._is_interrupted:
            raise KeyboardInterrupt

    def _claim_next(self, store: BlockingStore, me: Incarnation, *, at_random: bool) -> Claim | None:
        """The next open experiment of our queues; None when nothing is left but what runs elsewhere."""
        while not self._control.draining and not self.is_time_up:
            if self._ear.is_fenced:  # while we are paused no claim would tell
                raise exceptions.Fenced(f"daemon {me.id} was declared dead")
            for queue in self._queues if not self._control.paused else ():
                claim = _insist(partial(self._claim_first, store, me, queue, at_random=at_random))
                if claim is not None:
                    return claim
            if not _insist(lambda _: store.read(reads.count_unfinished(self.table, queues=self._queues))):
                return None
            time.sleep(self._config.daemon.poll.shortest_s)
        if not self._control.draining:
            log.info("allocation.ending", left_s=round((end_of_allocation() or 0.0) - time.time(), 1))
        return None

    @property
    def is_time_up(self) -> bool:
        """Whether the allocation of a batch system in which this runs ends before an experiment could be saved."""
        ends, config = end_of_allocation(), self._config
        last_s = config.daemon.drain_timeout_s + config.limits.grace_s + LAST_WORDS_S
        return ends is not None and time.time() > ends - last_s

    def _claim_first(
        self, store: BlockingStore, me: Incarnation, queue: str, _repeated: bool, *, at_random: bool
    ) -> Claim | None:
        """The first experiment of a queue, also when the reply of the claim was lost.

        Raises:
            ConnectionLost: nothing is held from this call.
            Fenced: this incarnation was declared dead.
        """
        token, started = make_token(), local_time()
        unit = leases.claim(
            self.table,
            me=me,
            token=token,
            queue=queue,
            limit=1,
            name=self._name,
            machine=self._host.name,
            at_random=at_random,
            started=started,
        )
        self._ledger.sending(token)
        claims: list[Claim] = []
        try:
            claims = store.run(unit)
        except exceptions.ConnectionLost as error:
            if not error.unknown:
                raise
            taken = leases.read_back(self.table, me=me, token=token, started=started)
            claims = _insist(lambda _: store.read(taken))
        finally:
            # What it takes after this under that token is handed back by the audit, and never run.
            self._ledger.answered(token, claims)
        return claims[0] if claims else None

    @contextmanager
    def _beside(self, services: Callable[..., Awaitable[None]], me: Incarnation) -> Iterator[None]:
        """Meanwhile, in a thread of their own, services over a connection of theirs."""

        async def run(*, task_status: TaskStatus[None]) -> None:
            link = Link(open_store(self._config, credentials=self._credentials))
            try:
                await services(link, me, task_status)
            finally:
                with anyio.CancelScope(shield=True):
                    await link.store.close()

        with start_blocking_portal() as portal:
            running, _ = portal.start_task(run)
            try:
                yield
            finally:
                running.cancel()

    async def _obey(self, link: Link, me: Incarnation, task_status: TaskStatus[None]) -> None:
        """Do what is asked for, and say how it goes."""
        orders = self._orders(link, me)

        async def listen() -> None:
            while True:
                orders.hear((await self._ear.take()).commands)

        async def describe_itself() -> None:
            while True:
                self._heartbeat.facts = json.dumps(self._facts())
                await anyio.sleep(self._config.daemon.heartbeat_s / 2)

        async with anyio.create_task_group() as duties:
            for duty in (orders.obey, listen, describe_itself):
                duties.start_soon(kept_up, duty)
            task_status.started()

    async def _serve(self, link: Link, me: Incarnation, task_status: TaskStatus[None]) -> None:
        """The duties of every daemon: store what dead processes of this host spooled, requeue what died with them,
        promote what has waited, and do what is asked for.

        It counts as started after a first look.
        """
        config, fleet = self._config, Fleet()
        spool = Spool(config.state / "spool" / mark_of(config, credentials=self._credentials))
        replay = Replay(link, self.table, self._policy, own=spool, host=self._host.name, ended=lambda *_: None)
        rescue = Rescue(
            link,
            self.table,
            self._host,
            self._policy,
            blind_until=lambda: self._heartbeat.blind_until,
            is_own=lambda row: row.me == me,
            may_sweep=replay.may_sweep,
            database=config.database_path if config.database.provider == "sqlite" else None,
            fleet=fleet,
        )
        promotion = Promotion(link, self.table, promoted=lambda: None, fleet=fleet)
        with suppress(exceptions.DatabaseError):  # then the second look is the first
            await replay.run_once()
            await rescue.run_once()
        async with anyio.create_task_group() as duties:
            for duty in (replay.run, rescue.run, promotion.run):
                duties.start_soon(kept_up, duty)
            await self._obey(link, me, task_status)

    def _facts(self) -> dict[str, Any]:
        """What a daemon without slots has to say of itself, see `daemon/facts.py`."""
        return {
            "schema": VERSION,
            "running": len(self._ledger.claims()),
            "paused": self._control.paused,
            "draining": self._control.draining,
            "queues": self._queues,
            "keyfields": list(self.table.keyfields),
        }

    def _orders(self, link: Link, me: Incarnation) -> Orders:
        return Orders(
            link,
            self.table,
            self._control,
            running=lambda: len(self._ledger.claims()),
            failure=lambda: None,
            patience_s=lambda: self._config.daemon.drain_timeout_s,
            reload=lambda: "refused: a script reads its configuration once",
            dump=lambda: log.info("daemon.dump", running=[claim.experiment_id for claim in self._ledger.claims()]),
            incarnations=(me.uuid,),
            can_break_off=False,
        )

    def _run(self, function: Function, take: Callable[..., Unit[Claim | None]]) -> Attempt | None:
        store_here(self._config)  # if it fails, nothing was claimed
        store = self._open()
        try:
            with self._registered(store) as me:
                claim = self._claim(store, me, take)
                if claim is None:
                    return None
                with self._beside(self._obey, me):
                    attempt = self._attempt(store, me, claim, function)
                    self._record(store, me, attempt)
                self._ledger.let_go(claim)
        finally:
            store.close()
        if self._is_interrupted:
            raise KeyboardInterrupt
        return attempt

    def _open(self) -> BlockingStore:
        return open_blocking_store(self._config, credentials=self._credentials, daemon=True)

    @contextmanager
    def _registered(self, store: BlockingStore) -> Iterator[Incarnation]:
        uuid, lock = make_token(), None
        self._ear = _Ear()
        alive_here.add(uuid)
        if self._config.database.provider == "sqlite":
            lock = lock_lease(self._config.database_path, uuid)
        lease_s, every_s = self._config.daemon.lease_s, self._config.daemon.heartbeat_s
        row = make_row(self._host, uuid, name=self._name, slots=1, lease_s=lease_s, lock=lock)
        self._heartbeat = heartbeat = Heartbeat(
            self._open, self.table, self._ledger, self._ear, every_s=every_s, lease_s=lease_s, watchdog_s=float("inf")
        )
        try:
            me = store.run(daemons.register(self.table, row))
            heartbeat.start(me)
            try:
                yield me
            finally:
                self._sign_off(store, me)
                heartbeat.stop()
        finally:
            self._ear.close()
            alive_here.discard(uuid)
            if lock is not None:
                lock.release(remove=True)

    def _sign_off(self, store: BlockingStore, me: Incarnation) -> None:
        try:
            store.run(daemons.change_state(self.table, me=me, state="stopped"))
            store.run(commands.close(self.table, incarnations=[me.uuid]))
        except exceptions.DatabaseError as error:
            log.warning("daemon.not_signed_off", error=str(error))

    def _claim(self, store: BlockingStore, me: Incarnation, take: Callable[..., Unit[Claim | None]]) -> Claim | None:
        token = make_token()
        self._ledger.sending(token)
        claim = store.run(take(table=self.table, me=me, token=token, name=self._name, machine=self._host.name))
        self._ledger.answered(token, [claim] if claim else [])
        return claim

    def _attempt(self, store: BlockingStore, me: Incarnation, claim: Claim, function: Function) -> Attempt:
        """Call the function and make of what it did an attempt."""
        recorder = _StoreRecorder(self, store, me, claim)
        processor = result_processor(self._config, recorder, experiment_id=claim.experiment_id, attempt=claim.attempt)
        emissions = Emissions(self._config.tracking)
        meter = Meter()
        attempt = Attempt(
            claim=claim,
            outcome=Outcome.DONE,
            started=time.time(),
            pid=os.getpid(),
            code_version=code_version(function.source_file) if function.source_file else None,
        )
        emissions.start()
        meter.start()
        report = self._call(function, claim, processor)
        used = meter.read()
        measured = emissions.stop()
        if trouble := emissions.take_trouble():
            log.warning("emissions.incomplete", reason=trouble)
        return replace(
            attempt,
            outcome=Outcome(report["outcome"]),
            error=report["error"],
            results=report["results"],
            ended=time.time(),
            cpu_seconds=used["cpu_seconds"],
            peak_rss_bytes=used["peak_rss_bytes"],
            emissions=measured,
        )

    def _call(self, function: Function, claim: Claim, processor: ResultProcessor) -> dict[str, Any]:
        custom = copy.deepcopy(self._config.custom)
        try:
            report: dict[str, Any] = judge(function(dict(claim.keyfields), processor, custom), processor)
            processor.close()
        except exceptions.LeaseLost:
            raise
        except BaseException as error:  # noqa: BLE001 the user's function may raise anything, SystemExit too
            with suppress(exceptions.RowRefused):  # a log row: what is recorded is the first fault
                processor.close()
            if isinstance(error, KeyboardInterrupt):
                self._is_interrupted = True
                return {"outcome": self._interrupted, "error": None, "results": {}}
            sys.stderr.write(describe(error))
            return {"outcome": Outcome.ERROR, "error": describe(error), "results": {}}
        return report

    def _record(self, store: BlockingStore, me: Incarnation, attempt: Attempt) -> None:
        """Store the end; an interrupt gives up waiting for a database that is away."""
        report = Report(claim=attempt.claim, end=attempt)
        try:
            verdict = self.record(store, me, report)
        except exceptions.RowRefused as error:
            attempt = replace(attempt, outcome=Outcome.ERROR, error=f"its result cannot be stored: {error}", results={})
            verdict = self.record(store, me, Report(claim=attempt.claim, end=attempt))
        if verdict is Verdict.SUPERSEDED:
            raise exceptions.LeaseLost(attempt.claim.experiment_id)

    def record(self, store: BlockingStore, me: Incarnation, report: Report) -> Verdict:
        """Write a report under its claim, through outages."""

        def write(repeated: bool) -> list[Verdict]:
            unit = reports.record(
                self.table, [report], me=me, host=self._host.name, policy=self._policy, repeated=repeated
            )
            return store.run(unit)

        return _insist(write)[0]

    def should_stop(self, claim: Claim) -> bool:
        """Whether somebody cancelled or took the experiment, or this is to end, or the allocation does soon."""
        return self._ear.is_over(claim) or self._control.draining or self.is_time_up


def _insist(write: Callable[[bool], T]) -> T:
    """Write until the database answers; `write` is told whether an earlier try may have been committed."""
    repeated = False
    for turn in itertools.count():
        try:
            return write(repeated)
        except exceptions.ConnectionLost as error:
            repeated = repeated or error.unknown
            log.warning("database.lost", error=str(error))
            time.sleep(min(_LONGEST_PAUSE_S, 0.5 * 2.0 ** min(turn, 10)))
    raise AssertionError


class _Ear(Mailbox[Heard]):
    """Hears of the heartbeat what concerns the one experiment."""

    def __init__(self) -> None:
        super().__init__()
        self.is_fenced = False
        self._over: set[Held] = set()

    def is_over(self, claim: Claim) -> bool:
        """Whether somebody cancelled or took an experiment."""
        return self.is_fenced or claim.key in self._over

    def put(self, letter: Heard) -> None:
        # By experiment: what is said of one that has just ended does not concern the next.
        self._over.update(letter.audit.cancelled, letter.audit.taken)
        self.is_fenced = self.is_fenced or not letter.alive
        if letter.commands:
            super().put(letter)


class _StoreRecorder:
    """Writes what the function has to say to the database at once; shared by the function's threads."""

    def __init__(self, here: Here, store: BlockingStore, me: Incarnation, claim: Claim) -> None:
        self._here = here
        self._store = store
        self._me = me
        self._claim = claim
        self._lock = threading.RLock()
        self._rows_so_far: dict[str, int] = {}

    def send_results(self, results: dict[str, Any]) -> None:
        """Store the results; return when they are in the database."""
        self._write(Report(claim=self._claim, results=results))

    def send_snapshot(self, state_id: str, part: int, data: bytes, head: dict[str, Any] | None) -> None:
        """Store a part of a snapshot."""
        self._write(snapshot_report(self._claim, state_id, part, data, head))

    def look_up(self, what: str, arguments: dict[str, Any]) -> Any:
        """What the database has."""
        unit = lookups.look_up(self._here.table, self._claim.experiment_id, what, arguments)
        with self._lock:
            return _insist(lambda _: self._store.read(unit))

    def send_logs(self, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        """Store log rows."""
        with self._lock:
            self._write(Report(claim=self._claim, logs=tuple(self._numbered(*row) for row in rows)))

    def send_progress(self, fraction: float | None, description: str | None) -> None:
        """Nothing: the one who watches sees what the function prints, and may be in a debugger."""

    def should_stop(self) -> bool:
        """Whether the experiment was cancelled or taken."""
        return self._here.should_stop(self._claim)

    def _numbered(self, logtable: str, moment: float, columns: Mapping[str, Any]) -> LogRow:
        seq = self._rows_so_far[logtable] = self._rows_so_far.get(logtable, 0) + 1
        return LogRow(logtable=logtable, seq=seq, time=moment, columns=columns)

    def _write(self, report: Report) -> None:
        with self._lock:
            verdict = self._here.record(self._store, self._me, report)
        if verdict is Verdict.SUPERSEDED:
            raise exceptions.LeaseLost(self._claim.experiment_id)
