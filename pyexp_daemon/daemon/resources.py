"""What this node has to offer, and what the configuration makes of it: slots, GPUs, threads, budgets."""

from __future__ import annotations

import copy
import functools
import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pyexp_daemon.config.cpus import usable_cpus
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.allocation import Allocation, detect
from pyexp_daemon.model import Claim, Report, RetryPolicy, SnapshotHead, SnapshotPart
from pyexp_daemon.result_processor import Recorder, ResultProcessor
from pyexp_daemon.worker.function import make_store
from pyexp_daemon.worker.limits import SlotSettings

DEVICES = Path("/dev")
_MASKS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def visible_gpus(config: Config, allocation: Allocation | None = None) -> tuple[str, ...] | None:
    """The GPUs that slots get, one each in turn; None leaves the environment of the children as it is.

    `auto` takes those that are ours; `gpus: 0` hides them all.
    """
    wanted, ours = config.daemon.gpus, own_gpus(allocation)
    if wanted == "auto":
        return ours
    if isinstance(wanted, int):
        return (ours or _devices() or tuple(map(str, range(wanted))))[:wanted]
    return tuple(map(str, wanted))


def own_gpus(allocation: Allocation | None) -> tuple[str, ...] | None:
    """The GPUs that are ours, unless the configuration says otherwise.

    Those of the mask that this process inherited (from Slurm, say), else those that the allocation grants, else every
    device of the node. Empty where others own those that there are; None where there are none, or the mask hides them.
    """
    inherited, granted = _inherited(), allocation.gpus if allocation else None
    if inherited is not None:
        return inherited or None
    if granted is None:
        return _devices() or None
    return granted or (() if _devices() else None)


def _inherited() -> tuple[str, ...] | None:
    """Those of a mask; none when it hides them all, None when there is no mask."""
    masks = [os.environ[name] for name in _MASKS if name in os.environ]
    if not masks:
        return None
    mask = next(filter(None, masks), "")
    return tuple(gpu for gpu in (part.strip() for part in mask.split(",")) if gpu not in ("", "-1", "NoDevFiles"))


def _devices() -> tuple[str, ...]:
    numbers = [found[1] for path in DEVICES.glob("nvidia*") if (found := re.fullmatch(r"nvidia(\d+)", path.name))]
    return tuple(sorted(numbers, key=int))


def count_slots(config: Config, allocation: Allocation | None = None) -> int:
    """How many experiments run at once: as configured, else one per GPU, else one per CPU that is ours."""
    return config.daemon.slots or config.n_jobs or len(visible_gpus(config, allocation) or ()) or count_cpus(allocation)


def count_cpus(allocation: Allocation | None) -> int:
    """How many CPUs are ours: those that are granted, as far as we may use them."""
    granted = allocation.cpus if allocation else None
    return min(granted or usable_cpus(), usable_cpus())


def threads_per_slot(config: Config, slots: int, allocation: Allocation | None = None) -> int:
    """The thread cap of numerical libraries in a slot."""
    return config.daemon.threads or max(1, count_cpus(allocation) // slots)


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
        store=partial(store_here, config) if config.store else None,
        ends=end_of_allocation,
    )


@functools.cache
def own_allocation() -> Allocation | None:
    """The allocation in which this process runs; asked for once."""
    return detect()


def end_of_allocation() -> float | None:
    """When the allocation ends in which this process runs."""
    allocation = own_allocation()
    return None if allocation is None else allocation.ends


def snapshot_report(claim: Claim, state_id: str, part: int, data: bytes, head: Mapping[str, Any] | None) -> Report:
    """What a result processor says of a snapshot, as a report."""
    heads = () if head is None else (SnapshotHead(state_id=state_id, **head),)
    return Report(claim=claim, parts=(SnapshotPart(state_id, part, data),), snapshots=heads)


def store_here(config: Config) -> Mapping[str, Any]:
    """The store of this process, made when it is first asked for with these custom fields; empty when there is none.

    Raises:
        FunctionError: it cannot be made.
    """
    made_of = config.store, config.project, repr(config.custom)
    if config.store is not None and made_of not in _stores:
        _stores[made_of] = make_store(config.store, project=str(config.project), custom=copy.deepcopy(config.custom))
    return _stores.get(made_of, {})


_stores: dict[tuple[str | None, Path, str], Mapping[str, Any]] = {}


def _columns_of_logtables(config: Config) -> dict[str, tuple[str, ...]]:
    return {name: tuple(columns) for name, columns in config.database.logtables.items()}


def slot_settings(config: Config, *, function: str, slots: int) -> SlotSettings:
    """What each of so many slots of this node runs, and within which bounds."""
    return SlotSettings(
        incarnation="",
        python=config.daemon.python or sys.executable,
        function=function,
        store=config.store,
        project=config.project,
        custom=config.custom,
        resultfields=tuple(config.database.table.resultfields),
        logtables=_columns_of_logtables(config),
        codecarbon=config.tracking,
        logs=config.logs,
        workdirs=config.logs / "work",
        threads=threads_per_slot(config, slots, own_allocation()),
        gpus=visible_gpus(config, own_allocation()),
        isolation=config.daemon.isolation,
        recycle_experiments=config.daemon.recycle.experiments,
        recycle_memory_bytes=config.daemon.recycle.memory_bytes,
        timeout_s=config.limits.timeout_s,
        stalled_s=config.limits.stalled_s,
        memory_bytes=config.limits.memory_bytes,
        log_size_bytes=config.limits.log_size_bytes,
        grace_s=config.limits.grace_s,
    )
