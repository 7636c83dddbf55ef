"""Notices that this node fails what other nodes can do: a full disk, a missing library, a broken GPU.

Without this rule such a node would take one experiment after the other, faster than all others, and spoil the table.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.membership import Membership
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Attempt, Claim, Daemon, Outcome
from pyexp_daemon.store import daemons, verdicts
from pyexp_daemon.store.tables import Table

log = get_logger()

MOST_FAILURES = 10
"""So many fast failures in a row are looked into."""

FAST_S = 5.0
"""A failure before this time is fast: it says more about the node, or the function, than about the experiment."""

STEADY_S = 2 * FAST_S
"""An experiment that runs for so long has got beyond what fails fast."""

LOOK_S = 1.0
PATIENCE_S = 30.0
"""How long to wait for other nodes to show whether they get on, before we take the failures for genuine."""

LONGEST_CANARY_S = 3600.0
BY_NODE = "node"
"""The source of the pause of a node that is, or may be, broken."""

_BEFORE_S = 60.0
_LONGEST_WINDOW_S = 240.0
_MOST_REMEMBERED = 500


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the other daemons of the table show."""

    someone_gets_on: bool
    """A daemon that mostly succeeds, or has experiments that run steadily."""
    all_have_shown: bool
    """Every one has finished something, or there is none."""


