"""What this node has to offer, and what the configuration makes of it: slots, GPUs, threads, budgets."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from pyexp_daemon.config.cpus import usable_cpus
from pyexp_daemon.config.models import Config
from pyexp_daemon.model import RetryPolicy
from pyexp_daemon.result_processor import Recorder, ResultProcessor
from pyexp_daemon.worker.limits import SlotSettings

_MASKS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def visible_gpus(config: Config, *, devices: Path = Path("/dev")) -> tuple[str, ...] | None:
    """The GPUs that slots get, one each in turn; None leaves the environment of the children as it is.

    `auto` takes those of the mask that this process inherited (from Slurm, say), else every device of the node. A
    node without any is left alone; `gpus: 0` hides them all.
    """
    wanted = config.daemon.gpus
    if wanted == "auto":
        return _inherited() or _devices(devices) or None
    if isinstance(wanted, int):
        return (_inherited() or _devices(devices) or tuple(map(str, range(wanted))))[:wanted]
    return tuple(map(str, wanted))


def _inherited() -> tuple[str, ...]:
    mask = next((os.environ[name] for name in _MASKS if os.environ.get(name)), "")
    return tuple(gpu for gpu in (part.strip() for part in mask.split(",")) if gpu and gpu != "-1")


def _devices(devices: Path) -> tuple[str, ...]:
    numbers = [found[1] for path in devices.glob("nvidia*") if (found := re.fullmatch(r"nvidia(\d+)", path.name))]
    return tuple(sorted(numbers, key=int))


def count_slots(config: Config) -> int:
    """How many experiments run at once: as configured, else one per GPU, else one per usable CPU."""
    return config.daemon.slots or config.n_jobs or len(visible_gpus(config) or ()) or usable_cpus()


def threads_per_slot(config: Config, slots: int) -> int:
    """The thread cap of numerical libraries in a slot."""
    return config.daemon.threads or max(1, usable_cpus() // slots)


def retry_policy(config: Config) -> RetryPolicy:
    """The budgets of an experiment as the configuration gives them."""
    limits = config.limits
    return RetryPolicy(
        tries=limits.tries.model_dump(), first_s=limits.backoff.first_s, longest_s=limits.backoff.longest_s
    )


def result_processor(config: Config, recorder: Recorder, *, experiment_id: int, attempt: int) -> ResultProcessor:
    """What a function receives that runs in this process."""
    return ResultProcessor(
        recorder,
        experiment_id=experiment_id,
        attempt=attempt,
        resultfields=tuple(config.database.table.resultfields),
        logtables=_columns_of_logtables(config),
        workdir=str(config.logs / "work" / str(experiment_id)),
    )


def _columns_of_logtables(config: Config) -> dict[str, tuple[str, ...]]:
    return {name: tuple(columns) for name, columns in config.database.logtables.items()}


def slot_settings(config: Config, *, function: str, slots: int) -> SlotSettings:
    """What each of so many slots of this node runs, and within which bounds."""
    return SlotSettings(
        incarnation="",
        python=config.daemon.python or sys.executable,
        function=function,
        project=config.project,
        custom=config.custom,
        resultfields=tuple(config.database.table.resultfields),
        logtables=_columns_of_logtables(config),
        codecarbon=config.tracking,
        logs=config.logs,
        workdirs=config.logs / "work",
        threads=threads_per_slot(config, slots),
        gpus=visible_gpus(config),
        isolation=config.daemon.isolation,
        recycle_experiments=config.daemon.recycle.experiments,
        recycle_memory_bytes=config.daemon.recycle.memory_bytes,
        timeout_s=config.limits.timeout_s,
        stalled_s=config.limits.stalled_s,
        memory_bytes=config.limits.memory_bytes,
        log_size_bytes=config.limits.log_size_bytes,
        grace_s=config.limits.grace_s,
    )
