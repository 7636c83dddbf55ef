"""The completer with its spool: an outage of any length, and the daemon's death, lose and double nothing."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from pyexp_daemon import exceptions
from pyexp_daemon.daemon import completer as completers
from pyexp_daemon.daemon import errands, spools
from pyexp_daemon.daemon import link as links
from pyexp_daemon.daemon import replay as replays
from pyexp_daemon.daemon.completer import Completer, Left
from pyexp_daemon.daemon.errands import Errands
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.replay import Replay
from pyexp_daemon.daemon.spool import Spool
from pyexp_daemon.daemon.spools import search
from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, SnapshotHead, SnapshotPart, Verdict, make_token
from pyexp_daemon.store import daemons, leases
from tests.bench import POLICY, Bench
from tests.helpers import wait_until_async
from tests.integration.store.test_snapshots import saved


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LONGEST_PAUSE_S", 0.1)


@dataclass
class Node:
    """The parts of a daemon that write, and a database that can be taken from them."""

    bench: Bench
    me: Incarnation
    age_s: float = 0.0
    is_away: bool = False
    units: list[str] = field(default_factory=list)
    ended: list[tuple[int, Outcome, Verdict]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    before_unit: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.run, self.read = self.bench.store.run, self.bench.store.read
        self.bench.store.run = self._guarded(self.run)
        self.bench.store.read = self._guarded(self.read)
        self.spool = Spool(self.bench.config.state / "spool")
        self.ledger = Ledger()
        self.completer = Completer(
            Link(self.bench.store),
            self.bench.table,
            self.ledger,
            POLICY,
            spool=self.spool,
            host="h",
            busy=lambda: True,
            ended=self._ended,
            lost=lambda claim: self.lost.append(claim.experiment_id),
            fenced=self._fenced,
            writing=anyio.Lock(),
            age_s=lambda claim: self.age_s,
        )
        self.completer.me = self.me

    def _guarded(self, run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def guarded(unit: Any, **options: Any) -> Any:
            if self.is_away:
                raise exceptions.ConnectionLost("away")
            self.units.append(unit.name)
            self.before_unit()
            return await run(unit, **options)

        return guarded

    def _ended(self, attempt: Attempt, verdict: Verdict) -> None:
        self.ended.append((attempt.claim.experiment_id, attempt.outcome, verdict))

    async def _fenced(self, _: Incarnation) -> bool:
        return False

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Completer]:
        """The daemon while it lives; with the end of the block it is dead, as after a kill."""
        with anyio.fail_after(90):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.completer.run)
                yield self.completer
                tasks.cancel_scope.cancel()
        self.bench.store.run, self.bench.store.read = self.run, self.read
        if self.spool._lock is not None:
            self.spool._lock.release()

    async def spilled(self) -> None:
        """Return when nothing is in memory but what is in the spool too."""
        await wait_until_async(lambda: all(i.is_spooled for i in (*self.completer._flying, *self.completer._waiting)))

    def successor(self) -> Replay:
        return Replay(
            Link(self.bench.store),
            self.bench.table,
            POLICY,
            own=Spool(self.spool.base),
            host="h",
            ended=self._ended,
        )


def done(claim: Claim, *, took_s: float = 2.0, **fields: Any) -> Attempt:
    return Attempt(claim=claim, outcome=Outcome.DONE, started=1000.0, ended=1000.0 + took_s, **fields)


def unstorable(bench: Bench) -> object:
    return "much too long for the column" if bench.database.server else 2**70


def losses(bench: Bench) -> list[Any]:
    return [row[0] for row in bench.query("SELECT loss FROM exp__epochs ORDER BY ID")]


async def report_much(completer: Completer, claim: Claim, *, rows: int = 60) -> None:
    """Log rows with results in between, and the end."""
    for number in range(rows):
        await completer.logs(claim, [("epochs", 1000.0 + number, {"loss": float(number)})])
        if number % 20 == 0:
            await completer.results(claim, {"y": float(number)})
    await completer.finished(done(claim, results={"note": "end"}))


async def test_what_is_brought_during_an_outage_is_stored_after_it_once_and_in_order(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    node = Node(bench, me)
    async with node.working() as completer:
        await completer.logs(first, [("epochs", 1.0, {"loss": -1.0})])
        await completer.flush()
        node.is_away = True
        await report_much(completer, first)  # returns: it waits for the disk, not for the database
        await completer.results(second, {"y": 5.0})
        await node.spilled()
        assert bench.statuses()[1] == "running"
        assert completer.claims == {first.key, second.key}
        assert completer.spool.count >= 60
        assert completer.spool.size_bytes > 5000
        node.is_away = False
        await completer.flush()
        assert (completer.spool.count, completer.spool.size_bytes) == (0, 0)
        assert completer.claims == set()
    assert losses(bench) == [-1.0, *map(float, range(60))]
    assert bench.query("SELECT y, note, status FROM exp WHERE ID = 1") == [(40.0, "end", "done")]
    assert bench.query("SELECT y, status FROM exp WHERE ID = 2") == [(5.0, "running")]
    assert bench.receipts() == [(1, 1, "done")]
    assert node.ended == [(1, Outcome.DONE, Verdict.ACCEPTED)]
    assert node.lost == []


async def test_memory_holds_only_what_is_on_its_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completers, "MOST_WAITING", 1500)  # nobody has to wait as long as the spool can be written
    rows = 5000
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        for number in range(rows):
            await completer.logs(claim, [("epochs", 1000.0, {"loss": float(number)})])
            if number % 1000 == 0:
                await node.spilled()
        await node.spilled()
        assert len(completer._waiting) == 0
        assert len(completer._flying) < 1500
        assert sum(item.size_bytes for item in completer._flying) <= completers.BATCH_BYTES
        node.is_away = False
        largest = 0
        while completer.waiting:
            largest = max(largest, len(completer._flying))
            await anyio.sleep(0.001)
        assert largest < 3000
    assert losses(bench) == [float(number) for number in range(rows)]


async def test_a_successor_stores_what_a_dead_daemon_spooled_under_its_name(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await report_much(completer, first)
        await completer.results(second, {"y": 5.0})
        await completer.logs(second, [("epochs", 1.0, {"loss": 99.0})])
        await node.spilled()
    again = node.successor()
    assert await again.run_once()
    assert losses(bench) == [*map(float, range(60)), 99.0]
    assert bench.query("SELECT y, note, status FROM exp WHERE ID = 1") == [(40.0, "end", "done")]
    assert bench.query("SELECT y, status FROM exp WHERE ID = 2") == [(5.0, "running")]
    assert bench.query("SELECT daemon, outcome FROM exp__pyexpd_attempts") == [(me.id, "done")]
    assert node.ended == [(1, Outcome.DONE, Verdict.ACCEPTED)]
    (folder,) = [path for path in node.spool.base.iterdir() if path.is_dir()]
    for name in ("done", "00000001.records"):  # as if the successor had died before it could say so
        (folder / name).unlink()
    assert await node.successor().run_once()
    assert losses(bench) == [*map(float, range(60)), 99.0]
    assert bench.receipts() == [(1, 1, "done")]


@pytest.mark.parametrize("taken", [False, True])
async def test_a_spool_that_comes_after_the_sweep_counts_as_long_as_nobody_took_the_experiment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    monkeypatch.setattr(replays, "BATCH_BYTES", 300)  # results and end in batches of their own
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await report_much(completer, claim)
        await node.spilled()
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    if taken:
        other = bench.register("other")
        assert bench.claim(other, 5)
    assert await node.successor().run_once()
    if taken:
        assert bench.query("SELECT y, note, status FROM exp WHERE ID = 1") == [(None, None, "running")]
        assert losses(bench) == []
        assert bench.receipts() == [(1, 1, "superseded")]
        assert "end" in bench.query("SELECT result FROM exp__pyexpd_attempts")[0][0]
    else:
        assert bench.query("SELECT y, note, status FROM exp WHERE ID = 1") == [(40.0, "end", "done")]
        assert losses(bench) == [float(number) for number in range(60)]
        assert bench.receipts() == [(1, 1, "done")]
        assert bench.query("SELECT pyexpd_tries FROM exp WHERE ID = 1") == [(None,)]


async def save(completer: Completer, claim: Claim, *states: bytes, keep: int | None = None) -> None:
    """A snapshot in as many parts, as a slot brings it."""
    state_id = make_token()
    for number, data in enumerate(states):
        head = SnapshotHead(state_id=state_id, label=None, created=1.5, size_bytes=1, parts=len(states), keep=keep)
        await completer.snapshot(
            claim, SnapshotPart(state_id, number, data), head if number == len(states) - 1 else None
        )


@pytest.mark.parametrize("dies", [False, True])
async def test_snapshots_of_an_outage_are_stored_after_it_by_whoever_is_there(bench: Bench, dies: bool) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    large = os.urandom(2**18)
    async with node.working() as completer:
        await save(completer, claim, b"0", b"1", keep=1)
        await completer.flush()
        node.is_away = True
        await save(completer, claim, b"2", large, keep=1)  # returns: it is safe on the disk
        await completer.logs(claim, [("epochs", 1.0, {"loss": 1.0})])
        await save(completer, claim, large, large, large, keep=1)
        await node.spilled()
        assert saved(bench, claim.experiment_id) == [(1, None, b"01")]
        if not dies:
            node.is_away = False
            await completer.flush()
    if dies:
        bench.kill_daemon(me)
        bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
        assert await node.successor().run_once()
    assert saved(bench, claim.experiment_id) == [(3, None, 3 * large)]
    assert bench.query("SELECT COUNT(*) FROM exp__pyexpd_snapshot_parts") == [(3,)]
    assert losses(bench) == [1.0]
    # The loss came after them, and counts.
    assert bench.query("SELECT pyexpd_tries FROM exp WHERE ID = 1") == [('{"lost": 1}' if dies else None,)]


async def test_a_snapshot_that_cannot_be_stored_any_more_costs_no_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of it was taken away by another one that was saved meanwhile."""
    monkeypatch.setattr(completers, "SPILL_S", 5.0)  # the refusal is to be heard by who waits for it
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    part, head = (
        SnapshotPart("a" * 32, 0, b"x"),
        SnapshotHead(state_id="a" * 32, label=None, created=1.5, size_bytes=1, parts=2, keep=None),
    )
    with capture_logs() as logs:
        async with node.working() as completer:
            with pytest.raises(exceptions.RowRefused, match="1 of 2 parts"):
                await completer.snapshot(claim, part, head)
            node.is_away = True
            await completer.snapshot(claim, part, head)
            await completer.finished(done(claim, results={"y": 1.0}))
            await node.spilled()
            node.is_away = False
            await completer.flush()
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"].count("snapshot.unstorable") == 1
    assert bench.query("SELECT y, status FROM exp WHERE ID = 1") == [(1.0, "done")]
    assert saved(bench, 1) == []


