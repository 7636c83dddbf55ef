"""The main loop of a daemon: claims experiments and hands them to the pool, until there is nothing more to claim."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.claimer import Claimer, Pace, Prefetch
from pyexp_daemon.daemon.completer import Completer
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.daemon.health import NodeHealth
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.membership import Membership
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Attempt, Claim
from pyexp_daemon.store import reads
from pyexp_daemon.store.tables import Table
from pyexp_daemon.worker.pool import Pool, PoolState

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When a daemon has done what it was asked for, without being stopped."""

    empty: bool = False
    most: int | None = None
    broken: bool = False
    """Also when the function cannot be imported: nobody is there to repair it."""


class Claiming:
    """Decides how many experiments to claim and when; `queues` and `pace` may be changed while it runs."""

    def __init__(
        self,
        table: Table,
        *,
        link: Link,
        control: Control,
        membership: Membership,
        claimer: Claimer,
        prefetch: Prefetch,
        pace: Pace,
        pool: Pool,
        completer: Completer,
        health: NodeHealth,
        until: Until,
        is_lease_short: Callable[[], bool],
    ) -> None:
        """
        Args:
            is_lease_short: whether nothing may begin, because our lease may end before it does.
        """
        self._table = table
        self._link = link
        self._control = control
        self._membership = membership
        self._claimer = claimer
        self._prefetch = prefetch
        self.pace = pace
        self._pool = pool
        self._completer = completer
        self._health = health
        self._until = until
        self._is_lease_short = is_lease_short
        self._last_begun = 0.0
        self._ahead = 0
        self.count = 0
        """How many experiments were taken to be run here."""

    async def run(self) -> None:
        """Claim until told otherwise, or until that is done which was asked for, or until no child can start."""
        while not (self._control.draining or self._control.reset_asked):
            if self._is_over_for_good():
                return
            wanted = self._wanted()
            pause = await self._claim(wanted) if wanted else 1.0
            if wanted or self._control.paused:
                if pause and await self._is_table_empty():
                    return
            elif self._budget() == 0 and self._is_idle():
                return
            if pause:
                await self._control.sleep(pause)

    def _is_over_for_good(self) -> bool:
        failure = self._pool.failure
        return isinstance(failure, exceptions.ChildrenCannotStart) or (failure is not None and self._until.broken)

    def take_queued(self) -> list[Claim]:
        """What has not begun, and does not begin any more; it is to be handed back."""
        claims = self._pool.take_back()
        self.count -= len(claims)
        return claims

    async def hand_back_queued(self) -> None:
        """What has not begun is for others, uncharged."""
        await self._completer.release(self.take_queued())

    async def hand_back_what_does_not_begin(self) -> None:
        """Rows claimed ahead wait for short experiments; behind a long one they are for others."""
        if self._pool.waiting and time.monotonic() - self._last_begun > self._prefetch.patience_s:
            self._prefetch.forget()
            await self.hand_back_queued()

    def ended(self, attempt: Attempt) -> None:
        """An attempt ended in its slot, and the next one has begun there."""
        if attempt.started is not None and attempt.ended is not None:
            self._prefetch.ran(attempt.ended - attempt.started)
            self._last_begun = time.monotonic()
        if self._is_running_low(self._ahead):
            self._control.wake()

    async def _claim(self, wanted: int) -> float:
        """Claim and hand out up to `wanted` experiments; how long to wait before the next claim."""
        me, control = self._membership.current, self._control
        try:
            claims = await control.unless_told(lambda: self._claimer.claim(wanted)) or []
        except exceptions.Fenced:
            # Not fenced after all: its row says `draining`, set by hand perhaps, or there is a new keyfield. The next
            # beats will tell.
            return 0 if await control.unless_told(lambda: self._membership.fenced(me)) else 1.0
        except exceptions.ConnectionLost as error:
            await control.unless_told(partial(self._link.restored, error))
            return 0
        except exceptions.DatabaseError as error:
            # A migration, a dropped table, a changed password: it may be put right while we wait.
            log.error("claim.refused", error=str(error))
            return self.pace.refused()
        if not self._may_begin():
            await self._completer.release(claims)
            return 0
        return self._hand_out(claims)

    def _hand_out(self, claims: Sequence[Claim]) -> float:
        if not claims:
            return self.pace.nothing()
        if self._control.paused:
            self._health.canary_claimed(claims[0])
        self.count += len(claims)
        for claim in claims:
            self._pool.give(claim)
        self.pace.found()
        self._last_begun = time.monotonic()
        return 0

    def _wanted(self) -> int:
        """How many experiments to claim now: for idle slots, and ahead when they are short."""
        if self._pool.state is not PoolState.READY or not self._may_begin():
            return 0
        if self._control.paused:
            return min(1, self._pool.free, self._budget())
        self._ahead = ahead = self._prefetch.rows()
        if not self._is_running_low(ahead) and not self._pool.free:
            return 0
        return max(0, min(self._pool.free + ahead - self._pool.waiting, self._budget()))

    def _is_running_low(self, ahead: int) -> bool:
        """Whether so little waits for a slot that it is time to claim: in groups, for one row costs as much as many."""
        return self._pool.waiting <= ahead // 2

    def _may_begin(self) -> bool:
        """Whether a claim is wanted; on a node that is paused because it seems broken, one canary is."""
        told_otherwise = self._control.draining or self._control.reset_asked
        paused = self._control.paused is not None and not self._health.wants_canary
        return not (told_otherwise or paused or self._is_lease_short())

    def _budget(self) -> int:
        return 10**9 if self._until.most is None else max(0, self._until.most - self.count)

    def _is_idle(self) -> bool:
        return self._pool.is_idle and not self._completer.waiting

    async def _is_table_empty(self) -> bool:
        """After a claim that found nothing: whether that was all, when we were asked to stop at the end.

        An empty answer of a claim proves nothing, for rows locked elsewhere were passed over: what counts is a plain
        count, twice. Rows that run under a daemon that looks dead are waited for, to rescue them.
        """
        if not self._until.empty or not self._is_idle():
            return False
        unit = reads.count_unfinished(self._table, queues=self._claimer.queues)
        for _ in range(2):
            try:
                if await self._link.read(unit):
                    return False
            except exceptions.DatabaseError:
                return False
        return self._is_idle()
