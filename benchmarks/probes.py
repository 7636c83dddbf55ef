"""What this machine, its databases and our own parts can do at most: the limits with which figures are compared."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import structlog

from benchmarks.places import Flavour, place
from pyexp_daemon.config.load import load_config
from pyexp_daemon.model import (
    Attempt,
    Claim,
    Daemon,
    Incarnation,
    Outcome,
    Report,
    RetryPolicy,
    SnapshotHead,
    SnapshotPart,
    make_token,
)
from pyexp_daemon.store import daemons, leases, open_blocking_store, reports
from pyexp_daemon.store.tables import Table
from pyexp_daemon.worker import channel
from pyexp_daemon.worker.pool import Pool, SlotSettings

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

SLOTS = 2
BATCH = 32
CHILD = Path(channel.__file__).with_name("child.py")
POLICY = RetryPolicy(tries={}, first_s=30, longest_s=3600)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A limit: what is done, on which database if any, and a function that does it so often and gives the seconds."""

    what: str
    database: str
    count: int
    take: Callable[[int], float]


def append(count: int) -> float:
    """Seconds for so many appends of 4 KiB, each with fsync."""
    with place("sqlite") as here, (here.folder / "appended").open("ab", buffering=0) as file:
        block = bytes(4096)

        def append_one() -> None:
            file.write(block)
            os.fsync(file.fileno())

        return _repeat(append_one, count)


def commit(flavour: Flavour, count: int) -> float:
    """Seconds for so many durable commits of one row, on one connection in autocommit mode."""
    with place(flavour) as here, closing(here.database.connect()) as connection:
        cursor = connection.cursor()
        if flavour == "sqlite":
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("CREATE TABLE probe (x INTEGER)")
        return _repeat(lambda: cursor.execute("INSERT INTO probe VALUES (1)"), count)


def call_slots(count: int) -> float:
    """Seconds for so many no-ops in two of our children: an order, its answer, the next order, by plain sockets.

    The thinnest thing that can be said to a child; a pool also keeps logs, deadlines and signs of life.
    """
    with place("sqlite") as here:
        here.write(rows=1)
        with _child(here.folder) as one, _child(here.folder) as other, selectors.DefaultSelector() as selector:
            for line in (one, other):
                selector.register(line.connection, selectors.EVENT_READ, line)
            return _repeat_orders(selector, [one, other], count)


def run_pool(count: int) -> float:
    """Seconds for so many no-ops through our pool of two slots, with nobody who stores anything."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with place("sqlite") as here:
        here.write(rows=1)
        settings = SlotSettings(
            function="experiments:noop",
            project=here.folder,
            incarnation=make_token(),
            python=sys.executable,
            logs=here.folder / "logs",
            workdirs=here.folder / "workdirs",
        )
        return anyio.run(_give_all, settings, count)


def claim_and_finish(flavour: Flavour, count: int) -> float:
    """Seconds to claim so many experiments, 32 at a time, and report each as done, through our store's units."""
    with place(flavour) as here:
        config = load_config(here.write(rows=count))
        here.pyexpd("fill")
        table = Table.of(config.database)
        with closing(open_blocking_store(config)) as store:
            me = _register(store, table)
            began = time.perf_counter()
            while claims := store.run(leases.claim(table, me=me, token=make_token(), queue="default", limit=BATCH)):
                done = [Report(claim=claim, end=_ended(claim)) for claim in claims]
                store.run(reports.record(table, done, me=me, host="h", policy=POLICY))
            took = time.perf_counter() - began
        ((finished,),) = here.query("SELECT COUNT(*) FROM exp WHERE status = 'done'")
        assert finished == count, f"{finished} of {count} done"
    return took


