"""Fifty daemons whose server is restarted: they come back gently, all of them, and nobody takes another for dead."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.databases import Database
from tests.doorman import Doorman
from tests.e2e.project import TERM, Project
from tests.helpers import wait_until
from tests.servers import PrivateServer

DAEMONS = 50
AT_ONCE = 10
MOST_KNOCKS = 20
"""Pauses that do not grow, of half a second, would be sixty."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_daemons_come_back_gently_after_a_restart(private_mariadb: PrivateServer, tmp_path: Path) -> None:
    server = private_mariadb
    name = server.create_database()
    database = Database(provider="mysql", flavour="mariadb", name=name, server=server)
    daemon = {"poll": {"shortest": "100ms", "longest": "500ms"}, "start_jitter": "1s"}
    project = Project(database, tmp_path / "project", options={"daemon": daemon}, rows=100)
    with Doorman(tmp_path / "door", server) as doorman, ExitStack() as fleet:
        credentials = project.folder / "database_credentials.yml"
        content = yaml.safe_load(credentials.read_text())
        content["CREDENTIALS"]["Connection"]["Standard"] = {"unix_socket": str(tmp_path / "door")}
        credentials.write_text(yaml.safe_dump(content))
        project.fill()
        running = [
            fleet.enter_context(project.daemon("--slots", "1", "--name", f"n{number}", PYEXPD_HOST_ID=f"n{number}"))
            for number in range(DAEMONS)
        ]
        wait_until(lambda: is_live(project, running), timeout=400, interval=1, what="a fleet")
        project.wait_for(done=100)

        server.stop()
        stopped_at = time.monotonic()
        time.sleep(5)  # the outage itself
        server.start()
        back_at = time.monotonic()
        beats = dict(project.database.query("SELECT id, beat FROM exp__pyexpd_daemons"))
        project.database.query("UPDATE exp SET status = 'created', y = NULL")
        project.wait_for(done=100, timeout=120)
        wait_until(
            lambda: all(
                beat > beats[number]
                for number, beat in project.database.query("SELECT id, beat FROM exp__pyexpd_daemons")
            ),
            interval=0.2,
            what="every heart",
        )
        working_s = time.monotonic() - back_at
        time.sleep(max(0.0, stopped_at + 30 - time.monotonic()))  # what is counted are the first thirty seconds
        knocks = doorman.count(since=stopped_at, until=stopped_at + 30)
        assert states(project) == [("live", DAEMONS)]
        for process in running:
            process.send_signal(TERM)
        assert {project.end(process, timeout=120) for process in running} == {0}
    counts = sorted(knocks[process.pid] for process in running)
    print(f"connections per daemon: median {counts[DAEMONS // 2]}, most {counts[-1]}; all work after {working_s:.1f} s")
    assert counts[-1] <= MOST_KNOCKS, counts
    assert not [entry for entry in project.events() if entry["event"] in ("daemon.dead", "experiments.rescued")]
    assert {outcome for _, _, outcome in project.attempts()} == {"done"}


def is_live(project: Project, running: list[subprocess.Popen[str]]) -> bool:
    """Whether all of them have registered; one that ended instead never will."""
    ended = [number for number, process in enumerate(running) if process.poll() is not None]
    assert not ended, [(project.folder / f"daemon-output-{number}").read_text() for number in ended]
    return states(project) == [("live", len(running))]


def states(project: Project) -> list[tuple[str, int]]:
    return project.database.query("SELECT state, COUNT(*) FROM exp__pyexpd_daemons GROUP BY state")
