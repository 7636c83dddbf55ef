"""A slot: the place for one experiment at a time, and the children that fill it one after the other."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Attempt, Claim, Outcome, SnapshotHead, SnapshotPart
from pyexp_daemon.worker import channel
from pyexp_daemon.worker.channel import Message
from pyexp_daemon.worker.life import SignsOfLife
from pyexp_daemon.worker.limits import SlotSettings
from pyexp_daemon.worker.output import BoundedLog
from pyexp_daemon.worker.process import ChildProcess, End
from pyexp_daemon.worker.provenance import CodeVersions

log = get_logger()

_EARLY_DEATHS = 3
_EARLY_PAUSE_S = 0.2
_RECOVERY_S = 60.0
_TOLD_TOGETHER_S = 1.0
_DUMPED = (Outcome.TIMEOUT, Outcome.STALLED)


class Events(Protocol):
    """What the slots tell the daemon. Calls for one experiment come in order, one at a time."""

    async def results(self, claim: Claim, results: dict[str, Any]) -> None:
        """Store results of a running experiment; return when they are durable.

        Raises:
            PyExperimenterError: they are refused (LeaseLost, RowRefused, …); the function gets this exception.
        """

    async def snapshot(self, claim: Claim, part: SnapshotPart, head: SnapshotHead | None) -> None:
        """Store a part of a snapshot, as `results` stores results; with its head it is complete."""

    async def look_up(self, claim: Claim, what: str, arguments: dict[str, Any]) -> Any:
        """What the database has, for a running experiment; waits while the database is away.

        Raises:
            PyExperimenterError: there is no such thing; the function gets this exception.
        """

    async def logs(self, claim: Claim, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        """Take log rows: logtable, seconds since the epoch, columns.

        Raises:
            PyExperimenterError: they are refused; the function gets this exception at its next call.
        """

    async def finished(self, attempt: Attempt) -> None:
        """Take an attempt that has ended; must not wait long, the slot's next experiment runs already."""

    def progress(self, claim: Claim, fraction: float | None, description: str | None) -> None:
        """Note how far an experiment is."""


class SlotState(StrEnum):
    """What a slot is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a running attempt is brought to an end, and what it will be called."""

    outcome: Outcome
    reason: str


@dataclass(slots=True, kw_only=True)
class Run:
    """The attempt that a slot has under way.

    `is_only_ordered`: nothing was said to the child since the order. `listens`: its function looks at `should_stop`.
    """

    claim: Claim
    output: BoundedLog
    started: float
    began: float
    """The same moment on the monotonic clock, which nobody sets back."""
    deadline: float | None
    life: SignsOfLife
    is_only_ordered: bool = True
    listens: bool = False
    verdict: Verdict | None = None
    report: Message | None = None
    asked_to_stop: anyio.Event = field(default_factory=anyio.Event)


