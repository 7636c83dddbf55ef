"""What a system under comparison has to offer, and how its workers are run and timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.peers.workers.workload import DONE, READY, Workload, count_logs
from tests.environments import prepared
from tests.servers import CACHE

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600


class Failed(Exception):
    """A run came to no good end, or left something else in the database than it should."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long a system took for its experiments, from its start to the last result stored.

    `start_s` is what passed of that before its workers looked for a first experiment; None where nobody can tell.
    """

    seconds: float
    start_s: float | None


class Peer(Protocol):
    """A system under comparison, with a database. `experiments` is how many keep it busy for seconds, by workload."""

    @property
    def what(self) -> str: ...

    @property
    def database(self) -> str: ...

    @property
    def experiments(self) -> Mapping[Workload, int]: ...

    def prepare(self) -> str:
        """Install what it needs, once; its version.

        Raises:
            NotToBeHad: it cannot run on this machine.
        """

    def run(self, workload: Workload, count: int) -> Run:
        """Do so many experiments in two processes, in a new database, and see that all is stored.

        Raises:
            Failed: it is not.
        """


@dataclass(frozen=True)
class Environment:
    """A virtual environment of a peer's own, with `package` in it."""

    package: str
    installs: tuple[tuple[str, ...], ...]
    imports: str

    def python(self) -> Path:
        """Its interpreter; made on first use. Raises NotToBeHad."""
        return prepared(CACHE / "benchmarks-envs" / self.package, *self.installs, imports=self.imports)

    def version(self) -> str:
        """Which version of the package it has; made on first use. Raises NotToBeHad."""
        code = f"import importlib.metadata; print(importlib.metadata.version({self.package!r}))"
        return subprocess.run([self.python(), "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    def command(self, worker: str, *arguments: object) -> list[str]:
        """What runs one of the workers in it."""
        return [str(self.python()), "-m", f"benchmarks.peers.workers.{worker}", *map(str, arguments)]


def call(command: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command to its end; not timed."""
    _finish([_start(command, folder, environment)], folder)


def timed(commands: Sequence[Sequence[str]], *, folder: Path, environment: Mapping[str, str] | None = None) -> Run:
    """Run workers side by side until each has told that all is stored. Their own end after that is not counted."""
    began = time.monotonic()
    told = _finish([_start(command, folder, environment) for command in commands], folder)
    return Run(
        seconds=max(moments[DONE] for moments in told) - began,
        start_s=max(moments[READY] for moments in told) - began,
    )


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How many experiments a database has as finished, how many with all three results, and how many log rows."""

    finished: int
    results: int
    logs: int

    def check(self, workload: Workload, count: int) -> None:
        """See that so many experiments are stored with all they found; one that ran twice may have logged twice.

        Raises:
            Failed: something is missing.
        """
        wanted = Stored(
            finished=count, results=count if workload == "realistic" else 0, logs=count_logs(workload, count)
        )
        if any(getattr(self, name) < getattr(wanted, name) for name in ("finished", "results", "logs")):
            raise Failed(f"stored is {self}, not {wanted}")


def _start(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None) -> subprocess.Popen[str]:
    inherited = os.environ if environment is None else environment
    paths = [str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    with (folder / "stderr").open("a") as errors:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )


def _finish(workers: Sequence[subprocess.Popen[str]], folder: Path) -> list[dict[str, float]]:
    """The moments that each of them told."""
    try:
        said = [worker.communicate(timeout=TIMEOUT_S)[0] for worker in workers]
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not done after {TIMEOUT_S} s") from error
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
    if any(worker.returncode for worker in workers):
        last = (folder / "stderr").read_text(errors="replace").strip().splitlines()[-3:]
        raise Failed(f"a worker failed: {' '.join(last)}")
    return [_moments(text) for text in said]


def _moments(said: str) -> dict[str, float]:
    told: dict[str, float] = {}
    for line in said.splitlines():
        with suppress(ValueError):
            told |= json.loads(line)
    return told