async def test_an_older_result_in_the_spool_does_not_overwrite_a_newer_one(bench: Bench) -> None:
    """The first waited on disk and was stored; the second was stored at once; the end was spooled and never sent."""
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.results(claim, {"y": 1.0})
        node.is_away = False
        await completer.flush()
        await completer.results(claim, {"y": 2.0})
        node.is_away = True
        await completer.finished(done(claim))
        await node.spilled()
    assert await node.successor().run_once()
    assert bench.query("SELECT y, status FROM exp WHERE ID = 1") == [(2.0, "done")]


async def test_an_end_after_a_second_is_on_disk_before_it_is_sent_and_a_quick_one_never(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completers, "SPILL_S", 60.0)  # however long the database takes
    me = bench.register()
    quick, slow = bench.claim(me, 2)
    node = Node(bench, me)
    spooled: list[int] = []
    node.before_unit = lambda: spooled.append(node.spool.count)
    async with node.working() as completer:
        await completer.results(quick, {"y": 1.0})
        await completer.finished(done(quick, took_s=0.5))
        await completer.flush()
        assert set(spooled) == {0}
        assert not node.spool.base.exists()
        spooled.clear()
        await completer.logs(slow, [("epochs", 1.0, {"loss": 1.0})])
        await completer.finished(done(slow, took_s=1.5))
        await completer.flush()
    assert spooled == [2]
    assert set(bench.statuses().values()) == {"done", "created"}


