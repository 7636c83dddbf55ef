"""The pool: all slots of a daemon, and the experiments that wait for one."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from enum import StrEnum
from typing import Any

import anyio
import anyio.to_thread

from pyexp_daemon import exceptions
from pyexp_daemon.model import Attempt, Claim, Outcome
from pyexp_daemon.worker import strays
from pyexp_daemon.worker.limits import SlotSettings
from pyexp_daemon.worker.provenance import CodeVersions
from pyexp_daemon.worker.slot import Events, Slot, SlotState, Verdict

__all__ = ["Events", "Pool", "PoolState", "SlotSettings"]

_LONGEST_WATCH_S = 5.0
_MEMORY_WATCH_S = 0.5
_SHORTEST_WATCH_S = 0.01


class PoolState(StrEnum):
    """Whether experiments run."""

    STARTING = "starting"
    READY = "ready"
    BROKEN = "broken"


class Pool:
    """Runs the experiments it is given, each in a slot of its own, in the order in which they came.

    Assigning `settings` or `incarnation` changes what children get that start from then on.

    Args:
        settings: what the slots run.
        slots: how many experiments run at once, > 0.
        events: hears what becomes of them.
        reaps: whether orphans that become this process's children are the pool's; in somebody else's they are not.
    """

    def __init__(self, settings: SlotSettings, *, slots: int, events: Events, reaps: bool = True) -> None:
        self.settings = settings
        self._reaps = reaps
        self._events = events
        self._queue: deque[Claim] = deque()
        self._changed: anyio.Event | None = None
        self._orphans = strays.OrphanKeeper()
        versions = CodeVersions()
        self._slots = [
            Slot(
                number,
                settings=lambda: self.settings,
                events=events,
                versions=versions,
                next_claim=self._next_claim,
                return_claim=self._queue.appendleft,
                on_change=self._notify,
            )
            for number in range(slots)
        ]

    @property
    def incarnation(self) -> str:
        """The daemon's identity, with which the processes of children are marked."""
        return self.settings.incarnation

    @incarnation.setter
    def incarnation(self, uuid: str) -> None:
        self.settings = dataclasses.replace(self.settings, incarnation=uuid)

    @property
    def state(self) -> PoolState:
        """Ready as soon as one slot is; broken as long as one cannot start, and then nothing is begun."""
        if self.failure is not None:
            return PoolState.BROKEN
        is_ready = any(slot.state in (SlotState.IDLE, SlotState.BUSY) for slot in self._slots)
        return PoolState.READY if is_ready else PoolState.STARTING

    @property
    def failure(self) -> exceptions.FunctionError | exceptions.ChildrenCannotStart | None:
        """Why the pool is broken: the function cannot be imported (with its traceback), or no child can start."""
        failures = [slot.failure for slot in self._slots if slot.failure is not None]
        unusable = next((failure for failure in failures if isinstance(failure, exceptions.FunctionError)), None)
        return unusable or (failures[0] if len(failures) == len(self._slots) else None)

    @property
    def free(self) -> int:
        """How many more experiments would begin at once."""
        if self.failure is not None:
            return 0
        return max(0, sum(slot.state is SlotState.IDLE for slot in self._slots) - len(self._queue))

    @property
    def queued(self) -> list[Claim]:
        """What waits for a slot, next one first."""
        return list(self._queue)

    @property
    def waiting(self) -> int:
        """How many experiments wait for a slot."""
        return len(self._queue)

    @property
    def running(self) -> list[Claim]:
        """What runs, by slot. After `run` was cancelled: what it killed, and reported to nobody."""
        return [slot.claim for slot in self._slots if slot.claim is not None]

    @property
    def held(self) -> set[tuple[int, str]]:
        """What runs and what waits for a slot, by experiment and token."""
        return {claim.key for claim in (*self.running, *self._queue)}

    def age_s(self, claim: Claim) -> float:
        """For how many seconds an experiment has been running here; 0 when it is not."""
        return next((slot.running_s for slot in self._slots if slot.claim and slot.claim.key == claim.key), 0.0)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits; asked after every attempt, so it copies nothing."""
        return not self._queue and all(slot.claim is None for slot in self._slots)

    @property
    def pids(self) -> dict[int, int]:
        """The children's processes, by slot."""
        return {slot.number: slot.pid for slot in self._slots if slot.pid is not None}

    def running_for(self) -> dict[int, float]:
        """The experiments that run, and for how many seconds."""
        return {slot.claim.experiment_id: slot.running_s for slot in self._slots if slot.claim is not None}

    def silent(self, least_s: float) -> dict[int, float]:
        """The experiments that have given no sign of life for at least so many seconds, and for how many."""
        now = time.monotonic()
        silent = {slot.claim.experiment_id: slot.silence_s(now) for slot in self._slots if slot.claim is not None}
        return {experiment: round(seconds, 1) for experiment, seconds in silent.items() if seconds >= least_s}

    def describe(self) -> list[dict[str, Any]]:
        """What each slot is doing, for people."""
        now = time.monotonic()
        return [
            {
                "slot": slot.number,
                "state": slot.state.value,
                "pid": slot.pid,
                "experiment_id": slot.claim.experiment_id if slot.claim else None,
                "running_s": round(slot.running_s, 1),
                "silent_s": round(slot.silence_s(now), 1),
                "failure": str(slot.failure) if slot.failure else None,
            }
            for slot in self._slots
        ]

    async def run(self) -> None:
        """Keep the slots filled. Cancelling this kills every child with all it brought about, and verifies it."""
        async with anyio.create_task_group() as services:
            for slot in self._slots:
                services.start_soon(slot.run)
            services.start_soon(self._watch)

    def give(self, claim: Claim) -> None:
        """Run this experiment: now if a slot is idle, else as soon as one is."""
        self._queue.append(claim)
        idle = next((slot for slot in self._slots if slot.state is SlotState.IDLE), None)
        if idle is not None:
            next_claim = self._next_claim()
            if next_claim is not None:
                idle.begin(next_claim)

    def take_back(self) -> list[Claim]:
        """Everything that has not begun; it will not."""
        taken = list(self._queue)
        self._queue.clear()
        self._notify()
        return taken

    def rebind(self, old: Claim, new: Claim) -> bool:
        """Put another claim (with a new token) in the place of one we hold; False when we do not hold it."""
        for slot in self._slots:
            if slot.claim is not None and slot.claim.key == old.key:
                slot.claim = new
                return True
        for place, queued in enumerate(self._queue):
            if queued.key == old.key:
                self._queue[place] = new
                return True
        return False

    async def stop(self, claim: Claim, outcome: Outcome, reason: str) -> bool:
        """Bring an experiment to an end; its attempt then has this outcome, and `reason` as its error.

        Returns when all its processes are gone, shortly before the attempt is reported. What has not begun is
        reported at once, without a start. False when nothing is held here under this claim's token.
        """
        for slot in self._slots:
            if slot.claim is not None and slot.claim.key == claim.key:
                slot.condemn(Verdict(outcome=outcome, reason=reason))
                await slot.wait_gone()
                return True
        for queued in self._queue:
            if queued.key == claim.key:
                self._queue.remove(queued)
                await self._events.finished(Attempt(claim=queued, outcome=outcome, error=reason))
                self._notify()
                return True
        return False

    def ask_to_stop(self) -> None:
        """Set `should_stop` for every running experiment."""
        for slot in self._slots:
            slot.ask_to_stop()

    def tell_end(self, ends: float | None) -> None:
        """Tell experiments, those that run and those to come, when this node ends all of it; None: never."""
        self.settings = dataclasses.replace(self.settings, ends=ends)
        for slot in self._slots:
            slot.tell_end()

    @property
    def listeners(self) -> int:
        """How many running experiments look at `should_stop`."""
        return sum(slot.listens for slot in self._slots)

    async def wait_idle(self) -> None:
        """Return when nothing runs and nothing waits."""
        while not self.is_idle:
            await self.wait_change()

    async def wait_ready(self) -> None:
        """Return when experiments can begin.

        Raises:
            FunctionError, ChildrenCannotStart: they cannot; `retry` tries again.
        """
        while self.state is PoolState.STARTING:
            await self.wait_change()
        if self.failure is not None:
            raise self.failure

    async def wait_change(self) -> None:
        """Return when next a slot is left without work, gets ready or breaks, or the queue is taken back."""
        self._changed = self._changed or anyio.Event()
        await self._changed.wait()

    async def replace_idle(self) -> None:
        """Give idle slots fresh children, with fresh code, and wait for them; busy slots follow when they finish."""
        idle = [slot for slot in self._slots if slot.state is not SlotState.BUSY]
        for slot in self._slots:
            slot.replace()
        await self._wait_started(idle)

    async def retry(self) -> None:
        """Start anew what is broken, with fresh code everywhere; `state` says what came of it."""
        broken = [slot for slot in self._slots if slot.failure is not None]
        for slot in broken:
            slot.repair()
        await self.replace_idle()

    async def _wait_started(self, slots: list[Slot]) -> None:
        while any(slot.state is SlotState.STARTING for slot in slots):
            await self.wait_change()

    def _next_claim(self) -> Claim | None:
        return self._queue.popleft() if self._queue and self.failure is None else None

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _watch(self) -> None:
        """Enforce the limits of running attempts, and reap orphans."""
        memory_due = life_due = orphans_due = time.monotonic()
        while True:
            await anyio.sleep(self._pause_s())
            now = time.monotonic()
            for slot in self._slots:
                slot.enforce_timeout(now)
            if self.settings.memory_bytes is not None and now >= memory_due:
                memory_due = now + _MEMORY_WATCH_S
                await self._enforce_memory(self.settings.memory_bytes)
            if now >= life_due:
                life_due = now + _life_watch_s(self.settings.stalled_s)
                await self._watch_life()
            if self._reaps and now >= orphans_due:
                orphans_due = now + _LONGEST_WATCH_S
                await anyio.to_thread.run_sync(lambda: self._orphans.run_once(spare=self.pids.values()))

    def _pause_s(self) -> float:
        """Until the next deadline; no attempt that begins meanwhile can have an earlier one than its whole timeout."""
        now = time.monotonic()
        pauses = [slot.deadline - now for slot in self._slots if slot.deadline is not None]
        if self.settings.timeout_s is not None:
            pauses.append(self.settings.timeout_s)
        if self.settings.memory_bytes is not None:
            pauses.append(_MEMORY_WATCH_S)
        pauses.append(_life_watch_s(self.settings.stalled_s))
        return min(_LONGEST_WATCH_S, max(_SHORTEST_WATCH_S, min(pauses, default=_LONGEST_WATCH_S)))

    async def _enforce_memory(self, limit_bytes: int) -> None:
        if busy := self._busy():
            used = await anyio.to_thread.run_sync(_measure_memory, list(busy), limit_bytes)
            for pid, used_bytes in used.items():
                if busy[pid].pid == pid:
                    busy[pid].enforce_memory(used_bytes)

    async def _watch_life(self) -> None:
        if busy := self._busy():
            used = await anyio.to_thread.run_sync(_measure_cpu, list(busy))
            for pid, cpu_s in used.items():
                if busy[pid].pid == pid:
                    busy[pid].watch_life(time.monotonic(), cpu_s)

    def _busy(self) -> dict[int, Slot]:
        """The slots in which something runs, by the pid of their child."""
        return {slot.pid: slot for slot in self._slots if slot.state is SlotState.BUSY and slot.pid is not None}


def _life_watch_s(stalled_s: float | None) -> float:
    return _LONGEST_WATCH_S if stalled_s is None else min(2.0, max(0.1, stalled_s / 8))


def _measure_cpu(pids: list[int]) -> dict[int, float]:
    """The CPU seconds of the process trees of these children."""
    table = strays.processes()
    return {pid: sum(process.cpu_s for process in strays.tree(pid, table)) for pid in pids}


def _measure_memory(pids: list[int], limit_bytes: int) -> dict[int, int]:
    """What the process trees of these children hold; exactly where the rough figure is above the limit."""
    table = strays.processes()
    used = {}
    for pid in pids:
        members = strays.tree(pid, table)
        rough_bytes = sum(process.rss_bytes for process in members)
        used[pid] = strays.exact_bytes(members) if rough_bytes > limit_bytes else rough_bytes
    return used