class Slot:
    """Runs experiments in a child, and starts another child when that one is used up or dead.

    Args:
        number: which slot of the daemon this is, from 0.
        settings: gives what the next child is to run.
        events: hears what the experiments have to say.
        versions: knows the version of the code.
        next_claim: gives the experiment to go on with, or None.
        return_claim: takes an experiment back that could not begin, to be the next one.
        on_change: called when the slot has become free, broken or ready.
    """

    def __init__(
        self,
        number: int,
        *,
        settings: Callable[[], SlotSettings],
        events: Events,
        versions: CodeVersions,
        next_claim: Callable[[], Claim | None],
        return_claim: Callable[[Claim], None],
        on_change: Callable[[], None],
    ) -> None:
        self.number = number
        self.state = SlotState.STARTING
        self.failure: exceptions.FunctionError | exceptions.ChildrenCannotStart | None = None
        self._get_settings = settings
        self._use(settings())
        self._events = events
        self._versions = versions
        self._next_claim = next_claim
        self._return_claim = return_claim
        self._on_change = on_change
        self._child: ChildProcess | None = None
        self._run: Run | None = None
        self._repaired = anyio.Event()
        self._early_deaths = 0
        self._storing: anyio.CancelScope | None = None
        self._begin_life()

    def _use(self, settings: SlotSettings) -> None:
        self._settings = settings
        self._logs, self._workdirs = str(settings.logs.absolute()), str(settings.workdirs.absolute())

    def _begin_life(self) -> None:
        self._is_retiring = False
        self._is_ready = False
        self._born = time.monotonic()
        self._experiments = 0
        self._cpu_total = 0.0
        self._code_version: str | None = None

    @property
    def claim(self) -> Claim | None:
        """The experiment that runs here."""
        return None if self._run is None else self._run.claim

    @claim.setter
    def claim(self, claim: Claim) -> None:
        assert self._run is not None
        self._run.claim = claim

    @property
    def pid(self) -> int | None:
        """The child's process."""
        return None if self._child is None else self._child.pid

    @property
    def deadline(self) -> float | None:
        """When the attempt here has taken too long (monotonic)."""
        return None if self._run is None else self._run.deadline

    def silence_s(self, now: float) -> float:
        """Seconds since the attempt here was last seen to be alive; 0 when nothing runs."""
        return 0.0 if self._run is None else self._run.life.silence_s(now)

    @property
    def running_s(self) -> float:
        """Seconds since the attempt here began; 0 when nothing runs."""
        return 0.0 if self._run is None else time.monotonic() - self._run.began

    @property
    def listens(self) -> bool:
        """Whether something runs here that looks whether it should stop."""
        return self._run is not None and self._run.listens

    async def run(self) -> None:
        """Keep a child in this slot. Cancelling this kills it with all it brought about, and reports nothing."""
        while True:
            self._begin_life()
            self._enter(SlotState.STARTING)
            await self._run_child()
            if self.failure is not None:
                self._enter(SlotState.BROKEN)
                log.error("slot.broken", slot=self.number, error=str(self.failure))
                await self._wait_for_repair(self.failure)
            elif not self._is_retiring and not self._experiments:
                await anyio.sleep(_EARLY_PAUSE_S * max(1, self._early_deaths))

    async def _wait_for_repair(self, failure: exceptions.PyExperimenterError) -> None:
        """A person repairs a function, and says so; a machine that could start no child may recover by itself."""
        if isinstance(failure, exceptions.FunctionError):
            await self._repaired.wait()
            return
        with anyio.move_on_after(_RECOVERY_S):
            await self._repaired.wait()
        self.repair()

    def begin(self, claim: Claim) -> None:
        """Run this experiment in the idle child, now."""
        assert self._child is not None
        settings = self._settings
        self._run = Run(
            claim=claim,
            output=BoundedLog(
                f"{self._logs}/{claim.experiment_id}-{claim.attempt}.log",
                size_bytes=settings.log_size_bytes,
                echo=partial(settings.echo, self.number) if settings.echo else None,
            ),
            started=time.time(),
            began=time.monotonic(),
            deadline=None if settings.timeout_s is None else time.monotonic() + settings.timeout_s,
            life=SignsOfLife(time.monotonic()),
        )
        self.state = SlotState.BUSY
        self._child.output.turn_to(self._run.output)
        order: Message = {
            "kind": "run",
            "experiment_id": claim.experiment_id,
            "attempt": claim.attempt,
            "keyfields": claim.keyfields,
            "workdir": f"{self._workdirs}/{claim.experiment_id}",
        }
        try:
            self._child.send(order)
        except (TypeError, ValueError) as error:
            self.condemn(Verdict(outcome=Outcome.ERROR, reason=f"the keyfields cannot be sent to a child: {error}"))

    def condemn(self, verdict: Verdict) -> None:
        """Bring the running attempt to an end; the first verdict counts."""
        if self._run is None or self._run.verdict is not None:
            return
        self._run.verdict = verdict
        if self._storing is not None:
            self._storing.cancel()  # nobody waits for that any more
        if self._child is not None:
            self._child.end_soon(dump=verdict.outcome in _DUMPED)

    async def wait_gone(self) -> None:
        """Return when the present child and all it brought about are gone."""
        if self._child is not None:
            await self._child.gone.wait()

    def enforce_timeout(self, now: float) -> None:
        """Condemn the attempt if it has taken too long."""
        if self._run is not None and self._run.deadline is not None and now >= self._run.deadline:
            reason = f"timeout: the attempt took longer than {self._settings.timeout_s:g} s"
            self.condemn(Verdict(outcome=Outcome.TIMEOUT, reason=reason))

    def enforce_memory(self, used_bytes: int) -> None:
        """Condemn the attempt if its processes hold too much."""
        limit_bytes = self._settings.memory_bytes
        if limit_bytes is not None and used_bytes > limit_bytes:
            reason = f"memory limit: the experiment's processes hold {used_bytes} bytes, the limit is {limit_bytes}"
            self.condemn(Verdict(outcome=Outcome.ERROR, reason=reason))

    def watch_life(self, now: float, cpu_s: float) -> None:
        """Look for signs of life; condemn the attempt if it has given none for longer than it may."""
        run, limit_s = self._run, self._settings.stalled_s
        if run is None:
            return
        run.life.look(now, cpu_s=cpu_s, output_bytes=run.output.count_bytes)
        if limit_s is not None and run.life.silence_s(now) > limit_s:
            reason = f"stalled: no sign of life for {limit_s:g} s"
            self.condemn(Verdict(outcome=Outcome.STALLED, reason=reason))

    def ask_to_stop(self) -> None:
        """Tell the running experiment, if it asks, that it should come to an end."""
        if self._run is not None:
            self._run.asked_to_stop.set()
        if self._run is not None and self._child is not None:
            self._run.is_only_ordered = False
            self._child.send({"kind": "stop"})

    def tell_end(self) -> None:
        """Tell a child that is ready, or will be, when this node ends all of it."""
        if self._is_ready and self._child is not None:
            self._child.send({"kind": "ends", "ends": self._get_settings().ends})

    def replace(self) -> None:
        """Start a fresh child: now if this one is idle, else when it has finished."""
        self._is_retiring = True
        if self.state is SlotState.IDLE and self._child is not None:
            self._retire(self._child)

    def repair(self) -> None:
        """Try again after a failure."""
        if self.failure is not None:
            self.failure = None
            self._early_deaths = 0
            self.state = SlotState.STARTING
            self._repaired.set()
            self._repaired = anyio.Event()

    async def _run_child(self) -> None:
        """One child's life, to its very end, and the report on what it left unfinished."""
        self._use(self._get_settings())
        try:
            load = _load_order(self._settings)
            child = ChildProcess(self._settings, slot=self.number)
        except exceptions.ChildrenCannotStart as error:
            self._note_failed_start(error)
            return
        except OSError as error:  # no descriptor, no memory
            self._note_failed_start(exceptions.ChildrenCannotStart(f"cannot start a child: {error.strerror}"))
            return
        self._child = child
        try:
            async with child.attended():
                child.send(load)
                await self._converse(child)
                self.state = SlotState.STARTING if self._run is None else SlotState.BUSY
                end = await child.end(ask=self._run is None)
        finally:
            self._child = None
        await self._bury(child, end)

    async def _converse(self, child: ChildProcess) -> None:
        while (message := await child.receive()) is not None:
            match message["kind"]:
                case "finished":
                    await self._on_finished(child, message)
                case "results" | "snapshot" | "look_up":
                    await self._on_question(child, message)
                case "logs":
                    await self._on_logs(child, message)
                case "progress":
                    self._on_progress(message)
                case "listens":
                    self._on_listens(message)
                case "ready":
                    await self._on_ready(child, message)
                case "broken" if not self._is_retiring:  # else with code that may be repaired by now
                    self.failure = exceptions.FunctionError(
                        message["message"], hint=message["hint"], traceback=message["traceback"]
                    )

    async def _on_ready(self, child: ChildProcess, message: Message) -> None:
        self._cpu_total = message["cpu_total"]
        self._code_version = await self._versions.find(message["file"], since=self._born)
        self._early_deaths = 0
        self._is_ready = True
        if self._get_settings().ends is not None:
            self.tell_end()
        log.info("slot.started", slot=self.number, pid=child.pid, code_version=self._code_version)
        _pass_on_trouble(message)
        self._go_on(child)
        self._on_change()

    async def _on_finished(self, child: ChildProcess, message: Message) -> None:
        run = self._run
        if run is None:
            return
        child.output.catch_up()
        run.report = message
        _pass_on_trouble(message)
        if run.verdict is not None:
            return  # its end is under way: the report comes with it
        attempt = self._make_attempt(child.pid, run, Outcome(message["outcome"]), message["error"])
        child.output.target.close()
        self._run = None
        self._experiments += 1
        self._cpu_total = message["cpu_total"]
        self._is_retiring = self._is_retiring or self._is_used_up(message["rss_bytes"])
        self._go_on(child)
        await self._events.finished(attempt)
        if self._run is None:
            self._on_change()

    async def _on_question(self, child: ChildProcess, message: Message) -> None:
        """Do what a running experiment waits for, and tell it what came of that."""
        run, number = self._run, message["number"]
        if run is None or run.claim.experiment_id != message["experiment_id"]:
            child.send(_refusal(exceptions.UsageError("that experiment is over"), number))
            return
        run.is_only_ordered = False
        run.life.wait_for_us()
        with anyio.CancelScope() as self._storing:
            try:
                child.send(await self._answer(run.claim, message))
            except exceptions.PyExperimenterError as error:
                child.send(_refusal(error, number))
            except Exception as error:  # what one function asks for must not be the end of the daemon
                log.exception("question.failed", experiment_id=run.claim.experiment_id, attempt=run.claim.attempt)
                child.send(_refusal(exceptions.UsageError(f"{type(error).__name__}: {error}"), number))
        run.life.go_on(time.monotonic())

    async def _answer(self, claim: Claim, message: Message) -> Message:
        stored: Message = {"kind": "stored", "number": message["number"]}
        match message["kind"]:
            case "results":
                await self._events.results(claim, message["results"])
            case "snapshot":
                part = SnapshotPart(message["state_id"], message["part"], message["data"])
                head = message["head"]
                await self._events.snapshot(
                    claim, part, None if head is None else SnapshotHead(state_id=message["state_id"], **head)
                )
            case "look_up":
                answer = await self._events.look_up(claim, message["what"], message["arguments"])
                return {"kind": "found", "number": message["number"], "answer": answer}
        return stored

    async def _on_logs(self, child: ChildProcess, message: Message) -> None:
        run = self._run
        if run is None or run.claim.experiment_id != message["experiment_id"]:
            return
        run.is_only_ordered = False
        run.life.note(time.monotonic())
        try:
            await self._events.logs(run.claim, [(table, at, columns) for table, at, columns in message["rows"]])
        except exceptions.PyExperimenterError as error:
            child.send(_refusal(error, None))

    def _on_progress(self, message: Message) -> None:
        run = self._run
        if run is not None and run.claim.experiment_id == message["experiment_id"]:
            run.life.note(time.monotonic())
            self._events.progress(run.claim, message["fraction"], message["description"])

    def _on_listens(self, message: Message) -> None:
        if self._run is not None and self._run.claim.experiment_id == message["experiment_id"]:
            self._run.listens = True

    def _go_on(self, child: ChildProcess) -> None:
        """What a child without an experiment does next: retire, begin the next one, or wait."""
        if self._is_retiring:
            self._retire(child)
            return
        self.state = SlotState.IDLE
        claim = self._next_claim()
        if claim is not None:
            self.begin(claim)

    def _retire(self, child: ChildProcess) -> None:
        self.state = SlotState.STARTING
        child.hang_up()

    def _is_used_up(self, rss_bytes: int | None) -> bool:
        settings = self._settings
        return (
            settings.isolation == "fresh"
            or (settings.recycle_experiments is not None and self._experiments >= settings.recycle_experiments)
            or (settings.recycle_memory_bytes is not None and (rss_bytes or 0) > settings.recycle_memory_bytes)
        )

    async def _bury(self, child: ChildProcess, end: End) -> None:
        """Say what the death of a child means: for its experiment, if it had one; for the slot, if it came early."""
        run = self._run
        if run is not None and run.verdict is None and run.is_only_ordered and child.has_left_unread:
            self._run = None  # it had died before: the experiment has not begun
            self._return_claim(run.claim)
        if self._run is not None:
            await self._report_killed(child, self._run, end)
        elif not self._is_ready and not self._is_retiring and self.failure is None:
            self._note_early_death(child, end)
        elif not self._is_retiring and self.failure is None:
            log.warning("slot.died", slot=self.number, pid=child.pid, reason=str(end))

    async def _report_killed(self, child: ChildProcess, run: Run, end: End) -> None:
        explained = run.verdict or await _explain_death(child, run, end)
        verdict = run.verdict or explained  # the first counts, should it have come meanwhile
        log.warning(
            "attempt.killed" if run.verdict else "slot.died",
            slot=self.number,
            pid=child.pid,
            experiment_id=run.claim.experiment_id,
            attempt=run.claim.attempt,
            outcome=verdict.outcome,
            reason=verdict.reason,
        )
        attempt = self._make_attempt(child.pid, run, verdict.outcome, verdict.reason, end)
        self._run = None
        self._experiments += 1
        await self._events.finished(attempt)
        self._on_change()

    def _note_failed_start(self, error: exceptions.ChildrenCannotStart) -> None:
        # Once may be a moment without memory or processes to spare.
        self._early_deaths += 1
        log.warning("slot.not_started", slot=self.number, error=str(error))
        if self._early_deaths >= _EARLY_DEATHS:
            self.failure = error

    def _note_early_death(self, child: ChildProcess, end: End) -> None:
        self._early_deaths += 1
        last_words = (child.output.target.tail or "").strip().rpartition("\n")[2]
        reason = child.fault or f"{end}{': ' if last_words else ''}{last_words}"
        log.warning("slot.died", slot=self.number, pid=child.pid, reason=reason)
        if self._early_deaths >= _EARLY_DEATHS:
            self.failure = exceptions.ChildrenCannotStart(
                f"children of {self._settings.python} die before they are ready: {reason}",
                hint="run the function's import by hand, with this interpreter",
            )

    def _make_attempt(self, pid: int, run: Run, outcome: Outcome, error: str | None, end: End | None = None) -> Attempt:
        report = run.report
        if report is not None:
            cpu_seconds, peak_rss_bytes = report["cpu_seconds"], report["peak_rss_bytes"]
        else:
            assert end is not None
            cpu_seconds, peak_rss_bytes = max(0.0, end.cpu_seconds - self._cpu_total), end.peak_rss_bytes
        return Attempt(
            claim=run.claim,
            outcome=outcome,
            started=run.started,
            # A clock that was set back must not make a short one of a long attempt: only long ones are spooled at once.
            ended=max(time.time(), run.started + time.monotonic() - run.began),
            pid=pid,
            error=error,
            exit_code=None if end is None else end.exit_code,
            signal=None if end is None else end.signal,
            cpu_seconds=cpu_seconds,
            peak_rss_bytes=peak_rss_bytes,
            code_version=self._code_version,
            log_tail=run.output.tail,
            results={} if end is not None or report is None else report["results"],
            emissions=None if report is None else report.get("emissions"),
        )

    def _enter(self, state: SlotState) -> None:
        self.state = state
        self._on_change()