async def test_a_result_of_more_than_a_second_is_on_disk_before_it_is_sent(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me, age_s=1.5)
    spooled: list[int] = []
    node.before_unit = lambda: spooled.append(node.spool.count)
    async with node.working() as completer:
        await completer.results(claim, {"y": 1.0})
        await completer.flush()
    assert spooled == [1]


async def test_a_value_refused_after_its_function_went_on_ends_the_attempt_as_an_error(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.results(first, {"note": unstorable(bench)})
        await completer.results(second, {"y": 2.0})
        await completer.finished(done(second))
        await node.spilled()
        node.is_away = False
        await completer.flush()
        await completer.finished(done(first))
        await completer.flush()
    assert (bench.statuses()[1], bench.statuses()[2]) == ("error", "done")
    assert "a result cannot be stored" in bench.query("SELECT error FROM exp WHERE ID = 1")[0][0]


async def test_a_value_refused_by_one_successor_is_known_to_the_next(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.results(claim, {"note": unstorable(bench)})
        node.is_away = False
        await completer.flush()  # refused, and noted
        node.is_away = True
        await completer.finished(done(claim))
        await node.spilled()
    assert await node.successor().run_once()
    assert bench.statuses()[1] == "error"
    assert "a result cannot be stored" in bench.query("SELECT error FROM exp WHERE ID = 1")[0][0]


async def test_a_value_refused_by_a_successor_that_dies_is_known_to_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end stands in the spool as a success, and the value is not tried again."""
    monkeypatch.setattr(replays, "BATCH_BYTES", 300)
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.results(claim, {"note": unstorable(bench)})
        await completer.finished(done(claim))
        await node.spilled()
    second = Node(bench, me)

    def die_at_the_end() -> None:
        if second.units.count("record") == 2:
            second.is_away = True
            raise exceptions.ConnectionLost("away")

    second.before_unit = die_at_the_end
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.successor().run_once)
        await wait_until_async(lambda: second.is_away)
        tasks.cancel_scope.cancel()
    bench.store.run, bench.store.read = second.run, second.read
    assert bench.statuses()[1] == "running"
    assert await node.successor().run_once()
    assert bench.statuses()[1] == "error"
    assert "a result cannot be stored" in bench.query("SELECT error FROM exp WHERE ID = 1")[0][0]


async def test_a_refused_value_in_a_dead_spool_fails_its_own_attempt_only(bench: Bench) -> None:
    me = bench.register()
    claims = bench.claim(me, 3)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        for claim in claims:
            note = unstorable(bench) if claim.experiment_id == 2 else "fine"
            await completer.results(claim, {"note": note})
            await completer.finished(done(claim))
        await node.spilled()
    assert await node.successor().run_once()
    assert [bench.statuses()[number] for number in (1, 2, 3)] == ["done", "error", "done"]


@pytest.mark.parametrize("dies", [False, True])
async def test_what_is_on_disk_follows_an_experiment_that_was_taken_back(bench: Bench, dies: bool) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.logs(claim, [("epochs", 1.0, {"loss": 0.0})])
        await node.spilled()
        await completer.results(claim, {"y": 4.0})
        await completer.finished(done(claim))
        await node.spilled()
        bench.kill_daemon(me)
        bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
        again = bench.register("again")
        (new,) = bench.run(leases.take_back(bench.table, [claim], me=again, token=make_token()))
        completer.me = again
        completer.rebind(claim, new)
        assert completer.claims == {new.key}
        if dies:
            await wait_until_async(lambda: not node.spool.has_notes)
        else:
            node.is_away = False
            await completer.flush()
    if dies:
        assert await node.successor().run_once()
    assert bench.query("SELECT y, status FROM exp WHERE ID = 1") == [(4.0, "done")]
    assert losses(bench) == [0.0]
    assert node.lost == []


async def test_what_is_in_memory_comes_after_what_is_in_the_spool(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.logs(claim, [("epochs", 1.0, {"loss": 0.0})])
        await node.spilled()
        await completer.logs(claim, [("epochs", 1.0, {"loss": 1.0})])
        await node.spilled()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", _full)
            await completer.logs(claim, [("epochs", 1.0, {"loss": 2.0})])
            node.is_away = False
            await completer.flush()
    assert losses(bench) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("backlog_bytes", [300, completers.BACKLOG_BYTES])
async def test_a_group_that_reached_the_disk_in_part_is_stored_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, backlog_bytes: int
) -> None:
    """It could not even be cut off again, and stands there twice."""
    monkeypatch.setattr(completers, "UNWRITABLE_PAUSE_S", 0.02)
    monkeypatch.setattr(completers, "BACKLOG_BYTES", backlog_bytes)
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.logs(claim, [("epochs", 1.0, {"loss": 0.0})])
        await node.spilled()
        await completer.logs(claim, [("epochs", 1.0, {"loss": 1.0})])
        await node.spilled()
        with monkeypatch.context() as patched, capture_logs() as said:
            patched.setattr(os, "fdatasync", _full)
            patched.setattr(os, "ftruncate", _full)
            await completer.logs(claim, [("epochs", 1.0, {"loss": 2.0})])
            await wait_until_async(lambda: said)
        await node.spilled()
        node.is_away = False
        await completer.flush()
    assert losses(bench) == [0.0, 1.0, 2.0]


def _full(descriptor: int, *_: object) -> None:
    raise OSError(28, "No space left on device")


@contextmanager
def unwritable(spool: Spool) -> Iterator[None]:
    """A file stands where the folder should be."""
    spool.base.parent.mkdir(parents=True, exist_ok=True)
    spool.base.touch()
    yield
    spool.base.unlink()


async def test_without_a_spool_results_wait_for_the_database_and_nobody_hears_of_the_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completers, "UNWRITABLE_PAUSE_S", 0.02)
    me = bench.register()
    first, second, third = bench.claim(me, 3)
    node = Node(bench, me)
    with capture_logs() as said:
        async with node.working() as completer, anyio.create_task_group() as tasks:
            with unwritable(node.spool):
                await completer.finished(done(first))  # worth a spool
                await completer.flush()
                node.is_away = True
                tasks.start_soon(completer.results, second, {"y": 2.0})
                await anyio.sleep(0.4)
                await completer.release([third])
                assert await completer.left() == Left(lost=1)
            await node.spilled()
            assert await completer.left() == Left(spooled=1)
            node.is_away = False
            await completer.flush()
    assert bench.query("SELECT y, status FROM exp WHERE ID = 2") == [(2.0, "running")]
    assert bench.statuses()[1] == "done"
    assert [each["event"] for each in said if each["event"].startswith("spool.")] == [
        "spool.unwritable",
        "spool.writable",
    ]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_restored_database_gets_from_the_spool_what_it_has_forgotten(
    bench: Bench, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only when the spool has all results of the attempt: else it runs again."""
    monkeypatch.setattr(completers, "SPILL_S", 60.0)  # however long the database takes
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me, age_s=2.0 if whole else 0.0)
    async with node.working() as completer:
        await completer.results(claim, {"y": 1.0})
        await completer.finished(done(claim, results={"note": "end"}))
        await completer.flush()
    assert bench.statuses()[1] == "done"
    bench.execute(
        f"UPDATE exp SET status = 'running', y = NULL, note = NULL, pyexpd_token = '{claim.token}',"
        f" pyexpd_daemon = {me.id} WHERE ID = 1"
    )
    bench.execute("DELETE FROM exp__pyexpd_attempts")
    again = node.successor()
    unheard = (2, make_token())
    left = await again.finish([claim.key, unheard])
    if whole:
        assert left == [unheard]
        assert bench.query("SELECT y, note, status FROM exp WHERE ID = 1") == [(1.0, "end", "done")]
        assert bench.receipts() == [(1, 1, "done")]
    else:
        assert left == [claim.key, unheard]
        assert bench.statuses()[1] == "running"
        assert search(node.spool.base, [claim.key], said=set()) == {}


async def test_a_replay_that_loses_the_database_goes_on_when_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "BATCH_BYTES", 2000)
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await report_much(completer, claim)
        await node.spilled()
    second = Node(bench, me)
    turns: list[None] = []

    def lose_it_once() -> None:
        turns.append(None)
        if len(turns) == 3:
            second.is_away = True

    second.before_unit = lose_it_once
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node.successor().run_once)
            await wait_until_async(lambda: second.is_away)
            assert not await node.successor().may_sweep(me.id)  # another process keeps its hands off
            await anyio.sleep(0.3)
            second.before_unit = lambda: None
            second.is_away = False
    assert losses(bench) == [float(number) for number in range(60)]
    assert bench.query("SELECT y, status FROM exp WHERE ID = 1") == [(40.0, "done")]
    bench.store.run, bench.store.read = second.run, second.read


