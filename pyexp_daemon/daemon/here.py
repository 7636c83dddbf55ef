"""One experiment in this process: claimed, held and recorded like any other, with the terminal attached."""

from __future__ import annotations

import copy
import importlib
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from pyexp_daemon import exceptions
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.heartbeat import Heard, Heartbeat
from pyexp_daemon.daemon.hosts import Host, lock_lease, make_row
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.mailbox import Mailbox
from pyexp_daemon.daemon.resources import result_processor, retry_policy
from pyexp_daemon.model import Attempt, Claim, Incarnation, LogRow, Outcome, Report, Verdict, make_token
from pyexp_daemon.result_processor import ResultProcessor
from pyexp_daemon.store import daemons, leases, open_blocking_store, reports
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Unit
from pyexp_daemon.worker.child import Meter, describe, judge
from pyexp_daemon.worker.emissions import Emissions
from pyexp_daemon.worker.function import Function
from pyexp_daemon.worker.provenance import code_version

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

T = TypeVar("T")
log = structlog.get_logger()

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
    """A daemon of one experiment, without slots: its own row and its own heartbeat, so that nobody rescues it."""

    def __init__(self, config: Config, *, name: str, credentials: Path | None = None) -> None:
        self._config = config
        self._name = name
        self._table = Table.of(config.database, codecarbon=config.tracking is not None)
        self._host = Host.here()
        self._policy = retry_policy(config)
        self._ledger = Ledger()
        self._ear = _Ear()
        self._credentials = credentials
        self._interrupted = Outcome.RELEASED
        self._is_interrupted = False

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

    def _run(self, function: Function, take: Callable[..., Unit[Claim | None]]) -> Attempt | None:
        store = self._open()
        try:
            with self._registered(store) as me:
                claim = self._claim(store, me, take)
                if claim is None:
                    return None
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
        if self._config.database.provider == "sqlite":
            lock = lock_lease(self._config.database_path, uuid)
        lease_s, every_s = self._config.daemon.lease_s, self._config.daemon.heartbeat_s
        row = make_row(self._host, uuid, name=self._name, slots=1, lease_s=lease_s, lock=lock)
        heartbeat = Heartbeat(
            self._open, self._table, self._ledger, self._ear, every_s=every_s, lease_s=lease_s, watchdog_s=float("inf")
        )
        try:
            me = store.run(daemons.register(self._table, row))
            heartbeat.start(me)
            try:
                yield me
            finally:
                self._sign_off(store, me)
                heartbeat.stop()
        finally:
            self._ear.close()
            if lock is not None:
                lock.release(remove=True)

    def _sign_off(self, store: BlockingStore, me: Incarnation) -> None:
        try:
            store.run(daemons.change_state(self._table, me=me, state="stopped"))
        except exceptions.DatabaseError as error:
            log.warning("daemon.not_signed_off", error=str(error))

    def _claim(self, store: BlockingStore, me: Incarnation, take: Callable[..., Unit[Claim | None]]) -> Claim | None:
        token = make_token()
        self._ledger.sending(token)
        claim = store.run(take(table=self._table, me=me, token=token, name=self._name, machine=self._host.name))
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
                self._table, [report], me=me, host=self._host.name, policy=self._policy, repeated=repeated
            )
            return store.run(unit)

        return _insist(write)[0]

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether somebody cancelled or took the experiment."""
        return self._ear.is_asked_to_stop


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

    is_asked_to_stop = False

    def put(self, letter: Heard) -> None:
        if letter.audit.cancelled or letter.audit.taken or not letter.alive:
            self.is_asked_to_stop = True


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

    def send_logs(self, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        """Store log rows."""
        with self._lock:
            self._write(Report(claim=self._claim, logs=tuple(self._numbered(*row) for row in rows)))

    def send_progress(self, fraction: float | None, description: str | None) -> None:
        """Nothing: the one who watches sees what the function prints, and may be in a debugger."""

    def should_stop(self) -> bool:
        """Whether the experiment was cancelled or taken."""
        return self._here.is_asked_to_stop

    def _numbered(self, logtable: str, moment: float, columns: Mapping[str, Any]) -> LogRow:
        seq = self._rows_so_far[logtable] = self._rows_so_far.get(logtable, 0) + 1
        return LogRow(logtable=logtable, seq=seq, time=moment, columns=columns)

    def _write(self, report: Report) -> None:
        with self._lock:
            verdict = self._here.record(self._store, self._me, report)
        if verdict is Verdict.SUPERSEDED:
            raise exceptions.LeaseLost(self._claim.experiment_id)
