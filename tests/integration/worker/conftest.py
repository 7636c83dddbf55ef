"""Real children: nothing is replaced but the daemon above them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyexp_daemon.worker import strays
from tests.integration.worker.workbench import Workbench


@pytest.fixture(scope="session", autouse=True)
def _subreaper() -> None:
    strays.become_subreaper()


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)
