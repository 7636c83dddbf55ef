"""The SSH gateway dies under load: daemons wait for it like for their database, and nobody takes them for dead."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.project import Project
from tests.faults.conftest import on_mariadb
from tests.faults.fleet import Node, check_project, drained, for_another_queue, node
from tests.sshd import Sshd, go_through

Make = Callable[..., Project]
LONG = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif("PYEXPD_TEST_LONG" not in os.environ, reason="PYEXPD_TEST_LONG is not set"),
]


@contextmanager
def node_behind(project: Project, name: str) -> Iterator[Node]:
    """A running daemon on a host of its own that reaches the database through the project's gateway."""
    state = project.folder / f"host-{name}" / "state"
    environment = {"PYEXPD_HOST_ID": name, "STATE_DIRECTORY": str(state)}
    with project.daemon("--slots", "2", "--name", name, **environment) as process:
        running = Node(project, name, process, None, state)
        running.wait_for("slot.started")
        yield running


@on_mariadb
@pytest.mark.parametrize(
    ("cut_s", "lease_s"), [pytest.param(6, 20, marks=pytest.mark.slow), pytest.param(30, 60, marks=LONG)]
)
def test_a_gateway_that_is_away_for_less_than_the_lease_fences_nobody(
    make_project: Make, sshd: Sshd, cut_s: int, lease_s: int
) -> None:
    """Not even one who sees the daemons silent, as he has another way to the database."""
    project = make_project(rows=200, seconds=0.1, daemon={"lease": f"{lease_s}s", "heartbeat": f"{lease_s / 6}s"})
    direct = for_another_queue(project)
    go_through(sshd, project)
    with (
        node(project, "watcher", *direct) as watcher,
        node_behind(project, "one") as one,
        node_behind(project, "two") as two,
    ):
        cut(sshd, project, one, two, cut_s=cut_s)
        for each in (one, two, watcher):
            drained(each)
        assert not watcher.events("daemon.dead")
    check_nobody_was_fenced(project, one, two)


@on_mariadb
@pytest.mark.parametrize(
    ("cut_s", "lease_s"), [pytest.param(12, 8, marks=pytest.mark.slow), pytest.param(30, 10, marks=LONG)]
)
def test_a_gateway_that_is_away_for_longer_than_the_lease_of_all_fences_nobody(
    make_project: Make, sshd: Sshd, cut_s: int, lease_s: int
) -> None:
    """Who is back first knows that he was away himself."""
    project = make_project(rows=200, seconds=0.1, daemon={"lease": f"{lease_s}s", "heartbeat": f"{lease_s / 6}s"})
    go_through(sshd, project)
    with node_behind(project, "one") as one, node_behind(project, "two") as two:
        cut(sshd, project, one, two, cut_s=cut_s)
        for each in (one, two):
            drained(each)
    check_nobody_was_fenced(project, one, two)


def cut(sshd: Sshd, project: Project, *nodes: Node, cut_s: float) -> None:
    """Kill the gateway with its sessions under load, have it away for so long, and see everything done after it."""
    project.wait_for(done=20)
    began = time.monotonic()
    sshd.kill()
    for each in nodes:
        each.wait_for("database.lost")
    before = project.statuses()["done"]
    time.sleep(max(0.0, cut_s - (time.monotonic() - began)))
    assert project.statuses()["done"] == before < project.rows  # nothing goes past it
    sshd.start()
    began = time.monotonic()
    project.wait_for(done=before + 1, timeout=120)
    again_s = time.monotonic() - began
    project.wait_for(done=project.rows, timeout=90)
    away = [event["away_s"] for each in nodes for event in each.wait_for("database.back")]
    print(f"away for {away} s; results again {again_s:.1f} s after the gateway, all {time.monotonic() - began:.1f} s")


def check_nobody_was_fenced(project: Project, *nodes: Node) -> None:
    for each in nodes:
        assert each.events("tunnel.opened")
        assert not each.events("daemon.fenced", "daemon.dead", "daemon.back", "lease.lost", "experiments.rescued")
    records = check_project(project, may_overlap=False)
    assert {len(runs) for runs in records.runs.values()} == {1}
    assert {row.attempt for row in records.rows.values()} == {1}
