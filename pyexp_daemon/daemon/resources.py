"""What this node has to offer: GPUs, slots, threads."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pyexp_daemon.config.cpus import usable_cpus
from pyexp_daemon.config.models import Config

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
