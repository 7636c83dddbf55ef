"""Daemons inside allocations: a real Slurm of this machine, fakes of OAR on PATH, and what MPI launchers say."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon.config.cpus import usable_cpus
from tests.e2e.project import PYEXPD, Project, is_alive
from tests.e2e.test_snapshots import FUNCTIONS, count, drawn, undisturbed
from tests.helpers import wait_until
from tests.slurm import Slurm

Make = Callable[..., Project]
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def make_long(make_project: Make) -> Make:
    """Makes a filled project whose experiments have so many intervals of so many seconds."""

    def make(*, intervals: int, seconds: float, gated: bool = False, **options: Any) -> Project:
        custom = {"intervals": intervals, "seconds": seconds, "gated": gated, "keep": 1}
        daemon = {"heartbeat": "200ms", "lease": "2s", "drain_timeout": "2s", **options.pop("daemon", {})}
        limits = {"grace": "500ms", **options.pop("limits", {})}
        project = make_project(function="intervals", custom=custom, daemon=daemon, limits=limits, **options)
        path = project.folder / "experiments.py"
        path.write_text(path.read_text() + FUNCTIONS)
        project.fill()
        return project

    return make


def script(project: Project, *arguments: str, notice_s: int | None = None) -> Path:
    """The script that the command writes, for the little Slurm of the tests.

    Without a notice Slurm says nothing before the limit: it may be up to a minute early, which is all of a short job.
    """
    path = project.folder / "job.sbatch"
    path.unlink(missing_ok=True)
    done = project.pyexpd("cluster", "template", "slurm", "--cpus", "1", "-o", str(path))
    assert done.returncode == 0, done.stderr
    text, signal_line = path.read_text().replace("--mem=16G", "--mem=100"), "#SBATCH --signal=B:USR1@"
    assert f"{signal_line}600\n" in text
    text = text.replace(f"{signal_line}600\n", "" if notice_s is None else f"{signal_line}{notice_s}\n")
    path.write_text(text.replace("run\n", f"run {' '.join(arguments)}\n"))
    return path


def events(project: Project, name: str, daemon: str = "slurm-*") -> list[dict[str, Any]]:
    return [event for event in project.events(daemon) if event["event"] == name]


@on_mariadb
def test_an_array_of_three_daemons_empties_a_table_each_once(make_project: Make, slurm: Slurm) -> None:
    project = make_project(rows=300, function="gated")
    project.fill()
    options = ("--array=1-3", "--time=5", "--requeue")
    job = slurm.submit(script(project, "--until-empty"), "pyexpd.yml", folder=project.folder, options=options)
    at_work = "SELECT DISTINCT name FROM exp WHERE status = 'running'"  # two at once, for there are two processors
    wait_until(lambda: len(project.database.query(at_work)) >= 2, timeout=120, interval=0.1, what="two at work")
    project.open_gate()
    slurm.wait_over(job, timeout=180)
    assert slurm.states(job) == ["COMPLETED"] * 3
    assert project.statuses() == {"done": 300}
    assert {len(times) for times in project.runs().values()} == {1}
    names = {name for (name,) in project.database.query("SELECT DISTINCT name FROM exp")}
    assert names <= {f"slurm-{job}-{member}" for member in (1, 2, 3)}
    assert len(names) >= 2
    assert {event["slots"] for event in events(project, "daemon.started")} == {1}


@on_mariadb
@pytest.mark.timeout(600)
def test_a_job_at_its_time_limit_saves_and_the_next_goes_on(make_long: Make, slurm: Slurm) -> None:
    """The shortest limit that Slurm knows is a minute: the daemon asks when its job ends, and stops in time."""
    project = make_long(rows=1, intervals=700, seconds=0.1)
    path = script(project)
    job = slurm.submit(path, "pyexpd.yml", folder=project.folder, options=("--array=1", "--time=1", "--no-requeue"))
    slurm.wait_for(job, "RUNNING")
    slurm.wait_over(job, timeout=180)
    assert slurm.states(job) == ["COMPLETED"]  # by itself, before it was killed
    (ending,) = events(project, "allocation.ending")
    assert 0 < ending["left_s"] < 14  # 2 s to drain, half a second of grace, ten for the last words
    assert count(project, "stop") == 1
    assert project.statuses() == {"created": 1}
    assert [outcome for _, _, outcome in project.attempts()] == ["released"]
    assert count(project, "interval") > 0
    job = slurm.submit(path, "pyexpd.yml", folder=project.folder, options=("--array=1", "--time=10", "--no-requeue"))
    project.wait_for(done=1, timeout=300)
    slurm.say("scancel", str(job))
    slurm.wait_over(job)
    assert project.database.query("SELECT y, pyexpd_tries FROM exp") == [(undisturbed(0, 700), None)]
    assert count(project, "interval") == 700


@on_mariadb
def test_the_signal_of_the_script_lets_what_runs_finish(make_project: Make, slurm: Slurm) -> None:
    """Two minutes, of which Slurm says the end 40 to 100 s before."""
    project = make_project(rows=3, function="gated", daemon={"drain_timeout": "1s"}, limits={"grace": "500ms"})
    project.fill()
    path = script(project, notice_s=40)
    job = slurm.submit(path, "pyexpd.yml", folder=project.folder, options=("--array=1", "--time=2", "--no-requeue"))
    wait_until(lambda: events(project, "daemon.draining"), timeout=180, interval=0.1, what="the signal")
    project.open_gate()
    slurm.wait_over(job)
    assert slurm.states(job) == ["COMPLETED"]
    assert [event["signal"] for event in events(project, "signal.received")] == ["SIGUSR1"]
    assert events(project, "allocation.ending") == []
    assert project.statuses() == {"done": 1, "created": 2}
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE pyexpd_tries IS NOT NULL") == [(0,)]


@on_mariadb
@pytest.mark.parametrize("how", ["scancel", "kill", "requeue"])
def test_what_ends_a_job_loses_nothing_and_another_goes_on(make_long: Make, slurm: Slurm, how: str) -> None:
    project = make_long(rows=2, intervals=60, seconds=0.05, gated=True)
    path = script(project)
    options = ("--array=1", "--time=5", "--requeue")
    job = slurm.submit(path, "pyexpd.yml", folder=project.folder, options=options)
    wait_until(lambda: count(project, "interval") >= 10, timeout=120, interval=0.05, what="some intervals")
    pids = [int(note[3]) for note in project.notes()]
    if how == "scancel":
        slurm.say("scancel", str(job))
        slurm.wait_over(job)
    elif how == "kill":  # preemption without a warning: scancel would send TERM first, whatever signal is asked for
        os.kill(events(project, "daemon.started")[0]["pid"], signal.SIGKILL)
        slurm.wait_over(job)
    else:
        slurm.say("scontrol", "requeue", str(job))
        wait_until(lambda: slurm.states(job) == ["PENDING"], interval=0.1, what="it is queued again")
    project.open_gate()  # not before: the first experiment is not to be done when the job ends
    assert not [pid for pid in set(pids) if is_alive(pid)]
    if how != "requeue":
        job = slurm.submit(path, "pyexpd.yml", folder=project.folder, options=options)
    project.wait_for(done=2, timeout=120)
    slurm.say("scancel", str(job))
    slurm.wait_over(job)
    rows = project.database.query("SELECT y, pyexpd_tries FROM exp ORDER BY ID")
    intervals = [drawn(project, 1), drawn(project, 2)]
    assert rows == [(undisturbed(x, intervals[x]), None) for x in (0, 1)]
    assert sum(intervals) <= count(project, "interval") <= sum(intervals) + 1
    outcomes = [outcome for _, _, outcome in project.attempts()]
    assert sorted(outcomes) == sorted([*["done"] * 2, "lost" if how == "kill" else "released"])


@on_mariadb
def test_who_does_not_listen_is_ended_within_killwait_and_handed_back(make_project: Make, slurm: Slurm) -> None:
    """The configuration says that everything has to be over by then: whom Slurm kills hands nothing back."""
    project = make_project(
        rows=1, function="long_first_time", daemon={"drain_timeout": "500ms"}, limits={"grace": "200ms"}
    )
    project.fill()
    slurm.configure(kill_wait_s=5)
    try:
        job = slurm.submit(script(project), "pyexpd.yml", folder=project.folder, options=("--array=1", "--time=5"))
        wait_until(project.notes, timeout=120, interval=0.05)
        slurm.say("scancel", str(job))
        slurm.wait_over(job)
    finally:
        slurm.configure()
    assert events(project, "daemon.stopped")
    assert project.statuses() == {"created": 1}
    assert [outcome for _, _, outcome in project.attempts()] == ["released"]


@on_sqlite
def test_nothing_begins_that_would_be_cut_off(make_project: Make) -> None:
    """By the time-out, or by how long the others took; with nothing to do the daemon gives its node back."""
    project = make_project(
        rows=60, custom={"seconds": 1.0}, daemon={"drain_timeout": "1s"}, limits={"grace": "200ms", "timeout": "1m"}
    )
    project.fill()
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_END_TIME": str(int(time.time()) + 40)}
    with project.daemon(**job) as daemon:
        assert project.end(daemon) == 0
    assert project.notes() == []
    config = project.config.read_text()
    project.config.write_text(config.replace("timeout: 1m", "timeout: 10s"))
    # The last words, drain, an experiment; and until the first one begins, on a machine that has much to do.
    job["SLURM_JOB_END_TIME"] = str(int(time.time()) + 10 + 1 + 10 + 12)
    with project.daemon(**job) as daemon:
        assert project.end(daemon) == 0
    assert 1 <= project.statuses()["done"] <= 12 + 1  # one takes a second
    assert [event["event"] for event in project.events("slurm-7") if event["event"] == "allocation.ending"] != []


@on_sqlite
def test_an_experiment_knows_how_long_it_has(make_project: Make) -> None:
    project = make_project(rows=1, function="remaining")
    with (project.folder / "experiments.py").open("a") as file:
        file.write("\ndef remaining(keyfields, rp, custom):\n    return {'y': rp.remaining_time()}\n")
    project.fill()
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 1000)}
    cases: tuple[tuple[dict[str, Any], Any, Any], ...] = ((job, 900, 1000), ({}, None, None))
    for environment, low, high in cases:
        with project.daemon("--until-empty", **environment) as daemon:
            assert project.end(daemon) == 0
        ((y,),) = project.database.query("SELECT y FROM exp")
        assert (y is None) if low is None else low < y <= high
        project.pyexpd("reset", "1", "--yes")
        here = project.pyexpd("run", "1", "--here", **environment)
        assert here.returncode == 0, here.stderr
        ((y,),) = project.database.query("SELECT y FROM exp")
        assert (y is None) if low is None else low < y <= high
        project.pyexpd("reset", "1", "--yes")


EXTENDED = """