PROBES = (
    Probe(what="fsync of a 4 KiB append", database="", count=2000, take=append),
    Probe(what="one-row commit", database="sqlite", count=2000, take=lambda count: commit("sqlite", count)),
    Probe(what="one-row commit", database="mariadb", count=2000, take=lambda count: commit("mariadb", count)),
    Probe(what="bare slot call", database="", count=20000, take=call_slots),
    Probe(what="pool of slots", database="", count=10000, take=run_pool),
    Probe(
        what="claim and finish of 32",
        database="sqlite",
        count=10000,
        take=lambda count: claim_and_finish("sqlite", count),
    ),
    Probe(
        what="claim and finish of 32",
        database="mariadb",
        count=8000,
        take=lambda count: claim_and_finish("mariadb", count),
    ),
)


def _repeat(step: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - began


class _Line:
    """Our end of the channel to a child."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._frames = channel.FrameBuffer()

    def send(self, **message: Any) -> None:
        self.connection.sendall(channel.encode(message))

    def receive(self) -> channel.Message:
        while (message := self._frames.next()) is None:
            self._frames.feed(self.connection.recv(channel.RECEIVE_BYTES))
        return message


@contextmanager
def _child(folder: Path) -> Iterator[_Line]:
    """A child that has loaded the no-op."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, str(CHILD), str(theirs.fileno()), str(os.getpid())]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        line = _Line(ours)
        line.send(
            kind="load",
            function="experiments:noop",
            pickled=None,
            store=None,
            project=str(folder),
            custom="{}",
            resultfields=[],
            logtables={},
            ends=None,
            max_message_bytes=channel.MAX_MESSAGE_BYTES,
        )
        assert line.receive()["kind"] == "ready"
        yield line
    child.wait()


def _repeat_orders(selector: selectors.BaseSelector, lines: list[_Line], count: int) -> float:
    began = time.perf_counter()
    for x, line in enumerate(lines):
        _order(line, x)
    ordered, answered = len(lines), 0
    while answered < count:
        for key, _ in selector.select():
            assert key.data.receive()["outcome"] == "done"
            answered += 1
            if ordered < count:
                _order(key.data, ordered)
                ordered += 1
    return time.perf_counter() - began


def _order(line: _Line, x: int) -> None:
    line.send(kind="run", experiment_id=x, attempt=1, keyfields={"x": x}, workdir="workdir")


async def _give_all(settings: SlotSettings, count: int) -> float:
    pool = Pool(settings, slots=SLOTS, events=_Nobody())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run)
        while pool.free < SLOTS:
            await pool.wait_change()
        began = time.perf_counter()
        for x in range(count):
            pool.give(Claim(experiment_id=x, attempt=1, token="token", start_date="", keyfields={"x": x}))
        await pool.wait_idle()
        took = time.perf_counter() - began
        tasks.cancel_scope.cancel()
    return took


class _Nobody:
    """Hears what becomes of the experiments, and forgets it."""

    async def results(self, claim: Claim, results: dict[str, Any]) -> None: ...

    async def snapshot(self, claim: Claim, part: SnapshotPart, head: SnapshotHead | None) -> None: ...

    async def look_up(self, claim: Claim, what: str, arguments: dict[str, Any]) -> Any: ...

    async def logs(self, claim: Claim, rows: list[tuple[str, float, dict[str, Any]]]) -> None: ...

    async def finished(self, attempt: Attempt) -> None:
        assert attempt.outcome is Outcome.DONE, attempt.error

    def progress(self, claim: Claim, fraction: float | None, description: str | None) -> None: ...


def _register(store: BlockingStore, table: Table) -> Incarnation:
    row = Daemon(
        id=0, incarnation=make_token(), name="probe", host="h", host_id="h", boot_id="b", pid=1, pid_start="1",
        version="0", slots=1, state="live", beat=0, lease_s=600, started=0, beat_at=0,
    )  # fmt: skip
    return store.run(daemons.register(table, row))


def _ended(claim: Claim) -> Attempt:
    """What a daemon reports of a no-op."""
    now = time.time()
    return Attempt(
        claim=claim,
        outcome=Outcome.DONE,
        started=now,
        ended=now,
        pid=1,
        exit_code=0,
        cpu_seconds=0.0,
        peak_rss_bytes=20 * 2**20,
    )
