"""Daemons as Slurm jobs; here without a Slurm, in the environment that it gives to a job."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.project import PYEXPD, TERM, Project
from tests.helpers import wait_until

SCRIPT = str(Path(__file__).parents[2] / "configs" / "slurm.sbatch")

sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@contextmanager
def slurm_job(project: Project, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The batch script as Slurm starts it: member 3 of the array job 4700."""
    environment = {
        **os.environ,
        "PATH": f"{Path(PYEXPD).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_ARRAY_JOB_ID": "4700",
        "SLURM_ARRAY_TASK_ID": "3",
        "STATE_DIRECTORY": str(folder / "local"),
    }
    with (folder / "output").open("w") as output:
        job = subprocess.Popen(
            ["bash", SCRIPT, "pyexpd.yml"],
            cwd=project.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield job
        finally:
            if job.poll() is None:
                job.kill()
            job.wait()


def events(project: Project, name: str) -> list[dict[str, Any]]:
    return [event for event in project.events("slurm-4700-3") if event["event"] == name]


@sqlite
def test_a_slurm_job_becomes_the_daemon_and_drains_for_ten_seconds(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    """The batch shell is the daemon, so that a signal to it alone reaches it. A second TERM ends the wait."""
    project = make_project(rows=1, function="long_first_time")
    project.fill()
    with slurm_job(project, tmp_path) as job:
        wait_until(project.notes, timeout=120, interval=0.05)
        assert events(project, "daemon.started")[0]["pid"] == job.pid
        job.send_signal(TERM)
        wait_until(lambda: events(project, "daemon.draining"), interval=0.05)
        time.sleep(1.1)
        assert job.poll() is None
        job.send_signal(TERM)
        assert job.wait(timeout=120) == 0
    assert events(project, "daemon.draining")[0]["deadline_s"] == 10.0
    assert project.statuses() == {"created": 1}
    assert [outcome for _, _, outcome in project.attempts()] == ["released"]


@sqlite
def test_what_scancel_ends_is_handed_back_uncharged(make_project: Callable[..., Project], tmp_path: Path) -> None:
    """It sends TERM to every process of the job, to the experiments before or after the daemon."""
    project = make_project(rows=2, function="long_first_time", n_jobs=2)
    project.fill()
    with slurm_job(project, tmp_path) as job:
        wait_until(lambda: len(project.notes()) == 2, timeout=120, interval=0.05)
        first, second = psutil.Process(job.pid).children()
        for pid in (first.pid, job.pid, second.pid):
            os.kill(pid, TERM)
        assert job.wait(timeout=120) == 0
    assert project.statuses() == {"created": 2}
    assert [outcome for _, _, outcome in project.attempts()] == ["released"] * 2
    assert project.database.query("SELECT DISTINCT pyexpd_tries FROM exp") == [(None,)]


@sqlite
def test_what_scancel_ends_amid_a_slow_claim_is_handed_back_uncharged(
    make_project: Callable[..., Project], tmp_path: Path
) -> None:
    """The daemon cannot leave the claim, but it has heard that it is to end."""
    project = make_project(rows=1, function="long_first_time")
    project.fill()
    gate = tmp_path / "gate"
    with project.daemon("--slots", "2", PYEXPD_FAILPOINTS=f"claim.commit=wait:{gate}@2") as daemon:
        wait_until(project.notes)
        wait_until(Path(f"{gate}.reached").exists)
        for pid in (int(project.notes()[0][3]), daemon.pid):
            os.kill(pid, TERM)
        time.sleep(1.5)  # longer than the daemon waits to be told as well
        gate.touch()
        assert project.end(daemon) == 0
    assert project.statuses() == {"created": 1}
    assert [outcome for _, _, outcome in project.attempts()] == ["released"]
    assert project.database.query("SELECT pyexpd_tries FROM exp") == [(None,)]