def extended(keyfields, rp, custom):
    first = rp.remaining_time()
    note(custom, "start", rp)
    for _ in range(450):
        time.sleep(0.1)
        if rp.remaining_time() > first + 100:
            return {"y": rp.remaining_time()}
"""


def extended(make_project: Make) -> Project:
    """A project whose only experiment waits until its time is extended."""
    project = make_project(rows=1, function="extended", daemon={"drain_timeout": "1s"}, limits={"grace": "500ms"})
    with (project.folder / "experiments.py").open("a") as file:
        file.write(EXTENDED)
    project.fill()
    return project


@on_sqlite
def test_a_longer_limit_reaches_the_daemon_and_what_runs_in_it(make_project: Make) -> None:
    project = extended(make_project)
    path = fake(project.folder, "squeue", "7 20:00")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 55)}  # asked 30 s before the drain
    with project.daemon("--until-empty", PATH=f"{path}:{os.environ['PATH']}", **job) as daemon:
        assert project.end(daemon, timeout=120) == 0
    ((y,),) = project.database.query("SELECT y FROM exp")
    assert 1100 < y <= 1200
    assert [event["event"] for event in events(project, "allocation.moved")] == ["allocation.moved"]
    assert events(project, "allocation.ending") == []


@on_mariadb
def test_a_limit_that_slurm_extends_is_the_new_end(make_project: Make, slurm: Slurm) -> None:
    project = extended(make_project)
    options = ("--array=1", "--time=1", "--no-requeue")
    job = slurm.submit(script(project, "--until-empty"), "pyexpd.yml", folder=project.folder, options=options)
    wait_until(project.notes, timeout=120, interval=0.05)
    slurm.say("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    slurm.wait_over(job, timeout=120)
    assert slurm.states(job) == ["COMPLETED"]
    ((y,),) = project.database.query("SELECT y FROM exp")
    assert 200 < y < 300


def detected(folder: Path, path: str = "", **environment: str) -> Any:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OAR_", "OMPI_"))}
    done = subprocess.run(
        [PYEXPD, "cluster", "detect", "--json"],
        cwd=folder,
        env={**clean, "PATH": f"{path}:{clean['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


def fake(folder: Path, name: str, text: str) -> str:
    """A command that prints something; the folder to put on PATH."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    (bin_ / name).write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    (bin_ / name).chmod(0o755)
    return str(bin_)


