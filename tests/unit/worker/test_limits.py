"""The environment of children."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon.worker import limits


def environment(*, slot: int = 0, inherited: dict[str, str] | None = None, **overrides: Any) -> dict[str, str]:
    given: dict[str, Any] = {
        "function": "m:f",
        "project": Path("/p"),
        "incarnation": "abc",
        "python": "python",
        "logs": Path("/l"),
        "workdirs": Path("/w"),
    }
    return limits.make_environment(limits.SlotSettings(**(given | overrides)), slot=slot, inherited=inherited or {})


def test_every_numerical_library_is_capped_unless_the_user_did() -> None:
    capped = environment(
        threads=4, inherited={"OMP_NUM_THREADS": "1"}, environment={"MKL_NUM_THREADS": "2", "MINE": "x"}
    )

    assert {capped[name] for name in limits.THREAD_CAPS[2:]} == {"4"}
    assert (capped["OMP_NUM_THREADS"], capped["MKL_NUM_THREADS"], capped["MINE"]) == ("1", "2", "x")
    assert "OMP_NUM_THREADS" not in environment(threads=None)


@pytest.mark.parametrize("given", ["inherited", "environment"])
def test_no_secret_passes(given: str) -> None:
    names: tuple[str, ...] = (
        "PYEXPD_MYSQL_PASSWORD",
        "PYEXPD_MYSQL_USER",
        "CREDENTIALS_DIRECTORY",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
    )
    names += ("MYSQL_PWD", "PGPASSWORD")
    variables = {"HOME": "/h"} | dict.fromkeys(names, "geheim")

    passed = environment(inherited=variables) if given == "inherited" else environment(environment=variables)

    assert "geheim" not in passed.values()
    assert passed["HOME"] == "/h"


def test_gpus_go_round_the_slots() -> None:
    seen = [environment(slot=slot, gpus=("2", "5"))["CUDA_VISIBLE_DEVICES"] for slot in range(3)]

    assert seen == ["2", "5", "2"]


def test_no_gpus_named_leaves_the_mask_and_an_empty_list_hides_all() -> None:
    inherited = {"CUDA_VISIBLE_DEVICES": "0,1"}

    assert environment(inherited=inherited)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert environment(inherited=inherited, gpus=())["CUDA_VISIBLE_DEVICES"] == "-1"


def test_below_a_mask_of_rocr_gpus_are_counted_anew() -> None:
    plain = environment(gpus=("3",))
    masked = environment(gpus=("3",), inherited={"ROCR_VISIBLE_DEVICES": "2,3"})

    assert (plain["HIP_VISIBLE_DEVICES"], plain.get("ROCR_VISIBLE_DEVICES")) == ("3", None)
    assert (masked["ROCR_VISIBLE_DEVICES"], masked["HIP_VISIBLE_DEVICES"]) == ("3", "0")
