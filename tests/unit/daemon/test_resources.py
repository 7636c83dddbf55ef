"""The inventory of a node: GPUs of the inherited mask, else of the devices, one for each slot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon import resources
from pyexp_daemon.daemon.allocation import Allocation
from pyexp_daemon.daemon.reload import merge
from pyexp_daemon.daemon.resources import count_slots, own_gpus, slot_settings, threads_per_slot, visible_gpus
from pyexp_daemon.worker.limits import make_environment
from tests.unit.config.factories import write_config


@pytest.fixture(autouse=True)
def _no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def configured(folder: Path, daemon: str = "{}") -> Config:
    return load_config(write_config(folder, extra=f"Daemon: {daemon}", replace=("  n_jobs: 4\n", "")))


@pytest.fixture
def _twelve_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node with twelve GPUs, as the kernel shows them."""
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in (*(f"nvidia{number}" for number in range(12)), "nvidiactl", "nvidia-uvm", "null"):
        (folder / name).touch()
    monkeypatch.setattr(resources, "DEVICES", folder)


@pytest.mark.usefixtures("_twelve_gpus")
def test_every_device_of_the_node_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert visible_gpus(configured(tmp_path)) == tuple(map(str, range(12)))


@pytest.mark.usefixtures("_twelve_gpus")
def test_the_inherited_mask_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch system gave us these and no others."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-8932f937")
    assert visible_gpus(configured(tmp_path)) == ("4", "GPU-8932f937")
    assert count_slots(configured(tmp_path)) == 2


@pytest.mark.usefixtures("_twelve_gpus")
@pytest.mark.parametrize("mask", ["", "-1", "NoDevFiles"])
def test_a_mask_that_hides_all_gpus_hides_those_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert visible_gpus(configured(tmp_path)) is None


@pytest.mark.usefixtures("_twelve_gpus")
@pytest.mark.parametrize(
    ("granted", "ours"),
    [
        (None, tuple(map(str, range(12)))),  # nobody says
        ((), ()),  # none is: those of the node are somebody else's
        (("7", "4"), ("7", "4")),
    ],
)
def test_without_a_mask_the_gpus_are_those_that_are_granted(
    tmp_path: Path, granted: tuple[str, ...] | None, ours: tuple[str, ...]
) -> None:
    allocation = Allocation(system="slurm", gpus=granted)
    assert own_gpus(allocation) == ours
    assert visible_gpus(configured(tmp_path), allocation) == ours
    assert visible_gpus(configured(tmp_path, "{gpus: 1}"), allocation) == ((ours or ("0",))[0],)
    assert visible_gpus(configured(tmp_path, "{gpus: [9]}"), allocation) == ("9",)


def test_where_there_are_no_gpus_none_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "DEVICES", tmp_path)
    assert own_gpus(Allocation(system="slurm", gpus=())) is None
    assert visible_gpus(configured(tmp_path)) is None


@pytest.mark.usefixtures("_twelve_gpus")
def test_the_mask_wins_over_what_the_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container or a step, the job's numbers mean other devices."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    for granted in (None, (), ("2", "3")):
        assert own_gpus(Allocation(system="slurm", gpus=granted)) == ("1",)


@pytest.mark.usefixtures("_twelve_gpus")
def test_gpus_that_are_somebody_elses_are_hidden_and_give_no_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "own_allocation", lambda: Allocation(system="slurm", cpus=1, gpus=()))
    assert count_slots(configured(tmp_path), resources.own_allocation()) == 1
    settings = slot_settings(configured(tmp_path), function="m:f", slots=1)
    assert make_environment(settings, slot=0, inherited={})["CUDA_VISIBLE_DEVICES"] == "-1"


def test_threads_are_those_that_are_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "usable_cpus", lambda: 64)
    assert threads_per_slot(configured(tmp_path), 4) == 16
    assert threads_per_slot(configured(tmp_path), 2, Allocation(system="slurm", cpus=4)) == 2


@pytest.mark.usefixtures("_twelve_gpus")
def test_a_number_takes_so_many_and_a_list_exactly_these(tmp_path: Path) -> None:
    assert visible_gpus(configured(tmp_path, "{gpus: 3}")) == ("0", "1", "2")
    assert visible_gpus(configured(tmp_path, "{gpus: [7, 1]}")) == ("7", "1")
    assert visible_gpus(configured(tmp_path, "{gpus: 0}")) == ()


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