class NodeHealth:
    """Watches how attempts end on this node; pauses the daemon when the node, not the experiments, is to blame."""

    def __init__(
        self,
        link: Link,
        table: Table,
        control: Control,
        membership: Membership,
        *,
        canary_s: Callable[[], float],
        running_for: Callable[[], Mapping[int, float]],
        flush: Callable[[], Awaitable[None]],
        queues: Callable[[], Sequence[str]],
    ) -> None:
        """
        Args:
            canary_s: how long to wait, on a broken node, before one experiment is tried.
            running_for: the experiments that run here, and for how many seconds.
            flush: returns when what has ended is stored.
            queues: those that this daemon serves.
        """
        self._link = link
        self._table = table
        self._control = control
        self._membership = membership
        self._canary_s = canary_s
        self._running_for = running_for
        self._flush = flush
        self._queues = queues
        self._streak: list[Claim] = []
        self._failures = 0
        self._streak_began = 0.0
        self._allowed = MOST_FAILURES
        self._changed = anyio.Event()
        self.is_broken = False
        """Whether this node was found to fail what others can do, and sits out."""
        self._canary: int | None = None
        self._wants_canary = False

    def ended(self, attempt: Attempt) -> None:
        """An attempt ended here; its end need not be stored yet."""
        if attempt.outcome in verdicts.FAILURES and _is_fast(attempt):
            if not self._failures:
                self._streak_began = time.monotonic()
            self._streak.append(attempt.claim)
            del self._streak[:-_MOST_REMEMBERED]
            self._failures += 1
            if self._failures >= self._allowed and not self.is_suspected:
                self._control.pause(BY_NODE, f"{self._failures} experiments in a row failed here at once")
            self._changed.set()
        elif self._failures and attempt.outcome in (Outcome.DONE, Outcome.PAUSED, *verdicts.FAILURES):
            self.forget()

    @property
    def is_suspected(self) -> bool:
        """Whether nothing is claimed because of what failed here."""
        return self._control.is_paused_by(BY_NODE)

    @property
    def wants_canary(self) -> bool:
        """Whether one experiment may be claimed although the node is paused."""
        return self._wants_canary and self._control.is_paused_only_by(BY_NODE)

    def canary_claimed(self, claim: Claim) -> None:
        """The one experiment was taken."""
        self._wants_canary, self._canary = False, claim.experiment_id

    def forget(self) -> None:
        """The node was repaired, or its code: what failed before says nothing any more."""
        self._streak.clear()
        self._failures, self._allowed = 0, MOST_FAILURES
        self._changed.set()

    async def run(self) -> None:
        """Judge the node whenever it is suspected, until cancelled."""
        while True:
            await self._wait_for(lambda: self.is_suspected)
            if await self._is_to_blame():
                await self._sit_out()
            elif self._streak:
                self._allowed = 2 * self._failures  # looked into again, but not all the time
            self._control.resume(BY_NODE)

    async def _is_to_blame(self) -> bool:
        """Whether others get on while everything failed here."""
        began = anyio.current_time()
        log.warning("node.suspected", failures=self._failures)
        while self._streak and anyio.current_time() - began < PATIENCE_S:
            if (found := await self._evidence()) is not None:
                if found.someone_gets_on:
                    return True
                if found.all_have_shown:
                    return False
            await self._wait_for(lambda: not self._streak, timeout=LOOK_S)
        return False

    async def _evidence(self) -> Evidence | None:
        """What the others show; None while the database is away."""
        window_s = min(time.monotonic() - self._streak_began, _LONGEST_WINDOW_S) + _BEFORE_S
        try:
            rows = await self._link.read(daemons.look(self._table))
            counts = await self._link.read(verdicts.lately(self._table, seconds=window_s))
        except exceptions.DatabaseError as error:
            log.warning("node.not_judged", error=str(error))
            return None
        others = [row for row in rows if row.id not in self._membership.ids and self._is_comparable(row)]
        shown = [(*counts.get(row.id, (0, 0)), int(row.facts.get("steady", 0))) for row in others]
        return Evidence(
            # With a third of failures, ten in a row happen once in 60,000 by chance.
            someone_gets_on=any(2 * failed < done + steady for done, failed, steady in shown),
            all_have_shown=all(done + failed > 0 for done, failed, _ in shown),
        )

    def _is_comparable(self, other: Daemon) -> bool:
        """Whether it takes experiments from a queue of ours; older versions do not say."""
        queues = other.facts.get("queues")
        return queues is None or not set(queues).isdisjoint(self._queues())

    async def _sit_out(self) -> None:
        """Give back what failed here, and try one experiment now and then until one succeeds."""
        self.is_broken = True
        log.error("node.broken", failures=self._failures, hint="others succeed with the same function")
        self._control.pause(
            BY_NODE, f"broken node: {self._failures} experiments in a row failed at once, elsewhere not"
        )
        given_back: list[Claim] = []
        canary_s = self._canary_s()
        next_canary = anyio.current_time() + canary_s
        while self.is_suspected:
            if not self._streak or self._is_canary_steady():
                break
            given_back += await self._give_back(given_back)
            if await self._is_exonerated(given_back):
                break
            if anyio.current_time() >= next_canary:
                log.info("node.canary")
                self._wants_canary = True
                self._control.wake()
                canary_s = min(LONGEST_CANARY_S, 2 * canary_s)
                next_canary = anyio.current_time() + canary_s
            await self._wait_for(lambda: False, timeout=min(LOOK_S, canary_s))
        self._wants_canary, self._canary, self.is_broken = False, None, False
        self.forget()
        log.info("node.recovered")

    async def _give_back(self, already: list[Claim]) -> list[Claim]:
        """Take back the failures of this node that are stored and not taken back yet."""
        done = {claim.key for claim in already}
        claims = [claim for claim in self._streak if claim.key not in done]
        if not claims:
            return []
        try:
            with anyio.move_on_after(LOOK_S):
                await self._flush()
            retracted = await self._link.run(verdicts.retract(self._table, claims), role="admin")
        except exceptions.DatabaseError as error:
            log.warning("failures.not_retracted", error=str(error))
            return []
        if retracted:
            log.warning("failures.retracted", count=len(retracted))
        return [claim for claim in claims if claim.experiment_id in retracted]

    def _is_canary_steady(self) -> bool:
        return self._canary is not None and self._running_for().get(self._canary, 0.0) > STEADY_S

    async def _is_exonerated(self, claims: list[Claim]) -> bool:
        """Whether most of what failed here has failed elsewhere since: then it was not the node."""
        if not claims:
            return False
        try:
            mine = sorted(self._membership.ids)
            failed = await self._link.read(verdicts.failed_elsewhere(self._table, claims, mine=mine))
        except exceptions.DatabaseError as error:
            log.warning("node.not_judged", error=str(error))
            return False
        return 2 * len(failed) > len({claim.experiment_id for claim in claims})

    async def _wait_for(self, condition: Callable[[], bool], *, timeout: float = float("inf")) -> None:
        with anyio.move_on_after(timeout):
            while not condition():
                await self._changed.wait()
                self._changed = anyio.Event()


def _is_fast(attempt: Attempt) -> bool:
    return attempt.started is not None and attempt.ended is not None and attempt.ended - attempt.started < FAST_S
