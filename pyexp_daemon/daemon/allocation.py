"""What a batch system or an MPI launch has given this process: as what it runs, with how much, and until when."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pyexp_daemon import exceptions
from pyexp_daemon.config.cpus import usable_cpus
from pyexp_daemon.config.mistakes import show
from pyexp_daemon.log import get_logger

log = get_logger()

ASK_S = 20.0
"""How long the batch system may take to answer."""

_LEFT = re.compile(r"(?:(\d{1,9})-)?(?:(\d{1,9}):)?(\d{1,9}):(\d{1,9})")
"""`squeue -o %L`: days-hours:minutes:seconds, of which the first two may be missing."""

_TASKS = re.compile(r"\d{1,9}(\(x\d+\))?(,\d{1,9}(\(x\d+\))?)*")

_END_OF_TIME = 253402300800
"""The year 10000: more than that is no time."""

_MOST_DIGITS = 18
_LONGEST_NAME = 100

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
        gpus: those of the job, as the batch system calls them; empty: none; None: it does not say.
        ends: when it ends, seconds since the epoch; None: nobody knows, or never.
    """

    system: str
    job: str | None = None
    cpus: int | None = None
    gpus: tuple[str, ...] | None = None
    ends: float | None = None


def detect(environ: Mapping[str, str] = os.environ) -> Allocation | None:
    """The allocation in which this process runs; None outside of one."""
    if environ.get("SLURM_JOB_ID"):
        # A launcher that numbers its ranks itself; what srun starts has a rank too, and is one of its tasks.
        is_launched = "OMPI_COMM_WORLD_RANK" in environ or "MPI_LOCALNRANKS" in environ
        tasks = 1 if is_launched else _number(environ, "SLURM_STEP_NUM_TASKS") or 1
        found: Allocation | None = _slurm(environ, tasks, is_launched=is_launched)
        if tasks > 1:
            return found
    elif _job_of_oar(environ):
        found = _oar(environ)
    else:
        found = None
    return _of_rank(found, environ)


def ask_end(environ: Mapping[str, str] = os.environ) -> float | None:
    """When the batch system ends this job, as it says now: seconds since the epoch, infinity for never. Blocks.

    None where there is nobody to ask.

    Raises:
        AllocationUnknown: it does not say.
    """
    if environ.get("SLURM_JOB_ID"):
        return _end_by_squeue(environ["SLURM_JOB_ID"], is_of_parts=bool(environ.get("SLURM_HET_SIZE")))
    job = _job_of_oar(environ)
    return _end_by_oarstat(job) if job else None


def _known_end(environ: Mapping[str, str]) -> float | None:
    try:
        ends = ask_end(environ)
    except exceptions.AllocationUnknown as unknown:
        log.warning("allocation.unknown", command=unknown.command, error=unknown.error)
        return None
    return None if ends == math.inf else ends


def _ask(*command: str) -> str:
    """What a command prints.

    Raises:
        AllocationUnknown: it cannot be run, takes too long, or fails.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise exceptions.AllocationUnknown(command[0], str(error)) from error
    if done.returncode:
        last_words = done.stderr.strip().rpartition("\n")[2][-200:]
        raise exceptions.AllocationUnknown(command[0], last_words or f"exit code {done.returncode}")
    return done.stdout


def _slurm(environ: Mapping[str, str], tasks: int, *, is_launched: bool) -> Allocation:
    numbers = _member(environ, "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") or [environ["SLURM_JOB_ID"]]
    if tasks > 1:
        numbers.append(environ.get("SLURM_PROCID", "0"))
    return Allocation(
        system="slurm",
        job=_name("slurm", *numbers),
        cpus=_number(environ, "SLURM_CPUS_ON_NODE") if is_launched else _cpus_of_slurm(environ),
        gpus=_gpus_of_slurm(environ),
        ends=_end_of_slurm(environ),
    )


def _end_of_slurm(environ: Mapping[str, str]) -> float | None:
    """A job that runs beyond the end its variable has was extended since."""
    ends = _date(environ, "SLURM_JOB_END_TIME")
    return ends if ends is not None and ends > time.time() else _known_end(environ)


def _member(environ: Mapping[str, str], array: str, member: str) -> list[str]:
    """The numbers of an array and of a job in it; nothing for a job alone."""
    return [environ[array], environ[member]] if environ.get(array) and environ.get(member) else []


def _name(*parts: str) -> str:
    """What a daemon is called, and its file."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(parts))[:_LONGEST_NAME]


