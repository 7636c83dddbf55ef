"""What every daemon does for the whole table: it finds the dead, and brings back what has waited for long enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import anyio
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.daemon import link as link_module
from pyexp_daemon.daemon import rescue
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.hosts import Host, start_time
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.promotion import Promotion
from pyexp_daemon.daemon.rescue import Rescue
from pyexp_daemon.model import Outcome, RetryPolicy
from pyexp_daemon.store import daemons
from tests.bench import POLICY, Bench, ended, make_daemon
from tests.helpers import wait_until_async


def rescuer(bench: Bench, blind_until: Callable[[], float]) -> Rescue:
    is_own = lambda row: False  # noqa: E731
    return Rescue(Link(bench.store), bench.table, Host.here(), POLICY, blind_until=blind_until, is_own=is_own)


async def test_a_rescuer_that_was_blind_itself_finds_nobody_dead(bench: Bench) -> None:
    """Whoever could not beat meanwhile has no proof that the others did not: an outage for all is nobody's death."""
    bench.claim(bench.register(lease_s=0.2), 2)  # on another host
    watch = rescuer(bench, anyio.current_time)
    for _ in range(3):
        assert await watch.run_once(everywhere=True) == 0
        await anyio.sleep(0.3)
    assert bench.query("SELECT state FROM exp__pyexpd_daemons") == [("live",)]


async def test_a_rescuer_that_saw_all_the_time_finds_the_silent_dead(bench: Bench) -> None:
    bench.claim(bench.register(lease_s=0.2), 2)
    watch = rescuer(bench, lambda: 0.0)
    assert await watch.run_once(everywhere=True) == 0  # it has only just begun to look
    await anyio.sleep(0.3)
    assert await watch.run_once(everywhere=True) == 2
    assert bench.query("SELECT state FROM exp__pyexpd_daemons") == [("dead",)]


async def test_those_that_fall_silent_one_after_the_other_are_most_of_a_fleet_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they share broke for all at once; that is seen at the next look, or the next beat that does not come."""
    for name in ("a", "b", "c", "me"):
        bench.register(name, lease_s=60.0)
    link = Link(bench.store)
    watch = Rescue(link, bench.table, Host.here(), POLICY, blind_until=lambda: 0.0, is_own=lambda row: row.name == "me")
    began = anyio.current_time()

    async def dead_at(seconds: float) -> list[str]:
        monkeypatch.setattr(anyio, "current_time", lambda: began + seconds)
        await watch.run_once(everywhere=True)
        return [name for (name,) in bench.query("SELECT name FROM exp__pyexpd_daemons WHERE state = 'dead'")]

    assert await dead_at(0) == []
    bench.execute("UPDATE exp__pyexpd_daemons SET beat = beat + 1 WHERE name = 'c'")
    assert await dead_at(20) == []
    assert await dead_at(61) == []  # a and b are two of four, and c has been silent for most of its lease
    assert sorted(await dead_at(122)) == ["a", "b", "c"]


async def test_a_heart_that_beats_again_ends_the_wait_for_the_database(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks every few seconds, while the pauses between looks of the loop grow with the outage."""
    monkeypatch.setattr(link_module, "FIRST_PAUSE_S", 3600.0)
    link = Link(bench.store)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(link.restored, exceptions.ConnectionLost("for this test"))
            await wait_until_async(lambda: link.is_away)
            link.seen_alive()
        assert not link.is_away
        await link.run(daemons.register(bench.table, make_daemon("back")))


async def test_a_look_tells_how_many_there_are_and_who_was_there_before(bench: Bench) -> None:
    fleet = Fleet()
    rows = [bench.register(name) for name in ("a", "b", "c")]
    bench.kill_daemon(rows[0])
    watch = Rescue(
        Link(bench.store),
        bench.table,
        Host.here(),
        POLICY,
        blind_until=lambda: 0.0,
        is_own=lambda row: row.name == "c",
        fleet=fleet,
    )
    await watch.run_once()
    assert (fleet.size, fleet.rank) == (2, 1)


async def test_nobody_waits_for_the_silent_to_rescue(bench: Bench) -> None:
    """The oldest may all be gone: whoever came after them looks as often then as they would have."""
    fleet = Fleet()
    for name in ("a", "b", "c", "d", "e", "f"):
        bench.register(name, lease_s=0.2)
    bench.register("me")
    watch = Rescue(
        Link(bench.store),
        bench.table,
        Host.here(),
        POLICY,
        blind_until=lambda: 0.0,
        is_own=lambda row: row.name == "me",
        turn_s=(1000.0, 1000.0),
        fleet=fleet,
    )
    await watch.run_once(everywhere=True)
    assert (fleet.size, fleet.rank) == (7, 6)
    assert watch.next_turn_s > 1500.0
    await anyio.sleep(0.3)
    await watch.run_once()
    assert (fleet.size, fleet.rank) == (1, 0)
    assert watch.next_turn_s <= 1000.0


async def test_between_rare_looks_a_death_on_this_host_is_seen_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The youngest of a large fleet looks at the table every few minutes; the kernel tells it of its neighbours."""
    monkeypatch.setattr(rescue, "LOOK_S", 0.05)
    monkeypatch.setattr(Fleet, "pause_by_rank_s", lambda fleet, least_s, first: 3600.0)
    here = Host.here()
    async with await anyio.open_process(["sleep", "60"]) as neighbour:
        began = start_time(neighbour.pid) or ""
        row = replace(
            make_daemon("neighbour"), host_id=here.id, boot_id=here.boot_id, pid=neighbour.pid, pid_start=began
        )
        (claim,) = bench.claim(bench.run(daemons.register(bench.table, row)), 1)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as services:
                services.start_soon(rescuer(bench, lambda: 0.0).run)
                await anyio.sleep(0.5)
                assert bench.statuses()[claim.experiment_id] == "running"
                neighbour.kill()
                await neighbour.wait()
                await wait_until_async(lambda: bench.statuses()[claim.experiment_id] == "created")
                services.cancel_scope.cancel()


async def test_what_has_waited_for_long_enough_may_run_again(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.record(me, ended(claim, Outcome.ERROR), policy=RetryPolicy(tries={"error": 2}, first_s=0.01, longest_s=0.01))
    assert bench.statuses()[1] == "waiting"
    promoted = anyio.Event()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as services:
            services.start_soon(Promotion(Link(bench.store), bench.table, promoted=promoted.set).run)
            await promoted.wait()
            await wait_until_async(lambda: bench.statuses()[1] == "created")
            services.cancel_scope.cancel()