def test_what_oar_says(tmp_path: Path) -> None:
    host = os.uname().nodename
    nodes = tmp_path / "nodes"
    nodes.write_text(f"{host}\n{host}\nanother.node\n")
    begun = int(time.time()) - 60
    path = fake(tmp_path, "oarstat", json.dumps({"42": {"startTime": begun, "walltime": 3600, "state": "Running"}}))
    told = detected(tmp_path, path, OAR_JOB_ID="42", OAR_ARRAY_ID="40", OAR_ARRAY_INDEX="3", OAR_NODEFILE=str(nodes))
    assert (told["system"], told["name"], told["cpus"]) == ("oar", "oar-40-3", min(2, usable_cpus()))
    ends = told["ends"]
    assert ends.startswith(time.strftime("%Y-%m-%dT%H:%M:", time.gmtime(begun + 3600)))
    path = fake(tmp_path, "oarstat", "no such job")
    told = detected(tmp_path, path, OAR_JOBID="42")
    assert (told["name"], told["ends"]) == ("oar-42", None)


def test_what_slurm_and_mpi_say(tmp_path: Path) -> None:
    path = fake(tmp_path, "squeue", "9 1-02:03:04")
    told = detected(tmp_path, path, SLURM_JOB_ID="9", SLURM_CPUS_ON_NODE="1")
    ends = datetime.datetime.fromisoformat(told["ends"]).timestamp()
    assert -60 < ends - (time.time() + 26 * 3600 + 184) <= 1
    assert (told["name"], told["cpus"]) == ("slurm-9", 1)
    path = fake(tmp_path, "squeue", "9 UNLIMITED")
    told = detected(tmp_path, path, SLURM_JOB_ID="9", OMPI_COMM_WORLD_RANK="5", OMPI_COMM_WORLD_LOCAL_SIZE="2")
    assert (told["name"], told["ends"]) == ("slurm-9-5", None)
    batch = {"SLURM_JOB_ID": "9", "SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "8"}
    assert detected(tmp_path, path, **batch)["cpus"] == min(8, usable_cpus())  # the only process of the job here
    ranks = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}
    assert detected(tmp_path, path, **batch, **ranks)["cpus"] == 1
    orted = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert detected(tmp_path, path, **batch, **orted, **ranks)["name"] == "slurm-9-3"
    own = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    node = {"SLURM_JOB_ID": "9", "SLURM_CPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "1"}
    assert detected(tmp_path, path, **node, **orted, **own)["cpus"] == 1
    hydra = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "PMI_RANK": "5", "MPI_LOCALNRANKS": "2"}
    told = detected(tmp_path, path, **node, **hydra)
    assert (told["name"], told["cpus"]) == ("slurm-9-5", 1)
    far = detected(tmp_path, path, SLURM_JOB_ID="9", SLURM_JOB_END_TIME="18446744073709551615")
    assert far["name"] == "slurm-9"
    step = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert detected(tmp_path, path, **step, PMI_RANK="1")["name"] == "slurm-9-1"
    told = detected(tmp_path, PMI_RANK="0")
    assert (told["system"], told["name"], told["ends"]) == ("mpi", None, None)
    assert detected(tmp_path)["system"] is None


