"""The inventory of a node: GPUs of the inherited mask, else of the devices, one for each slot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon import resources
from pyexp_daemon.daemon.allocation import Allocation
from pyexp_daemon.daemon.reload import merge
from pyexp_daemon.daemon.resources import count_slots, slot_settings, threads_per_slot, visible_gpus
from pyexp_daemon.worker.limits import make_environment
from tests.unit.config.factories import write_config


@pytest.fixture(autouse=True)
def _no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def configured(folder: Path, daemon: str = "{}") -> Config:
    return load_config(write_config(folder, extra=f"Daemon: {daemon}", replace=("  n_jobs: 4\n", "")))


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A node with twelve GPUs, as the kernel shows them."""
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in (*(f"nvidia{number}" for number in range(12)), "nvidiactl", "nvidia-uvm", "null"):
        (folder / name).touch()
    return folder


def test_every_device_of_the_node_in_the_order_of_their_numbers(tmp_path: Path, devices: Path) -> None:
    assert visible_gpus(configured(tmp_path), devices=devices) == tuple(map(str, range(12)))


def test_the_inherited_mask_wins(tmp_path: Path, devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch system gave us these and no others."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-8932f937")
    assert visible_gpus(configured(tmp_path), devices=devices) == ("4", "GPU-8932f937")
    assert count_slots(configured(tmp_path)) == 2


@pytest.mark.parametrize("mask", ["", "-1", "NoDevFiles"])
def test_a_mask_that_hides_all_gpus_hides_those_of_the_node(
    tmp_path: Path, devices: Path, monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert visible_gpus(configured(tmp_path), devices=devices) is None


def test_threads_are_those_that_are_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "usable_cpus", lambda: 64)
    assert threads_per_slot(configured(tmp_path), 4) == 16
    assert threads_per_slot(configured(tmp_path), 2, Allocation(system="slurm", cpus=4)) == 2


def test_a_number_takes_so_many_and_a_list_exactly_these(tmp_path: Path, devices: Path) -> None:
    assert visible_gpus(configured(tmp_path, "{gpus: 3}"), devices=devices) == ("0", "1", "2")
    assert visible_gpus(configured(tmp_path, "{gpus: [7, 1]}"), devices=devices) == ("7", "1")
    assert visible_gpus(configured(tmp_path, "{gpus: 0}"), devices=devices) == ()
    assert visible_gpus(configured(tmp_path), devices=tmp_path / "no-devices") is None


def test_each_slot_sees_its_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    settings = slot_settings(configured(tmp_path), function="m:f", slots=2)
    masks = [make_environment(settings, slot=slot, inherited={})["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert masks == ["4", "5"]


@pytest.mark.parametrize(
    ("section", "asked", "tracked"),
    [
        ("{}", None, None),
        ("{tracking_mode: process}", None, {"tracking_mode": "process"}),
        ("{}", True, {}),
        ("{tracking_mode: process}", False, None),
    ],
)
def test_emissions_are_tracked_with_a_section_or_when_asked_for(
    tmp_path: Path, section: str, asked: bool | None, tracked: dict[str, str] | None
) -> None:
    read = load_config(write_config(tmp_path, extra=f"CodeCarbon: {section}"))
    config = read.model_copy(update={"use_codecarbon": asked})
    assert slot_settings(config, function="m:f", slots=1).codecarbon == tracked
    reloaded = merge(config, read)
    assert (reloaded.config.tracking, reloaded.needs_restart) == (tracked, [])
