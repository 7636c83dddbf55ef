"""A researcher's script: the Python interface used in a process of its own, in a folder with a configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.databases import Database
from tests.helpers import wait_until, whole_lines

PRELUDE = """
import os, pathlib, signal, sys, threading, time
from pyexp_daemon import exceptions
from pyexp_daemon.experiment_status import ExperimentStatus
from pyexp_daemon.experimenter import PyExperimenter

def note(*words):
    with open("journal", "a") as journal:
        journal.write(" ".join(map(str, words)) + "\\n")

def experimenter(**options):
    return PyExperimenter("pyexpd.yml", "database_credentials.yml", **{"use_codecarbon": False, **options})

"""


@dataclass
class Study:
    """One folder with a configuration of `x` = 0, 1, … and whatever else is asked for."""

    database: Database
    folder: Path
    rows: int = 4
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        described = {
            "keyfields": {"x": {"type": "INT", "values": list(range(self.rows))}},
            "resultfields": {"y": "DOUBLE"},
            "logtables": {"steps": {"loss": "DOUBLE"}},
            "daemon": {"poll": {"shortest": "50ms", "longest": "200ms"}},
            "limits": {"backoff": {"first": "50ms", "longest": "100ms"}},
        }
        self.config = self.database.write_config(self.folder, **{**described, **self.options})

    def run(self, code: str, *, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        done = subprocess.run(self._command(code), capture_output=True, text=True, timeout=timeout, **self._place())
        assert not check or done.returncode == 0, done.stderr
        return done

    @contextmanager
    def running(self, code: str) -> Iterator[subprocess.Popen[str]]:
        """A script that runs, and is killed in the end if it still does."""
        with self.started(self._command(code)) as process:
            yield process

    @contextmanager
    def started(self, command: list[str]) -> Iterator[subprocess.Popen[str]]:
        """Any program that runs in the folder, and is killed in the end if it still does."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes, **self._place()) as process:
            try:
                yield process
            finally:
                process.kill()

    def _command(self, code: str) -> list[str]:
        script = self.folder / f"script_{len(list(self.folder.glob('script_*')))}.py"
        script.write_text(PRELUDE + code)
        return [sys.executable, str(script)]

    def _place(self) -> dict[str, Any]:
        return {"cwd": self.folder, "env": {**os.environ, "PYTHONUNBUFFERED": "1"}}

    def notes(self) -> list[str]:
        """What the functions wrote into the journal."""
        journal = self.folder / "journal"
        return whole_lines(journal) if journal.exists() else []

    def wait_for_notes(self, count: int) -> None:
        wait_until(lambda: len(self.notes()) >= count, what=f"{count} notes, not {self.notes()}")

    def rows_of(self, columns: str = "ID, status, y") -> list[tuple[Any, ...]]:
        return self.database.query(f"SELECT {columns} FROM exp ORDER BY ID")

    def statuses(self) -> dict[str, int]:
        return dict(self.database.query("SELECT status, COUNT(*) FROM exp GROUP BY status"))

    def attempts(self) -> list[tuple[int, int, str]]:
        return self.database.query(
            "SELECT experiment_id, attempt, outcome FROM exp__pyexpd_attempts ORDER BY experiment_id, attempt"
        )