def _cpus_of_slurm(environ: Mapping[str, str]) -> int | None:
    """Those of a task where srun has started it, else all that the job has on this node."""
    on_node, per_task = _number(environ, "SLURM_CPUS_ON_NODE"), _number(environ, "SLURM_CPUS_PER_TASK")
    if "SLURM_STEP_NUM_TASKS" not in environ:
        return on_node or per_task
    if per_task:
        return per_task
    return None if on_node is None else max(1, on_node // _most_tasks(environ))


def _most_tasks(environ: Mapping[str, str]) -> int:
    """`2(x3),1`: two tasks on each of three nodes, one on another; the most is counted, for less is not harmful."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    if not _TASKS.fullmatch(text):
        _ignore("SLURM_STEP_TASKS_PER_NODE", text)
        return 1
    return max(1, *(int(count.partition("(")[0]) for count in text.split(",")))


def _gpus_of_slurm(environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Those of the step, whose tasks inherit the job's variable even if it has none of its GPUs; else the job's."""
    names = environ.get("SLURM_STEP_GPUS" if "SLURM_STEP_ID" in environ else "SLURM_JOB_GPUS")
    if names:
        return tuple(names.split(","))
    return None if environ.get("SLURM_GPUS_ON_NODE") else ()


def _end_by_squeue(job: str, *, is_of_parts: bool) -> float:
    """By the time that is left: clocks of the controller and of the node may differ.

    Asked for the first job of an array, squeue tells of all its members; asked for the first part of a heterogeneous
    job, of all parts, of which the shortest counts: processes of each may bear the number of the first.
    """
    asked = time.time()
    answer = _ask("squeue", "-h", "-j", job, "-o", "%A %L")
    lines = [line.partition(" ") for line in answer.splitlines()]
    left = [_seconds_left(text) for number, _, text in lines if number == job or is_of_parts]
    ends = asked + min((seconds for seconds in left if seconds is not None), default=math.nan)
    if not _is_date(ends) and ends != math.inf:
        raise exceptions.AllocationUnknown("squeue", f"{show(answer)} says no time")
    return ends


def _seconds_left(text: str) -> float | None:
    if text.strip() == "UNLIMITED":
        return math.inf
    found = _LEFT.fullmatch(text.strip())
    if found is None:  # NOT_SET, INVALID
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _job_of_oar(environ: Mapping[str, str]) -> str | None:
    return environ.get("OAR_JOB_ID") or environ.get("OAR_JOBID")


def _oar(environ: Mapping[str, str]) -> Allocation:
    numbers = _member(environ, "OAR_ARRAY_ID", "OAR_ARRAY_INDEX") or [_job_of_oar(environ) or ""]
    return Allocation(system="oar", job=_name("oar", *numbers), cpus=_cores_of_oar(environ), ends=_known_end(environ))


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


def _end_by_oarstat(job: str) -> float:
    answer = _ask("oarstat", "-J", "-j", job)
    try:
        (found,) = json.loads(answer).values()
        ends = float(found.get("startTime") or found.get("start_time")) + _walltime(found["walltime"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        ends = math.nan
    if not _is_date(ends):
        raise exceptions.AllocationUnknown("oarstat", f"{show(answer)} says no time")
    return ends


def _walltime(value: object) -> float:
    """Seconds, or hours:minutes:seconds."""
    parts = [float(part) for part in str(value).split(":")]
    return sum(part * 60.0**place for place, part in enumerate(reversed(parts)))


def _of_rank(found: Allocation | None, environ: Mapping[str, str]) -> Allocation | None:
    """The share of one process of several that an MPI launcher has started on this node.

    Shared is what the launcher itself may use: the CPUs to which it has bound a rank are the rank's share already.
    """
    rank, size = next(((rank, size) for rank, size in _RANKS if environ.get(rank, "").isdecimal()), (None, None))
    if rank is None or size is None:
        return found
    found = found or Allocation(system="mpi")
    beside = _number(environ, size) or 1
    name = None if found.job is None else _name(found.job, environ[rank])
    whole = usable_cpus(_launcher(rank))
    return replace(found, job=name, cpus=max(1, min(found.cpus or whole, whole) // beside))


def _launcher(rank: str) -> int:
    """The nearest process above us that is no rank itself; 0, which is this one, where nobody can tell."""
    pid = os.getppid()
    try:
        while pid:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if not any(variable.startswith(f"{rank}=".encode()) for variable in variables):
                return pid
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            pid = int(stat[stat.rindex(b")") + 2 :].split()[1])
    except PermissionError:  # of another user: the daemon of the batch system
        return pid
    except OSError:
        return 0
    return 0


def _number(environ: Mapping[str, str], key: str) -> int | None:
    """A whole number; what is none, or too long for one, is ignored."""
    text = environ.get(key, "")
    if text.isdecimal() and len(text) <= _MOST_DIGITS:
        return int(text)
    if text:
        _ignore(key, text)
    return None


def _date(environ: Mapping[str, str], key: str) -> float | None:
    """Seconds since the epoch; what no calendar has is ignored."""
    date = _number(environ, key)
    if date is None or _is_date(date):
        return date
    _ignore(key, environ[key])
    return None


def _is_date(seconds: float) -> bool:
    return 0 < seconds < _END_OF_TIME


def _ignore(key: str, text: str) -> None:
    log.warning("allocation.ignored", variable=key, value=show(text))
