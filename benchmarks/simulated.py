"""Daemons without children: the real store code, the real claimer, heartbeat, rescue and promotion, and no experiments.

Any number of them share one event loop; a fleet that would be limited by one Python process is spread over several.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from benchmarks.places import Place
from pyexp_daemon import exceptions
from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.claimer import Claimer, Pace, Prefetch
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.heartbeat import Heard, Heartbeat
from pyexp_daemon.daemon.hosts import Host, make_row
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.mailbox import Mailbox
from pyexp_daemon.daemon.promotion import Promotion
from pyexp_daemon.daemon.rescue import Rescue
from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, Report, RetryPolicy, Verdict, make_token
from pyexp_daemon.store import daemons, open_blocking_store, open_store, reports
from pyexp_daemon.store.tables import Table

POLICY = RetryPolicy(tries={}, first_s=30, longest_s=3600)

START_JITTER_S = 30.0

LIMIT = 32
"""Experiments per claim and per report of a daemon that works."""


class SimulatedDaemon:
    """One daemon of a fleet, on a host of its own."""

    def __init__(self, config: Config, number: int, *, at_random: bool = False) -> None:
        self._config = config.daemon
        self._table = Table.of(config.database)
        self._fleet = Fleet()
        self._link = Link(open_store(config, is_crowded=lambda: self._fleet.is_crowd))
        self._ledger = Ledger()
        self._prefetch = Prefetch(2)
        self._host = Host(id=f"host-{number}", boot_id=f"boot-{number}", name=f"host-{number}")
        self._heard: Mailbox[Heard] = Mailbox()
        self._name = f"daemon-{number}"
        self._heartbeat = Heartbeat(
            lambda: open_blocking_store(config, deadline_s=10, daemon=True),
            self._table,
            self._ledger,
            self._heard,
            every_s=config.daemon.heartbeat_s,
            lease_s=config.daemon.lease_s,
            watchdog_s=1e9,  # nobody ticks for the loop here
            fleet=self._fleet,
        )
        self._claimer = Claimer(
            self._link, self._table, self._ledger, self._prefetch, queues=["default"], name=self._name,
            machine=self._name, at_random=at_random, fleet=self._fleet,
        )  # fmt: skip
        self._rescue = Rescue(
            self._link, self._table, self._host, POLICY,
            blind_until=lambda: self._heartbeat.blind_until, is_own=lambda row: row.me == self._me, fleet=self._fleet,
        )  # fmt: skip
        self._me: Incarnation | None = None

    async def join(self) -> None:
        """Register, and beat from now on."""
        row = make_row(self._host, make_token(), name=self._name, slots=2, lease_s=self._config.lease_s, lock=None)
        self._me = await self._link.run(daemons.register(self._table, row), role="admin")
        self._claimer.me = self._me
        self._heartbeat.start(self._me)

    async def look(self) -> None:
        """See who else is there, as every daemon does before it has served for a second."""
        await self._rescue.run_once()

    async def leave(self) -> None:
        """Sign off."""
        assert self._me is not None
        await self._link.run(daemons.change_state(self._table, me=self._me, state="stopped"), role="admin")
        await anyio.to_thread.run_sync(self._heartbeat.stop)
        self._heard.close()
        await self._link.store.close()

    async def serve(self) -> None:
        """Do all that a daemon does which has nothing to run, until cancelled; begins within START_JITTER_S."""
        await anyio.sleep(random.uniform(0, START_JITTER_S))
        async with anyio.create_task_group() as services:
            services.start_soon(self._rescue.run)
            services.start_soon(Promotion(self._link, self._table, promoted=lambda: None, fleet=self._fleet).run)
            services.start_soon(self._listen)
            services.start_soon(self._poll)
            while True:
                await anyio.sleep(0.5)
                await self._link.store.close_idle()

    async def work(self, *, limit: int) -> list[int]:
        """Claim, and report as done, until nothing is left; the experiments."""
        seen: list[int] = []
        while claims := await self.claim(limit):
            seen += [claim.experiment_id for claim in claims]
            await self.finish(claims)
        return seen

    async def claim(self, limit: int) -> list[Claim]:
        """What a claim gives."""
        return await self._claimer.claim(limit)

    async def finish(self, claims: list[Claim], outcome: Outcome = Outcome.DONE) -> None:
        """Report that they ended so."""
        assert self._me is not None
        now, results = time.time(), {"a": 1.0} if outcome is Outcome.DONE else {}
        ends = [Attempt(claim=claim, outcome=outcome, started=now, ended=now, results=results) for claim in claims]
        given = [Report(claim=end.claim, end=end) for end in ends]
        unit = reports.record(self._table, given, me=self._me, host=self._name, policy=POLICY)
        verdicts = await self._link.run(unit)
        assert set(verdicts) == {Verdict.ACCEPTED}, verdicts
        for claim in claims:
            self._ledger.let_go(claim)

    async def _poll(self) -> None:
        pace = Pace(shortest_s=self._config.poll.shortest_s, longest_s=self._config.poll.longest_s, fleet=self._fleet)
        while True:
            try:
                assert not await self._claimer.claim(2)
                await anyio.sleep(pace.nothing())
            except exceptions.ConnectionLost as error:
                await self._link.restored(error)

    async def _listen(self) -> None:
        while True:
            await self._heard.take()


async def _work(fleet: list[SimulatedDaemon]) -> list[int]:
    """Have them work until nothing is left; every experiment that one of them claimed."""
    seen: list[int] = []

    async def one(daemon: SimulatedDaemon) -> None:
        seen.extend(await daemon.work(limit=LIMIT))

    async with anyio.create_task_group() as tasks:
        for daemon in fleet:
            tasks.start_soon(one, daemon)
    return seen


async def _idle(fleet: list[SimulatedDaemon]) -> list[int]:
    """Have them look for work until nobody listens any more."""
    async with anyio.create_task_group() as tasks:
        for daemon in fleet:
            tasks.start_soon(daemon.serve)
        await anyio.to_thread.run_sync(sys.stdin.read)
        tasks.cancel_scope.cancel()
    return []


async def _run(act: str, file: Path, numbers: range) -> None:
    config = load_config(file)
    fleet = [SimulatedDaemon(config, number) for number in numbers]
    for daemon in fleet:
        await daemon.join()
    print("ready", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.readline)
    if act == "work":
        for daemon in fleet:
            await daemon.look()
    began = time.monotonic()
    seen = await (_work if act == "work" else _idle)(fleet)
    print(json.dumps({"seen": seen, "began": began, "ended": time.monotonic()}), flush=True)
    for daemon in fleet:
        await daemon.leave()


class Crew:
    """Simulated daemons in so many processes, which register, wait for `start`, and then act."""

    def __init__(self, act: str, here: Place, daemons: int, *, processes: int) -> None:
        bounds = [daemons * number // processes for number in range(processes + 1)]
        self._processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.simulated",
                    act,
                    str(here.folder / "pyexpd.yml"),
                    str(low),
                    str(high),
                ],
                cwd=Path(__file__).parents[1],
                env=here.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for low, high in itertools.pairwise(bounds)
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def start(self) -> None:
        """Let them begin."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def finish(self) -> list[dict[str, Any]]:
        """Wait for their end, for which the idle ones are told now; what each process has to say."""
        said = [json.loads(process.communicate()[0]) for process in self._processes]
        assert not any(process.returncode for process in self._processes)
        return said


if __name__ == "__main__":
    anyio.run(_run, sys.argv[1], Path(sys.argv[2]), range(int(sys.argv[3]), int(sys.argv[4])))
