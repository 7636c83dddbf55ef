"""Takes experiments for this daemon: how many, from which queue, and what to do when the answer is lost."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Sequence

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.low_water import LowWater, Start
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Claim, Incarnation, make_token
from pyexp_daemon.store import leases
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.values import local_time

log = get_logger()

MOST_AHEAD = 64
"""Rows claimed beyond the idle slots at most: then the round trip is nothing beside the rest."""

MOST_POLLS_PER_S = 40.0
"""So often a second an idle fleet looks for work, however many they are."""

LONGEST_REFUSAL_S = 60.0
"""How long a daemon waits at most before it claims again where the database refused it."""


SHORT = 50
"""What takes less than so many claims is claimed ahead: else a slot would wait for a claim for 2 % of its time."""


class Prefetch:
    """How many rows to claim ahead: none, unless experiments are short."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._durations: deque[float] = deque(maxlen=64)
        self._claim_s = 0.005

    def ran(self, seconds: float) -> None:
        """An attempt took so long."""
        self._durations.append(max(seconds, 1e-4))

    def claimed(self, seconds: float) -> None:
        """A claim took so long."""
        self._claim_s += 0.2 * (min(seconds, 1.0) - self._claim_s)

    def forget(self) -> None:
        """What ran so far tells nothing about what runs now."""
        self._durations.clear()

    @property
    def patience_s(self) -> float:
        """How long rows that were claimed ahead may wait while nothing begins."""
        return max(1.0, 20 * self._claim_s)

    def rows(self) -> int:
        """How many rows to hold beyond those that run."""
        if not self._durations:
            return 0
        typical = statistics.median(self._durations)
        if typical >= SHORT * self._claim_s:
            return 0
        return min(MOST_AHEAD, self._slots * max(1, round(20 * self._claim_s / typical)))


class Pace:
    """How long to wait before looking again: not at all while there is work, longer and longer when there is none."""

    def __init__(self, *, shortest_s: float, longest_s: float, fleet: Fleet | None = None) -> None:
        self.shortest_s = shortest_s
        self.longest_s = longest_s
        self._fleet = fleet or Fleet()
        self._pause = 0.0
        self._refused_s = self._refused_until = 0.0

    def found(self) -> None:
        self._pause = self._refused_s = self._refused_until = 0.0

    def nothing(self) -> float:
        """Seconds to wait after an empty answer, jittered so that a fleet does not ask in step."""
        self._refused_s = self._refused_until = 0.0
        longest_s = self._fleet.pause_s(self.longest_s, per_s=MOST_POLLS_PER_S)
        self._pause = min(longest_s, max(self.shortest_s, self._pause * 2))
        return self._pause * random.uniform(0.75, 1.25)

    def refused(self, now: float | None = None) -> float:
        """Seconds to wait when the database answers and refuses: it may be put right soon, or take somebody hours.

        Asked again before that, as after every experiment that ends meanwhile, it is not waited longer for that.
        """
        now = time.monotonic() if now is None else now
        if now >= self._refused_until:
            self._refused_s = min(LONGEST_REFUSAL_S, max(1.0, self._refused_s * 2))
        pause = self._refused_s * random.uniform(0.75, 1.0)
        self._refused_until = now + pause
        return pause


class Claimer:
    """Claims under the current incarnation `me`."""

    def __init__(
        self,
        link: Link,
        table: Table,
        ledger: Ledger,
        prefetch: Prefetch,
        *,
        queues: Sequence[str],
        name: str,
        machine: str,
        at_random: bool = False,
        fleet: Fleet | None = None,
    ) -> None:
        self._link = link
        self._table = table
        self._ledger = ledger
        self._prefetch = prefetch
        self.queues = queues
        self._name = name
        self._machine = machine
        self._at_random = at_random
        self._may_mark = table.dialect.provider == "mysql" and not at_random  # SQLite's views keep nothing in an index
        self._low_water: dict[str, LowWater] = defaultdict(lambda: LowWater(fleet))
        self._idle = False
        self.me: Incarnation | None = None

    async def claim(self, wanted: int) -> list[Claim]:
        """Up to `wanted` experiments of the first of the queues that has any.

        Whoever wants more calls again: what one queue gave is not kept here while another one is asked, for nobody
        else would know of it.

        Raises:
            ConnectionLost: nothing is held from this call.
            Fenced: this incarnation was declared dead.
        """
        claims: list[Claim] = []
        for queue in self.queues:
            if not claims and await self._may_have(queue):
                claims = await self._claim_from(queue, wanted)
        self._idle = not claims
        return claims

    async def _may_have(self, queue: str) -> bool:
        """An idle daemon asks with one plain SELECT; only a hit is worth a transaction."""
        return not self._idle or await self._link.read(leases.waits(self._table, queue=queue))

    async def _claim_from(self, queue: str, limit: int) -> list[Claim]:
        me, token, started = self.me, make_token(), local_time()
        assert me is not None
        self._ledger.sending(token)
        claims: list[Claim] = []
        began = anyio.current_time()
        start = self._low_water[queue].start(now=began) if self._may_mark else Start(at_random=self._at_random)
        try:
            claims = await self._link.run(
                leases.claim(
                    self._table,
                    me=me,
                    token=token,
                    queue=queue,
                    limit=limit,
                    name=self._name,
                    machine=self._machine,
                    at_random=start.at_random,
                    mark=start.mark,
                    same_order=start.same_order,
                    started=started,
                ),
                role="claim",
            )
            took = anyio.current_time() - began
            self._prefetch.claimed(took)
            self._low_water[queue].claimed(claims, start=start, seconds=took)
        except exceptions.ConnectionLost as error:
            if not error.unknown:
                raise
            claims = await self._read_back(me, token, started, error)
        finally:
            # Given up, the token is retired: rows it may still take are handed back by the audit, never run.
            self._ledger.answered(token, claims)
        return claims

    async def _read_back(
        self, me: Incarnation, token: str, started: str, error: exceptions.ConnectionLost
    ) -> list[Claim]:
        """What a claim took whose COMMIT was sent and not answered."""
        await self._link.restored(error)
        if error.session is not None:
            await self._link.store.kill(error.session)  # its COMMIT must not land after we have looked
        unit = leases.read_back(self._table, me=me, token=token, started=started)
        claims = await self._link.read(unit, role="claim")
        log.info("claim.read_back", experiments=len(claims))
        return claims