def test_the_gpus_are_those_that_a_daemon_takes(tmp_path: Path) -> None:
    """The mask's, whose numbers may be others than the job's."""
    job = {"SLURM_JOB_ID": "9", "SLURM_JOB_GPUS": "2,3", "SLURM_JOB_END_TIME": "2000000000"}
    assert detected(tmp_path, CUDA_VISIBLE_DEVICES="0,1", **job)["gpus"] == ["0", "1"]
    assert detected(tmp_path, CUDA_VISIBLE_DEVICES="0,1")["gpus"] == ["0", "1"]
    assert detected(tmp_path, **job)["gpus"] == ["2", "3"]
    assert detected(tmp_path, CUDA_VISIBLE_DEVICES="", **job)["gpus"] is None


HUGE = "9" * 5000


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_ID": "9", "SLURM_CPUS_PER_TASK": HUGE, "SLURM_CPUS_ON_NODE": HUGE, "SLURM_JOB_END_TIME": HUGE},
        {"SLURM_JOB_ID": "9", "SLURM_STEP_NUM_TASKS": HUGE, "SLURM_STEP_TASKS_PER_NODE": HUGE},
        {"SLURM_JOB_ID": HUGE, "SLURM_JOB_END_TIME": "253402300799"},
        {"SLURM_JOB_ID": "9\udcff", "SLURM_JOB_GPUS": "\udcff", "SLURM_PROCID": "\udcff"},
        {"OAR_JOB_ID": HUGE, "OAR_NODEFILE": HUGE},
        {"OMPI_COMM_WORLD_RANK": HUGE, "OMPI_COMM_WORLD_LOCAL_SIZE": HUGE},
    ],
    ids=" ".join,
)
def test_odd_values_of_a_batch_system_are_lines_and_no_traceback(tmp_path: Path, environment: dict[str, str]) -> None:
    for name in ("squeue", "oarstat"):
        path = fake(tmp_path, name, f'{{"{HUGE}": {HUGE}}}')
    command = [PYEXPD, "cluster", "detect"]
    for options in ([], ["--json"]):
        done = subprocess.run(
            [*command, *options],
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}", **environment},
            capture_output=True,
            timeout=120,
            check=False,
        )
        said = done.stderr.decode(errors="replace")
        assert (done.returncode, "Traceback" in said, "bug" in said) == (0, False, False), said
        assert all(line.startswith("pyexpd: warning: allocation.") for line in said.splitlines())