def _load_order(settings: SlotSettings) -> Message:
    try:
        custom = None if settings.pickled else channel.dumps(dict(settings.custom))
    except (TypeError, ValueError) as error:
        raise exceptions.ChildrenCannotStart(f"the custom fields cannot be sent to a child: {error}") from error
    return {
        "kind": "load",
        "function": settings.function,
        "pickled": None if settings.pickled is None else str(settings.pickled),
        "store": settings.store,
        "project": str(settings.project),
        "custom": custom,
        "resultfields": list(settings.resultfields),
        "logtables": {table: list(columns) for table, columns in settings.logtables.items()},
        "codecarbon": settings.codecarbon,
        "max_message_bytes": settings.max_message_bytes,
    }


def _pass_on_trouble(message: Message) -> None:
    """Say what is wrong with the emissions: without the slot, so that what all slots find is one cause."""
    if message.get("emissions_trouble"):
        log.warning("emissions.incomplete", reason=message["emissions_trouble"])


def _refusal(error: exceptions.PyExperimenterError, number: int | None) -> Message:
    return {"kind": "refused", "number": number, "error": type(error).__name__, "message": str(error)}


async def _explain_death(child: ChildProcess, run: Run, end: End) -> Verdict:
    """What it means that a child died of itself, with an experiment.

    Batch systems send TERM to every process of a job: what died of it together with the daemon's own is not to blame.
    """
    reason = _describe_crash(child, end)
    if end.signal == signal.SIGTERM:
        with anyio.move_on_after(_TOLD_TOGETHER_S):
            await run.asked_to_stop.wait()
            return Verdict(outcome=Outcome.RELEASED, reason=f"{reason}, as its daemon was told to stop")
    return Verdict(outcome=Outcome.CRASH, reason=reason)


def _describe_crash(child: ChildProcess, end: End) -> str:
    return child.fault or f"{end} before the function returned"
