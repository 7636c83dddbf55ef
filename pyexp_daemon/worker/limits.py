"""What a slot runs, and within which bounds: its settings, and the environment of its children."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyexp_daemon.worker import channel

THREAD_CAPS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
)
"""The variables by which numerical libraries are told how many threads to start."""

INCARNATION = "PYEXPD_INCARNATION"
SLOT = "PYEXPD_SLOT"
"""The two marks by which processes of a slot are found again, wherever they hide."""

_SECRET_PREFIXES = ("PYEXPD_MYSQL_", "WATCHDOG_")
_SECRETS = ("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "MYSQL_PWD", "PGPASSWORD")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSettings:
    """What the slots of one daemon run, and within which bounds.

    Args:
        function: `module:function` or `path/to/file.py:function`, relative to `project`.
        pickled: the file of `pickled.write` that has the function and the custom fields instead.
        store: `module:function` that is called once per child; None where there is no store.
        project: first on the children's `sys.path`, and their working directory.
        incarnation: the daemon's random identity, 32 hex digits; marks every process.
        python: the interpreter of the children, 3.9 or newer.
        custom: the custom fields; every experiment gets its own copy.
        resultfields: the fields an experiment may write.
        logtables: for every logtable its columns.
        codecarbon: settings by which emissions are tracked; None tracks nothing.
        logs: folder of the attempts' logs.
        workdirs: folder with a folder for each experiment.
        threads: thread cap of a slot; None sets none.
        gpus: one per slot in turn; None leaves the environment as it is, an empty list hides every GPU.
        isolation: `reuse` a child for many experiments, or start a `fresh` one for each.
        recycle_experiments: a child is replaced after so many.
        recycle_memory_bytes: a child is replaced when it still holds more than this after an experiment.
        timeout_s: the longest an attempt may take, seconds of wall time.
        stalled_s: the longest an attempt may go on without a sign of life.
        memory_bytes: the most an attempt's process tree may hold.
        log_size_bytes: the most that is kept of an attempt's output.
        grace_s: between TERM and KILL.
        max_message_bytes: the longest result or keyfields that travel to or from a child.
        environment: extra variables of the children; the last word, but for secrets.
        echo: told, in the event loop, what is printed in which slot.
        ends: when this node ends all of it, seconds since the epoch; None: nobody knows, or never.
    """

    function: str
    project: Path
    incarnation: str
    python: str
    logs: Path
    workdirs: Path
    pickled: Path | None = None
    store: str | None = None
    custom: Mapping[str, Any] = field(default_factory=dict)
    resultfields: tuple[str, ...] = ()
    logtables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    codecarbon: Mapping[str, Any] | None = None
    threads: int | None = None
    gpus: tuple[str, ...] | None = None
    isolation: Literal["reuse", "fresh"] = "reuse"
    recycle_experiments: int | None = None
    recycle_memory_bytes: int | None = None
    timeout_s: float | None = None
    stalled_s: float | None = None
    memory_bytes: int | None = None
    log_size_bytes: int = 64 * 1024 * 1024
    grace_s: float = 10
    max_message_bytes: int = channel.MAX_MESSAGE_BYTES
    environment: Mapping[str, str] = field(default_factory=dict)
    echo: Callable[[int, bytes], None] | None = None
    ends: float | None = None


def make_environment(settings: SlotSettings, *, slot: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child of this slot: what the daemon inherited, caps and GPU of the slot, no secret.

    Thread caps that the user has set are theirs.
    """
    chosen = {**inherited, **settings.environment}
    if settings.threads is not None:
        chosen = {**dict.fromkeys(THREAD_CAPS, str(settings.threads)), **chosen}
    marks = {"PYTHONUNBUFFERED": "1", INCARNATION: settings.incarnation, SLOT: str(slot)}
    return without_secrets({**chosen, **_gpu_mask(settings.gpus, slot, inherited), **marks})


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without passwords, and without systemd's means to speak for the daemon."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _SECRETS and not name.startswith(_SECRET_PREFIXES)
    }


def _gpu_mask(gpus: tuple[str, ...] | None, slot: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables that show a slot its GPU alone.

    ROCm applies its masks one after the other: below ROCR_VISIBLE_DEVICES the GPUs are counted from 0 again,
    so where that one is in use, it chooses, and the others name the only one left.
    """
    if gpus is None:
        return {}
    gpu = gpus[slot % len(gpus)] if gpus else "-1"
    mask = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu, "HIP_VISIBLE_DEVICES": gpu}
    if "ROCR_VISIBLE_DEVICES" in inherited:
        seen = "0" if gpus else "-1"
        mask |= {"ROCR_VISIBLE_DEVICES": gpu, "CUDA_VISIBLE_DEVICES": seen, "HIP_VISIBLE_DEVICES": seen}
    return mask
