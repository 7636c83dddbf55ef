"""How many processors this process may really use: its affinity mask and the CPU quota of its control group."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cpus(pid: int = 0, *, root: Path = CGROUP_ROOT, membership: Path | None = None) -> int:
    """The number of CPUs a process may keep busy, at least 1.

    Args:
        pid: the process; 0 is this one.
        root: where the control groups are mounted.
        membership: the file that names the groups of the process.
    """
    allowed = len(os.sched_getaffinity(pid))
    membership = membership or Path(f"/proc/{pid or 'self'}/cgroup")
    return max(1, min([allowed, *(math.ceil(quota) for quota in _quotas(root, membership))]))


def _quotas(root: Path, membership: Path) -> Iterator[float]:
    """The CPU quotas that bind this process: those of its own groups and of every group above them."""
    for folder in _group_folders(root, membership):
        quota = _quota_v2(folder) or _quota_v1(folder)
        if quota:
            yield quota


def _group_folders(root: Path, membership: Path) -> Iterator[Path]:
    for line in _read(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / controllers if controllers else root
        own = mount / group.strip("/")
        yield from (own, *(above for above in own.parents if above.is_relative_to(mount)))


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
