"""Where benchmarks run: an SQLite file and a MariaDB server of their own, and a project folder on either."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from tests import servers
from tests.databases import Database

Flavour = Literal["sqlite", "mariadb"]
FLAVOURS: tuple[Flavour, ...] = ("sqlite", "mariadb")

FUNCTIONS = """
def noop(keyfields, result_processor, custom):
    pass


def realistic(keyfields, result_processor, custom):
    x = keyfields["x"]
    result_processor.process_results({"a": x * 1.0, "b": x / 7, "c": "some text"})
    if x % 10 == 0:
        result_processor.process_logs({"epochs": {"loss": 1.0 / (x + 1)}})


def tenth(keyfields, result_processor, custom):
    import time

    time.sleep(0.1)


def stamp(keyfields, result_processor, custom):
    import pathlib
    import time

    now = time.time()
    with pathlib.Path(__file__).with_name("stamps").open("a") as file:
        file.write(f"{now}\\n")


def nap(keyfields, result_processor, custom):
    import time

    time.sleep(60)
"""


@dataclass(frozen=True)
class Place:
    """A project folder with a database."""

    database: Database
    folder: Path

    def write(
        self, *, rows: int, function: str = "noop", slots: int = 2, isolation: str = "reuse", store: str | None = None
    ) -> Path:
        """A configuration for so many experiments of one of FUNCTIONS; the path of its file."""
        (self.folder / "experiments.py").write_text(FUNCTIONS)
        return self.database.write_config(
            self.folder,
            keyfields={"x": {"type": "INT", "values": {"start": 0, "stop": rows}}},
            resultfields={"a": "DOUBLE", "b": "DOUBLE", "c": "VARCHAR(50)"},
            logtables={"epochs": {"loss": "DOUBLE"}},
            function=f"experiments:{function}",
            store=store,
            n_jobs=slots,  # for PyExperimenter, which takes the same file
            daemon={"slots": slots, "isolation": isolation},
        )

    def write_grid(self, *, rows: int) -> Path:
        """A configuration for so many experiments, a multiple of 1000, as the product of three keyfields."""
        return self.database.write_config(
            self.folder,
            keyfields={
                "dataset": {"type": "VARCHAR(50)", "values": [f"data set {number}" for number in range(10)]},
                "rate": {"type": "DOUBLE", "values": [0.001 * number for number in range(100)]},
                "seed": {"type": "INT", "values": {"start": 0, "stop": rows // 1000}},
            },
            resultfields={"a": "DOUBLE", "b": "DOUBLE", "c": "VARCHAR(50)"},
        )

    def environment(self) -> dict[str, str]:
        """With the bytecode of the package kept, as it is when the package is installed."""
        return {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            "PYTHONPYCACHEPREFIX": str(Path(__file__).parents[1] / ".cache" / "bytecode"),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "STATE_DIRECTORY": str(self.folder / "state"),
        }

    def pyexpd(self, *arguments: str, under: Sequence[str] = ()) -> str:
        """Run a command to its end; what it printed.

        Args:
            under: a program that runs the command, with its arguments.
        """
        done = subprocess.run(
            [*under, sys.executable, "-m", "pyexp_daemon", *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"pyexpd {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def measured(self, *arguments: str) -> tuple[float, float]:
        """Run a command to its end; its seconds, the start of the command included, and the most MiB it held."""
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "pyexp_daemon", *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return time.perf_counter() - began, usage.ru_maxrss / 1024

    @contextmanager
    def daemon(self, *arguments: str) -> Iterator[psutil.Process]:
        """A daemon that runs while the block does."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pyexp_daemon", "run", *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        return self.database.query(sql)


@contextmanager
def place(flavour: Flavour, *options: str) -> Iterator[Place]:
    """A new folder and database, gone afterwards. Both lie on a disk, not in memory: commits cost what they cost.

    Args:
        options: for a MariaDB server, which then is a private one.
    """
    root = Path(__file__).parents[1] / ".cache" / "benchmarks"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        if flavour == "sqlite":
            yield Place(Database(provider="sqlite", flavour="sqlite", name=f"{folder}/results"), Path(folder))
            return
        with _server(Path(folder), options) as server:
            name = server.create_database()
            yield Place(Database(provider="mysql", flavour="mariadb", name=name, server=server), Path(folder))


@contextmanager
def _server(base: Path, options: tuple[str, ...]) -> Iterator[servers.Server]:
    if not options:
        with servers.running("mariadb", base=base) as server:
            yield server
        return
    software = servers.mariadb()
    with replace(software, command=(*software.command, *options)).server(base=base) as server:
        yield server
