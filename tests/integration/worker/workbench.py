"""A project folder, pools of real children that run its function, and a stand-in for the daemon above them."""

from __future__ import annotations

import sys
import textwrap
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from pyexp_daemon.model import Attempt, Claim, SnapshotHead, SnapshotPart
from pyexp_daemon.worker import strays
from pyexp_daemon.worker.pool import Pool, SlotSettings

Journal = list[tuple[str, Any]]


class Daemon:
    """Stands where the daemon stands: notes what the pool reports, in order, and answers as it was told to."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.journal: Journal = []
        self.refuse_results: Exception | None = None
        self.refuse_logs: Exception | None = None
        self.hold_results: anyio.Event | None = None
        self.found: Any = None

    async def results(self, claim: Claim, results: dict[str, Any]) -> None:
        self.journal.append(("results", results))
        if self.hold_results is not None:
            await self.hold_results.wait()
        if self.refuse_results is not None:
            raise self.refuse_results

    async def snapshot(self, claim: Claim, part: SnapshotPart, head: SnapshotHead | None) -> None:
        self.journal.append(("snapshot", (part, head)))

    async def look_up(self, claim: Claim, what: str, arguments: dict[str, Any]) -> Any:
        self.journal.append(("look_up", (what, arguments)))
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    async def logs(self, claim: Claim, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        self.journal += [("log", row) for row in rows]
        if self.refuse_logs is not None:
            raise self.refuse_logs

    async def finished(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    def progress(self, claim: Claim, fraction: float | None, description: str | None) -> None:
        self.journal.append(("progress", (fraction, description)))

    def of(self, experiment_id: int) -> Attempt:
        (attempt,) = [attempt for attempt in self.attempts if attempt.claim.experiment_id == experiment_id]
        return attempt

    def journal_of(self, kind: str) -> list[Any]:
        return [entry for word, entry in self.journal if word == kind]


class Workbench:
    """A project folder with a function in it, and pools that run it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon = Daemon()
        self.incarnation = uuid.uuid4().hex

    def write(self, source: str, *, name: str = "experiment.py") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def settings(self, **overrides: Any) -> SlotSettings:
        given: dict[str, Any] = {
            "function": "experiment:run",
            "project": self.folder,
            "incarnation": self.incarnation,
            "python": sys.executable,
            "logs": self.folder / "logs",
            "workdirs": self.folder / "workdirs",
            "resultfields": ("score", "note"),
            "logtables": {"epochs": ("epoch", "loss")},
            "grace_s": 0.3,
            "environment": {"PYTHONDONTWRITEBYTECODE": "1"},
        }
        return SlotSettings(**(given | overrides))

    @asynccontextmanager
    async def pool(self, source: str | None = None, *, slots: int = 1, **overrides: Any) -> AsyncIterator[Pool]:
        if source is not None:
            self.write(source)
        pool = Pool(self.settings(**overrides), slots=slots, events=self.daemon)
        with anyio.fail_after(90):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.run)
                try:
                    yield pool
                finally:
                    tasks.cancel_scope.cancel()
        assert strays.sweep(self.incarnation) == [], "the pool has left processes behind"

    async def run(self, source: str, *, keyfields: dict[str, Any] | None = None, **overrides: Any) -> Attempt:
        """One experiment, from an empty pool to its attempt."""
        async with self.pool(source, **overrides) as pool:
            pool.give(make_claim(1, **(keyfields or {})))
            await pool.wait_idle()
        return self.daemon.of(1)

    def log(self, name: str = "1-1.log") -> str:
        return (self.folder / "logs" / name).read_text()


def make_claim(experiment_id: int, *, attempt: int = 1, token: str = "token", **keyfields: Any) -> Claim:
    return Claim(
        experiment_id=experiment_id,
        attempt=attempt,
        token=token,
        start_date="2026-01-01 00:00:00",
        keyfields=keyfields,
    )


def read_proc(pid: int | str, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