@pytest.mark.parametrize("time", [f"{HUGE}:00:00", "٠١:٠٠:٠٠", "1:60:00", "24"])
def test_a_time_that_is_none_is_one_line(time: str) -> None:
    command = [PYEXPD, "cluster", "template", "slurm", "--time", time]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    line, hint = done.stderr.splitlines()
    assert line.endswith("is no time")
    assert len(line) < 100
    assert hint == "  hours:minutes:seconds, such as 24:00:00"


def test_templates_are_what_is_in_configs(tmp_path: Path) -> None:
    configs = Path(__file__).parents[2] / "configs"
    for system, name in (("slurm", "slurm.sbatch"), ("oar", "oar.sh")):
        done = subprocess.run([PYEXPD, "cluster", "template", system], capture_output=True, text=True, check=True)
        assert done.stdout == (configs / name).read_text()
        options = ["--daemons", "9", "--cpus", "3", "--time", "01:30:00", "--gpus", "2", "-o", str(tmp_path / name)]
        subprocess.run([PYEXPD, "cluster", "template", system, *options], check=True, capture_output=True)
        text = (tmp_path / name).read_text()
        assert "@" not in text.replace("USR1@600", "")
        gpus = {"slurm": "#SBATCH --gres=gpu:2 ", "oar": "#OAR -p gpu_count >= 2\n"}[system]
        daemons = {"slurm": "--array=1-9 ", "oar": "--array 9\n"}[system]
        assert all(wanted in text for wanted in (daemons, "=3", "01:30:00", gpus))
        assert subprocess.run(["bash", "-n", str(tmp_path / name)], check=False).returncode == 0
    short = [PYEXPD, "cluster", "template", "slurm", "--time", "00:05:00"]
    assert "--signal=B:USR1@75\n" in subprocess.run(short, capture_output=True, text=True, check=True).stdout
    never = [*short[:-1], "0:00:00"]
    refused = subprocess.run(never, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (64, 1)
    again = subprocess.run(
        [PYEXPD, "cluster", "template", "oar", "-o", str(tmp_path / "oar.sh")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (again.returncode, again.stderr.count("\n")) == (64, 1)
    assert int(signal.SIGUSR1) == 10  # what the script for OAR says
