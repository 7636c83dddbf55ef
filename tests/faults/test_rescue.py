"""Daemons that die on another host: how long it takes until others can run what they held."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.project import Project
from tests.faults.conftest import on_mariadb
from tests.faults.fleet import Node, check_project, drained, for_another_queue, has_started, node
from tests.helpers import wait_until

Make = Callable[..., Project]

LEASE_S = 3.0
TURN_S = 30.0
"""The longest turn of a rescuer in a small fleet, with any lease; with this one it is half of it."""

FIRST_IS_LONG = '''
def first_is_long(keyfields, rp, custom):
    """The first attempt of an experiment takes a minute, the next ones no time."""
    note(custom, "start", rp)
    time.sleep(60 if rp.attempt == 1 else 0.01)
    note(custom, "end", rp)
    return result(keyfields, rp)
'''


@contextmanager
def holders(project: Project, count: int) -> Iterator[list[Node]]:
    """Daemons on hosts of their own, each with one experiment that it runs."""
    with ExitStack() as stack:
        yield [stack.enter_context(node(project, f"holder{number}", slots=1)) for number in range(count)]


def requeued_after_s(project: Project, dying: Sequence[Node], *, wait: Callable[[], object] = lambda: None) -> float:
    """Kill these daemons; how long it takes, from their last beats on, until everything they held is requeued."""
    for each in dying:
        each.process.kill()
    names = ", ".join(repr(each.name) for each in dying)
    silent = (
        "SELECT MIN(TIMESTAMPDIFF(MICROSECOND, beat_at, UTC_TIMESTAMP(6))) / 1e6 FROM exp__pyexpd_daemons WHERE name IN"
    )
    began = time.monotonic() - float(project.database.query(f"{silent} ({names})")[0][0])
    wait()
    lost = "SELECT COUNT(*) FROM exp__pyexpd_attempts WHERE outcome = 'lost'"
    wait_until(lambda: project.database.query(lost) == [(len(dying),)], timeout=120, interval=0.05)
    return time.monotonic() - began


def finish(project: Project, *rescuers: Node) -> None:
    """Let what was requeued run, on a node that comes for it, and check everything."""
    with node(project, "last", slots=2) as last:
        project.wait_for(done=project.rows)
        for each in (last, *rescuers):
            drained(each)
    check_project(project)


@on_mariadb
def test_a_minority_is_declared_dead_after_its_lease(make_project: Make) -> None:
    project = make_project(rows=1, function="first_is_long", code=FIRST_IS_LONG)
    with node(project, "rescuer", *for_another_queue(project)) as rescuer, holders(project, 1) as dying:
        wait_until(lambda: has_started(project, 1), timeout=120)
        time.sleep(LEASE_S)  # it has watched for as long
        took_s = requeued_after_s(project, dying)
        print(f"requeued {took_s:.2f} s after the death of one, lease {LEASE_S:g} s")
        assert LEASE_S < took_s < LEASE_S + TURN_S
        finish(project, rescuer)


@on_mariadb
def test_a_rescuer_that_has_just_come_watches_for_a_lease_first(make_project: Make) -> None:
    project = make_project(rows=1, function="first_is_long", code=FIRST_IS_LONG)
    with ExitStack() as stack, holders(project, 1) as dying:
        wait_until(lambda: has_started(project, 1), timeout=120)
        time.sleep(LEASE_S)
        came = list[Node]()

        def rescuer_comes() -> None:
            time.sleep(LEASE_S)  # the lease has ended, and nobody saw it
            came.append(stack.enter_context(node(project, "rescuer", *for_another_queue(project))))

        took_s = requeued_after_s(project, dying, wait=rescuer_comes)
        print(f"requeued {took_s:.2f} s after the death, by one that came a lease later, lease {LEASE_S:g} s")
        assert 2 * LEASE_S < took_s < 2 * LEASE_S + TURN_S
        finish(project, *came)


@on_mariadb
@pytest.mark.slow
def test_when_most_of_the_fleet_falls_silent_one_more_lease_is_waited(make_project: Make) -> None:
    """It looks like something they share; what is really dead is rescued all the same."""
    # They beat often, so that no look falls between their last beats: of two that fell silent before, nobody is most.
    project = make_project(rows=3, function="first_is_long", code=FIRST_IS_LONG, daemon={"heartbeat": "100ms"})
    with node(project, "rescuer", *for_another_queue(project)) as rescuer, holders(project, 3) as dying:
        wait_until(lambda: has_started(project, 3), timeout=120)
        time.sleep(LEASE_S)
        took_s = requeued_after_s(project, dying)
        print(f"requeued {took_s:.2f} s after the death of three of four, lease {LEASE_S:g} s")
        assert 2 * LEASE_S < took_s < 2 * LEASE_S + TURN_S
        finish(project, rescuer)


REFUSED = '''
def refused(keyfields, rp, custom):
    """The first experiment is long; all others end with a number that its column cannot hold."""
    note(custom, "start", rp)
    time.sleep(60 if keyfields["x"] == 0 else 0.1)
    return {**result(keyfields, rp), "by_attempt": 10**12}
'''


@on_mariadb
def test_a_rescuer_whose_own_results_are_refused_sees_the_death_of_others(make_project: Make) -> None:
    """A value that the database refuses is no trouble with the database: the watch goes on."""
    project = make_project(rows=400, function="refused", code=REFUSED)
    with holders(project, 1) as dying:
        wait_until(lambda: has_started(project, 1), timeout=120)
        with node(project, "rescuer", slots=1) as rescuer:
            project.wait_for(error=5)
            took_s = requeued_after_s(project, dying)
            statuses = project.statuses()
            rescuer.process.kill()
    print(f"requeued {took_s:.2f} s after the death, {statuses['error']} results refused meanwhile")
    assert statuses["created"] > 100
    assert took_s < LEASE_S + TURN_S
