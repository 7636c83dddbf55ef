"""What batch systems and MPI launchers say, and what is made of odd answers: by their commands, as fakes on PATH."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pyexp_daemon import exceptions
from pyexp_daemon.daemon import allocation
from pyexp_daemon.daemon.allocation import Allocation, ask_end, detect

Fake = Callable[..., None]
HUGE = "9" * 5000
JOB = {"SLURM_JOB_ID": "9"}
OAR = {"OAR_JOB_ID": "42"}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Makes a command that prints these bytes; there is no other of the batch system."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("squeue", "oarstat"):
        write_fake(tmp_path / name, b"", code=1)

    def make(name: str, answer: bytes | str, *, code: int = 0) -> None:
        write_fake(tmp_path / name, answer.encode() if isinstance(answer, str) else answer, code=code)

    return make


def write_fake(path: Path, answer: bytes, *, code: int) -> None:
    (path.parent / f"{path.name}.answer").write_bytes(answer)
    path.write_text(f"#!/bin/sh\ncat {path}.answer\nexit {code}\n")
    path.chmod(0o755)


def found(environ: MutableMapping[str, str]) -> tuple[Allocation, list[Any]]:
    """The allocation, and what was said of it."""
    with capture_logs() as said:
        allocation = detect(environ)
    assert allocation is not None
    return allocation, [(event["event"], event.get("variable", event.get("command"))) for event in said]


@pytest.mark.parametrize(
    ("left", "seconds"),
    [("1-02:03:04", 93784), ("2:03:04", 7384), ("5:00", 300), ("UNLIMITED", math.inf)],
)
def test_the_end_is_what_squeue_says_of_this_job_alone(fake: Fake, left: str, seconds: float) -> None:
    """Asked for the first job of an array, squeue tells of all its members."""
    fake("squeue", f"7 1:00\n9 {left}\n8 2:00\n")
    ends = ask_end(JOB)
    assert ends == math.inf if seconds == math.inf else ends == pytest.approx(time.time() + seconds, abs=5)
    assert found(JOB)[0].ends == (None if seconds == math.inf else pytest.approx(ends, abs=5))


def test_of_a_heterogeneous_job_the_shortest_part_counts(fake: Fake) -> None:
    fake("squeue", "9 5:00\n10 3:00\n")
    assert ask_end({**JOB, "SLURM_HET_SIZE": "2"}) == pytest.approx(time.time() + 180, abs=5)


def test_the_array_of_the_job_from_which_this_one_was_submitted_says_nothing_of_its_end(fake: Fake) -> None:
    """`sbatch` hands on the environment in which it is called."""
    fake("squeue", "9 5:00\n")
    ends = found({**JOB, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "7"})[0].ends
    assert ends == pytest.approx(time.time() + 300, abs=5)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "9\n",
        "9 INVALID\n",
        "8 5:00\n",
        f"9 {HUGE}:00\n",
        f"9 {HUGE}\n",
        "9 999999999-00:00:00\n",
        b"9 \xff\xfe:00\n",
    ],
)
def test_an_answer_of_squeue_that_says_no_time(fake: Fake, answer: str | bytes) -> None:
    fake("squeue", answer)
    with pytest.raises(exceptions.AllocationUnknown) as raised:
        ask_end(JOB)
    assert raised.value.command == "squeue"
    assert len(raised.value.error) < 100
    assert (found(JOB)[0].ends, found(JOB)[1]) == (None, [("allocation.unknown", "squeue")])


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xfe",
        "[" * 100_000,
        '{"42": ' * 50_000,
        "{}",
        "[1]",
        '{"42": null}',
        '{"42": {"startTime": 1, "walltime": null}}',
        '{"42": {"startTime": NaN, "walltime": 3600}}',
        '{"42": {"startTime": 1e999, "walltime": 3600}}',
        '{"42": {"startTime": -5000, "walltime": 3600}}',
        '{"42": {"startTime": 1, "walltime": ' + "9" * 400 + "}}",
        '{"42": {"startTime": 1, "walltime": ' + HUGE + "}}",
        '{"42": {"startTime": 1, "walltime": "' + HUGE + ':00:00"}}',
    ],
    ids=str,
)
def test_an_answer_of_oarstat_that_says_no_time(fake: Fake, answer: str | bytes) -> None:
    fake("oarstat", answer)
    assert (found(OAR)[0].ends, found(OAR)[1]) == (None, [("allocation.unknown", "oarstat")])


@pytest.mark.parametrize("walltime", [7200, "7200", "2:00:00"])
def test_the_end_of_an_oar_job_is_its_start_and_its_walltime(fake: Fake, walltime: object) -> None:
    fake("oarstat", json.dumps({"42": {"startTime": 1_000_000, "walltime": walltime}}))
    assert ask_end(OAR) == 1_007_200


def test_a_number_of_a_job_that_is_none_makes_a_name_of_a_file(fake: Fake) -> None:
    assert found({"SLURM_JOB_ID": "../9\udcff"})[0].job == "slurm-..-9-"
    assert len(found({"SLURM_JOB_ID": HUGE})[0].job or "") == 100


def test_nobody_is_asked_outside_of_a_batch_system() -> None:
    assert ask_end({"PMI_RANK": "0"}) is None


@pytest.mark.parametrize("value", [HUGE, "-1", "1e9", "nan", "\udcff", " 4"])
@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_STEP_NUM_TASKS"])
def test_a_number_that_is_none_is_ignored_and_named_once(fake: Fake, name: str, value: str) -> None:
    fake("squeue", "9 UNLIMITED")
    with capture_logs() as said:
        allocation = detect({**JOB, name: value})
    assert allocation == Allocation(system="slurm", job="slurm-9", gpus=())
    assert [(event["event"], event["variable"]) for event in said] == [("allocation.ignored", name)]
    assert len(said[0]["value"]) < 100


def test_an_end_that_is_over_was_moved(fake: Fake) -> None:
    """A shell inside a job keeps the variables with which it began."""
    job = {**JOB, "SLURM_JOB_END_TIME": str(int(time.time()) - 60)}
    assert found(job)[0].ends is None
    fake("squeue", "9 5:00")
    assert found(job)[0].ends == pytest.approx(time.time() + 300, abs=5)


@pytest.mark.parametrize("value", [HUGE, "18446744073709551615", "253402300800", "0"])
def test_an_end_that_no_calendar_has_is_asked_for(fake: Fake, value: str) -> None:
    fake("squeue", "9 5:00")
    allocation, said = found({**JOB, "SLURM_JOB_END_TIME": value})
    assert allocation.ends == pytest.approx(time.time() + 300, abs=5)
    assert said == [("allocation.ignored", "SLURM_JOB_END_TIME")]


@pytest.mark.parametrize(("value", "cpus"), [("4", 2), ("1(x3),4(x2),2", 2), ("0", 8), ("9" * 9, 1)])
def test_cpus_of_a_step_are_shared_by_its_tasks_on_the_fullest_node(fake: Fake, value: str, cpus: int) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": value, "SLURM_CPUS_ON_NODE": "8"}
    assert found({**JOB, **step})[0].cpus == cpus


@pytest.mark.parametrize("value", [HUGE, "(x3)", "2(x3)," + HUGE, ""])
def test_tasks_of_a_step_that_are_no_numbers(fake: Fake, value: str) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": value, "SLURM_CPUS_ON_NODE": "8"}
    fake("squeue", "9 5:00")
    assert (found({**JOB, **step})[0].cpus, found({**JOB, **step})[1]) == (
        8,
        [("allocation.ignored", "SLURM_STEP_TASKS_PER_NODE")],
    )


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({}, ()),
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_GPUS_ON_NODE": "2"}, ("2", "3")),
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_STEP_ID": "0", "SLURM_STEP_GPUS": "3"}, ("3",)),
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_STEP_ID": "0"}, ()),  # srun --gres=none
        ({"SLURM_GPUS_ON_NODE": "2"}, None),
    ],
)
def test_the_gpus_that_slurm_has_granted(fake: Fake, environ: dict[str, str], gpus: tuple[str, ...] | None) -> None:
    assert found({**JOB, **environ})[0].gpus == gpus


RANK = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}


@pytest.mark.parametrize(
    ("own", "beside", "share"),
    [
        (16, 4, 4),  # not bound
        (4, 4, 4),  # bound to its own quarter
        (1, 16, 1),  # bound to a core
        (8, 16, 1),  # bound to a socket, with seven others
    ],
)
def test_ranks_share_what_their_launcher_has_and_not_what_they_are_bound_to(
    monkeypatch: pytest.MonkeyPatch, own: int, beside: int, share: int
) -> None:
    launcher = os.getppid()
    cpus = {0: own, launcher: 16}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus[pid])))
    monkeypatch.setattr(allocation, "_launcher", lambda _: launcher)
    assert found({**RANK, "OMPI_COMM_WORLD_LOCAL_SIZE": str(beside)})[0].cpus == share


def test_the_launcher_is_the_nearest_process_above_that_is_no_rank(tmp_path: Path) -> None:
    """A shell between it and the rank inherits the rank's number."""
    code = "from pyexp_daemon.daemon import allocation; print(allocation._launcher('OMPI_COMM_WORLD_RANK'))"
    script = tmp_path / "rank.sh"
    script.write_text(f'{sys.executable} -c "{code}"\necho\n')
    done = subprocess.run(["bash", str(script)], env={**os.environ, **RANK}, capture_output=True, text=True, check=True)
    assert int(done.stdout) == os.getpid()


def test_a_huge_number_of_ranks_leaves_one_cpu() -> None:
    allocation, said = found({**RANK, "OMPI_COMM_WORLD_LOCAL_SIZE": HUGE})
    assert (allocation.cpus or 0) >= 1
    assert said == [("allocation.ignored", "OMPI_COMM_WORLD_LOCAL_SIZE")]
    assert found({**RANK, "OMPI_COMM_WORLD_LOCAL_SIZE": "9" * 18})[0].cpus == 1


def test_ranks_share_the_quota_of_their_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "usable_cpus", lambda pid: 2 if pid == os.getppid() else 16)
    monkeypatch.setattr(allocation, "_launcher", lambda _: os.getppid())
    assert found({**RANK, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})[0].cpus == 1


def test_as_many_jobs_as_cpus_are_those_of_the_batch_job() -> None:
    code = "from pyexp_daemon.experimenter import _count_jobs; print(_count_jobs(-1))"
    job = {**JOB, "SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_END_TIME": "2000000000"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **job}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
