"""What a batch system or an MPI launch has given this process: as what it runs, with how much, and until when."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyexp_daemon.log import get_logger

log = get_logger()

ASK_S = 20.0
"""How long the batch system may take to answer."""

_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")
"""`squeue -o %L`: days-hours:minutes:seconds, of which the first two may be missing."""

_END_OF_TIME = 253402300800
"""The year 10000: more than that is no time."""

_RANKS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "MPI_LOCALNRANKS"),
    ("PMIX_RANK", "PMIX_LOCAL_SIZE"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A part of a cluster that this process may use for a while.

    Args:
        system: `slurm`, `oar` or `mpi`.
        job: what daemons in it are called; None where nothing tells jobs apart.
        cpus: how many this process may use; None: as many as it sees.
        gpus: those of the job, as the batch system calls them; None: it does not say.
        ends: when it ends, seconds since the epoch; None: nobody knows, or never.
    """

    system: str
    job: str | None = None
    cpus: int | None = None
    gpus: tuple[str, ...] | None = None
    ends: float | None = None


Ask = Callable[[Sequence[str]], str]
"""What a command prints; '' when it cannot be run."""


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("allocation.unknown", command=command[0], error=str(error))
        return ""
    if done.returncode:
        log.warning("allocation.unknown", command=command[0], error=done.stderr.strip()[-200:])
    return done.stdout if not done.returncode else ""


def detect(environ: Mapping[str, str] = os.environ, *, ask: Ask = _run) -> Allocation | None:
    """The allocation in which this process runs; None outside of one."""
    if environ.get("SLURM_JOB_ID"):
        # A launcher that numbers its ranks itself; what srun starts has a rank too, and is one of its tasks.
        is_launched = "OMPI_COMM_WORLD_RANK" in environ or "MPI_LOCALNRANKS" in environ
        found: Allocation | None = _slurm(environ, ask, is_launched=is_launched)
        if (_number(environ, "SLURM_STEP_NUM_TASKS") or 1) > 1 and not is_launched:
            return found
    elif environ.get("OAR_JOB_ID") or environ.get("OAR_JOBID"):
        found = _oar(environ, ask)
    else:
        found = None
    return _of_rank(found, environ)


def _slurm(environ: Mapping[str, str], ask: Ask, *, is_launched: bool) -> Allocation:
    job = environ["SLURM_JOB_ID"]
    name = f"slurm-{job}"
    if environ.get("SLURM_ARRAY_JOB_ID") and environ.get("SLURM_ARRAY_TASK_ID"):
        name = f"slurm-{environ['SLURM_ARRAY_JOB_ID']}-{environ['SLURM_ARRAY_TASK_ID']}"
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS") or 1
    if tasks > 1 and not is_launched:
        name += f"-{environ.get('SLURM_PROCID', '0')}"
    gpus = next((environ[key] for key in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS") if environ.get(key)), None)
    ends = _number(environ, "SLURM_JOB_END_TIME")
    return Allocation(
        system="slurm",
        job=name,
        cpus=_number(environ, "SLURM_CPUS_ON_NODE") if is_launched else _cpus_of_slurm(environ),
        gpus=None if gpus is None else tuple(gpus.split(",")),
        ends=float(ends) if ends and ends < _END_OF_TIME else _end_by_squeue(_member(environ), ask),
    )


def _member(environ: Mapping[str, str]) -> str:
    """What squeue calls this job alone: of an array, the number of its first job stands for all of them."""
    if environ.get("SLURM_ARRAY_JOB_ID") and environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def _cpus_of_slurm(environ: Mapping[str, str]) -> int | None:
    """Those of a task where srun has started it, else all that the job has on this node."""
    on_node, per_task = _number(environ, "SLURM_CPUS_ON_NODE"), _number(environ, "SLURM_CPUS_PER_TASK")
    if "SLURM_STEP_NUM_TASKS" not in environ:
        return on_node or per_task
    if per_task:
        return per_task
    # `2(x3),1`: two tasks on each of three nodes, one on another; the most is counted, for less is not harmful.
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    here = max(map(int, counts), default=1)
    return None if on_node is None else max(1, on_node // here)


def _end_by_squeue(job: str, ask: Ask) -> float | None:
    """By the time that is left: clocks of the controller and of the node may differ."""
    lines = ask(["squeue", "-h", "-j", job, "-o", "%L"]).split()
    left = [_seconds(*found.groups()) for line in lines if (found := _LEFT.fullmatch(line))]
    return time.time() + min(left) if left else None  # None: UNLIMITED, NOT_SET, INVALID; several: of several parts


def _seconds(*parts: str | None) -> int:
    days, hours, minutes, seconds = (int(part or 0) for part in parts)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _oar(environ: Mapping[str, str], ask: Ask) -> Allocation:
    job = environ.get("OAR_JOB_ID") or environ["OAR_JOBID"]
    name = f"oar-{job}"
    if environ.get("OAR_ARRAY_ID") and environ.get("OAR_ARRAY_INDEX"):
        name = f"oar-{environ['OAR_ARRAY_ID']}-{environ['OAR_ARRAY_INDEX']}"
    return Allocation(system="oar", job=name, cpus=_cores_of_oar(environ), ends=_end_by_oarstat(job, ask))


def _cores_of_oar(environ: Mapping[str, str]) -> int | None:
    """The node file has a line for each core; those of this host count."""
    file = next((environ[key] for key in ("OAR_NODEFILE", "OAR_NODE_FILE", "OAR_FILE_NODES") if environ.get(key)), None)
    if file is None:
        return None
    try:
        hosts = [line.split(".")[0] for line in Path(file).read_text(errors="replace").split()]
    except OSError as error:
        log.warning("allocation.unknown", command=file, error=str(error.strerror))
        return None
    return hosts.count(socket.gethostname().split(".")[0]) or None


def _end_by_oarstat(job: str, ask: Ask) -> float | None:
    try:
        (found,) = json.loads(ask(["oarstat", "-J", "-j", job]) or "{}").values()
        start = found.get("startTime") or found.get("start_time")
        walltime = found["walltime"]
        if isinstance(walltime, str) and ":" in walltime:
            hours, minutes, seconds = map(int, walltime.split(":"))
            walltime = (hours * 60 + minutes) * 60 + seconds
        return float(start) + float(walltime)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _of_rank(found: Allocation | None, environ: Mapping[str, str]) -> Allocation | None:
    """The share of one process of several that an MPI launcher has started on this node."""
    rank, size = next(((rank, size) for rank, size in _RANKS if environ.get(rank, "").isdecimal()), (None, None))
    if rank is None or size is None:
        return found
    found = found or Allocation(system="mpi")
    beside = _number(environ, size) or 1
    name = None if found.job is None else f"{found.job}-{environ[rank]}"
    cpus = found.cpus or len(os.sched_getaffinity(0))
    return replace(found, job=name, cpus=max(1, cpus // beside))


def _number(environ: Mapping[str, str], key: str) -> int | None:
    text = environ.get(key, "")
    return int(text) if text.isdecimal() else None