async def test_nothing_is_swept_before_it_was_looked_for_in_the_spools(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.finished(done(first, results={"y": 1.0}))
        await completer.results(second, {"y": 2.0})
        await node.spilled()
    assert await node.successor().may_sweep(me.id)
    assert bench.query("SELECT status, y FROM exp WHERE ID < 3 ORDER BY ID") == [("done", 1.0), ("running", 2.0)]


async def test_a_claim_that_was_only_handed_back_is_no_result(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.release([first])
        assert await completer.left() == Left()
        await completer.results(second, {"y": 2.0})
        assert await completer.left() == Left(spooled=1)
    assert await node.successor().run_once()
    assert bench.statuses()[1] == "created"
    assert bench.query("SELECT pyexpd_tries FROM exp WHERE ID = 1") == [(None,)]


def corrupt(node: Node, word: bytes) -> None:
    """Change a line in which a word stands."""
    assert node.spool.folder is not None
    for path in node.spool.folder.glob("*.records"):
        path.write_bytes(path.read_bytes().replace(word, b"X" * len(word)))


@pytest.mark.parametrize("how", ["corrupt", "a folder", "removed"])
async def test_what_does_not_come_back_is_known_to_be_lost_and_keeps_nobody_waiting(bench: Bench, how: str) -> None:
    me = bench.register()
    claims = bench.claim(me, 3)
    node = Node(bench, me)
    node.ledger.answered("", claims)
    flying, ended, runs = claims
    async with node.working() as completer:
        node.is_away = True
        await completer.logs(flying, [("epochs", 1.0, {"loss": 0.0})])
        await node.spilled()  # on its way: it is in memory, too
        await completer.finished(done(ended, results={"note": "precious"}))
        await completer.results(runs, {"note": "precious"})
        await node.spilled()
        assert completer.claims == {claim.key for claim in claims}
        assert node.spool.folder is not None
        match how:
            case "corrupt":
                corrupt(node, b"precious")
            case "a folder":
                (path,) = node.spool.folder.glob("*.records")
                path.unlink()
                path.mkdir()
            case "removed":
                shutil.rmtree(node.spool.folder)
        await completer.left()  # does not raise
        node.is_away = False
        await completer.flush()
        assert completer.claims == set()  # so that the membership hands `ended` back
        assert completer.lost == Left(lost=2)
        assert await completer.left() == Left(lost=2)
        await completer.release([ended])
        await completer.finished(done(runs))
        await completer.results(flying, {"y": 1.0})
        await completer.flush()
    assert losses(bench) == [0.0]
    assert [bench.statuses()[number] for number in (1, 2, 3)] == ["running", "created", "error"]
    assert "could not be read back from the spool" in bench.query("SELECT error FROM exp WHERE ID = 3")[0][0]


async def test_what_was_on_its_way_and_on_a_disk_that_was_removed_counts_as_lost(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.finished(done(claim))
        await node.spilled()
        assert await completer.left() == Left(spooled=1)
        shutil.rmtree(node.spool.base)
        assert await completer.left() == Left(lost=1)


@dataclass
class Hanging:
    """A call that hangs from now on until the block ends, and how many threads were in it at once."""

    call: Callable[..., Any]
    back: threading.Event = field(default_factory=threading.Event)
    inside: int = 0
    most: int = 0
    entered: int = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.inside += 1
        self.entered += 1
        self.most = max(self.most, self.inside)
        try:
            self.back.wait(60)
            return self.call(*arguments, **options)
        finally:
            self.inside -= 1


@contextmanager
def hanging(patch: pytest.MonkeyPatch, place: Any, name: str) -> Iterator[Hanging]:
    hang = Hanging(getattr(place, name))
    patch.setattr(place, name, hang)
    try:
        yield hang
    finally:
        hang.back.set()
        patch.setattr(place, name, hang.call)


@pytest.fixture
def _soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errands, "PATIENCE_S", 1.0)
    monkeypatch.setattr(completers, "UNWRITABLE_PAUSE_S", 0.02)


@pytest.mark.usefixtures("_soon_given_up")
async def test_a_disk_that_hangs_keeps_no_result_from_the_database(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hung has no effect when it comes back: an older value does not overwrite a newer one."""
    me = bench.register()
    first, second = bench.claim(me, 2)
    node = Node(bench, me, age_s=2.0)
    with capture_logs() as said:
        async with node.working() as completer:
            await completer.logs(first, [("epochs", 1.0, {"loss": 0.0})])
            await completer.flush()
            with hanging(monkeypatch, os, "fdatasync") as hang:
                await completer.results(first, {"y": 1.0})  # is to be on disk before it is sent
                await completer.results(first, {"y": 2.0})
                await completer.finished(done(second))
                await completer.flush()
                assert bench.query("SELECT y, status FROM exp WHERE ID = 1") == [(2.0, "running")]
                assert bench.statuses()[2] == "done"
                assert (hang.most, hang.entered) == (1, 1)
            await wait_until_async(lambda: not completer._errands.hang)
            node.is_away = True
            await completer.finished(done(first))
            await node.spilled()
    assert [each["event"] for each in said if each["event"].startswith("spool.")] == [
        "spool.unwritable",
        "spool.writable",
    ]
    assert await node.successor().run_once()
    assert bench.query("SELECT y, status FROM exp WHERE ID = 1") == [(2.0, "done")]


@pytest.mark.usefixtures("_soon_given_up")
async def test_with_disk_and_database_away_results_are_lost_and_the_end_comes_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    node = Node(bench, me)
    with hanging(monkeypatch, os, "fdatasync") as hang:
        async with node.working() as completer, anyio.create_task_group() as tasks:
            node.is_away = True
            await completer.finished(done(first))
            tasks.start_soon(_refused, completer, second)
            await wait_until_async(lambda: hang.entered)
            with anyio.fail_after(15):
                await completer.give_up()
                assert await completer.left() == Left(lost=2)
                await completer.close()
        assert (hang.inside, hang.most, hang.entered) == (1, 1, 1)


async def _refused(completer: Completer, claim: Claim) -> None:
    with pytest.raises(exceptions.ConnectionLost):
        await completer.results(claim, {"y": 2.0})


@pytest.mark.usefixtures("_soon_given_up")
async def test_with_a_backlog_that_cannot_be_read_others_go_first_and_its_own_wait_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = bench.register()
    first, second, third = bench.claim(me, 3)
    node = Node(bench, me)
    async with node.working() as completer:
        node.is_away = True
        await completer.logs(third, [("epochs", 1.0, {"loss": -1.0})])
        await node.spilled()  # this one is on its way
        await completer.results(first, {"y": 1.0})
        await node.spilled()
        with hanging(monkeypatch, node.spool, "look_ahead") as hang:
            node.is_away = False
            await wait_until_async(lambda: completer._errands.hang)
            await completer.logs(first, [("epochs", 1.0, {"loss": 0.0})])
            await completer.finished(done(first, results={"y": 3.0}))
            await completer.results(second, {"y": 2.0})
            assert bench.query("SELECT y FROM exp WHERE ID = 2") == [(2.0,)]
            assert (bench.statuses()[1], losses(bench)) == ("running", [-1.0])
            assert await completer.left() == Left(spooled=0, lost=1)
            assert hang.most == 1
        await completer.flush()
    assert bench.query("SELECT y, status FROM exp WHERE ID = 1") == [(3.0, "done")]
    assert losses(bench) == [-1.0, 0.0]


@pytest.mark.usefixtures("_soon_given_up")
@pytest.mark.parametrize("name", ["left_behind", "remove_old", "search"])
async def test_a_replay_on_a_disk_that_hangs_keeps_nobody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    me = bench.register()
    bench.claim(me)
    with hanging(monkeypatch, spools, name) as hang, anyio.fail_after(15):
        replay = Node(bench, me).successor()
        assert await replay.may_sweep(me.id)
        assert await replay.may_sweep(me.id)
        assert hang.entered == 1


async def test_what_cannot_be_looked_at_is_not_replayed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Errands, "run", broken)
    me = bench.register()
    with capture_logs() as said:
        assert await Node(bench, me).successor().run_once()
        assert await Node(bench, me).successor().finish([(1, "t")]) == [(1, "t")]
    assert {each["event"] for each in said} == {"spool.not_replayed"}
