"""Runs the script of every method under either package, on one database for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import pyexperimenter
from tests.databases import Database

SCRIPT = Path(__file__).with_name("script.py")
TYPES = {"seed": "INT", "kernel": "VARCHAR(255)", "c": "DOUBLE", "flag": "BOOL"}
GRID: dict[str, list[Any]] = {"seed": [1, 2], "kernel": ["linear", "rbf"], "c": [0.1, 1.0], "flag": [True, False]}
RESULTS = {
    "received": "LONGTEXT",
    "score": "DOUBLE",
    "passed": "BOOL",
    "rounds": "INT",
    "since": "DATETIME",
    "text": "LONGTEXT",
}

Entry = dict[str, Any]


@pytest.fixture
def keep_diary(tmp_path: Path) -> Callable[[str, Database], list[Entry]]:
    """Runs the script under a package: what became of each call, and what was in the tables then."""

    def keep(package: str, database: Database) -> list[Entry]:
        folder = tmp_path / package
        write_configuration(folder, database)
        ours = package == "pyexp_daemon"
        interpreter = sys.executable if ours else str(pyexperimenter.python())
        environment: Mapping[str, str] = os.environ if ours else pyexperimenter.environment(database)
        done = subprocess.run(
            [interpreter, str(SCRIPT), package, database.name],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        diary: list[Entry] = json.loads((folder / "diary.json").read_text())
        return diary

    return keep


def write_configuration(folder: Path, database: Database) -> None:
    """The files that the script expects."""
    database.write_config(
        folder,
        keyfields={name: {"type": kind, "values": GRID[name]} for name, kind in TYPES.items()},
        resultfields=RESULTS,
        logtables={"steps": {"step": "INT", "loss": "DOUBLE", "word": "VARCHAR(50)"}},
        result_timestamps=True,
        n_jobs=1,
        custom={"offset": 0.25, "nested": {"word": "deep"}},
    )
    database.write_config(
        folder / "other", table="in_the_file", keyfields={"x": {"type": "INT", "values": list(range(12))}}, n_jobs=1
    )
    database.write_config(
        folder / "measured",
        table="measured",
        keyfields={"x": {"type": "INT", "values": [0, 1]}},
        n_jobs=1,
        codecarbon={"offline_mode": True, "country_iso_code": "DEU"},
    )
