from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyexp_daemon.config.cpus import usable_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def cgroups(folder: Path, membership: str, **files: str) -> int:
    (folder / "membership").write_text(membership)
    for name, content in files.items():
        file = folder / "cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return usable_cpus(root=folder / "cgroup", membership=folder / "membership")


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cpus(root=tmp_path, membership=tmp_path / "missing") == 8


def test_a_quota_of_the_own_group_counts(tmp_path: Path) -> None:
    assert cgroups(tmp_path, "0::/job\n", job__cpu_max="200000 100000\n") == 2


def test_a_quota_of_a_group_above_counts(tmp_path: Path) -> None:
    assert cgroups(tmp_path, "0::/slice/job\n", slice__cpu_max="250000 100000", slice__job__cpu_max="max 100000") == 3


def test_part_of_a_cpu_is_one(tmp_path: Path) -> None:
    assert cgroups(tmp_path, "0::/\n", cpu_max="5000 100000") == 1


def test_a_larger_quota_than_the_affinity_changes_nothing(tmp_path: Path) -> None:
    assert cgroups(tmp_path, "0::/\n", cpu_max="9900000 100000") == 8


def test_the_older_control_groups_count_too(tmp_path: Path) -> None:
    folder = tmp_path / "cgroup" / "cpu,cpuacct" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("400000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroups(tmp_path, "5:memory:/job\n4:cpu,cpuacct:/job\n") == 4


def test_no_quota_of_the_older_kind_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cgroup" / "cpu"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroups(tmp_path, "4:cpu:/\n") == 8
