"""`Daemon.on_event`: a command of the user's is told what a person should hear of, at most once in a while.

The command is the user's and may hang, fail or be missing: nothing of that reaches the daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

import anyio
from anyio.abc import Process

from pyexp_daemon.log import get_logger
from pyexp_daemon.worker.limits import without_secrets

log = get_logger()

Kind = Literal["finished", "paused", "lost", "failing"]
Command = str | tuple[str, ...]
"""A text for the shell, or a program and its arguments."""

TIMEOUT_S = 30.0
"""How long the command may take; then its process group is killed."""

PAUSE_S = 10.0
"""The least time between two starts for one kind of event; what happens meanwhile is told together."""

LAST_S = 5.0
"""How long the end of the daemon waits for what is still to be told."""

MOST_DETAILS = 20
"""So many of the things that are told together are described; the others only count."""

_MOST_OUTPUT = 4000


@dataclass(slots=True)
class _Waiting:
    """What happened of one kind since the command was last started for it."""

    since: datetime
    count: int = 0
    details: list[dict[str, Any]] = field(default_factory=list)


class Notices:
    """Tells the command. `run` is the service that starts it; without one, nothing is started.

    Args:
        command: asked for at every start, so that a reload holds from then on; None tells nobody.
        about: what stands in every message: table, daemon, host.
        folder: the working directory of the command.
    """

    def __init__(
        self,
        command: Callable[[], Command | None],
        *,
        about: Mapping[str, str],
        folder: Path,
        timeout_s: float = TIMEOUT_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._command = command
        self._about = about
        self._folder = folder
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._waiting: dict[Kind, _Waiting] = {}
        self._started_at: dict[Kind, float] = {}
        self._running: list[anyio.CancelScope] = []
        self._arrived = anyio.Event()

    def tell(self, kind: Kind, **details: Any) -> None:
        """Have the command told of something that happened. Never blocks, never fails."""
        if self._command() is None:
            return
        waiting = self._waiting.setdefault(kind, _Waiting(since=datetime.now(UTC)))
        waiting.count += 1
        if details and len(waiting.details) < MOST_DETAILS:
            waiting.details.append(details)
        self._arrived.set()

    async def run(self) -> None:
        """Start the command for what is told, until cancelled; what is still to be told then has a few seconds."""
        async with anyio.create_task_group() as commands:
            try:
                while True:
                    for kind in self._due():
                        commands.start_soon(self._start, kind, self._take(kind), self._timeout_s)
                    with anyio.move_on_after(self._next_s()):
                        await self._arrived.wait()
                    self._arrived = anyio.Event()
            finally:
                end = anyio.current_time() + LAST_S
                for patience in self._running:
                    patience.deadline = min(patience.deadline, end)
                for kind in list(self._waiting):
                    commands.start_soon(self._start, kind, self._take(kind), min(self._timeout_s, LAST_S))

    def _due(self) -> list[Kind]:
        return [kind for kind in self._waiting if self._left_s(kind) <= 0]

    def _left_s(self, kind: Kind) -> float:
        return self._started_at.get(kind, float("-inf")) + self._pause_s - anyio.current_time()

    def _next_s(self) -> float:
        return max(0.0, min(map(self._left_s, self._waiting), default=float("inf")))

    def _take(self, kind: Kind) -> dict[str, Any]:
        """The message about everything of one kind that waits."""
        self._started_at[kind] = anyio.current_time()
        waiting = self._waiting.pop(kind)
        time = waiting.since.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"event": kind, **self._about, "time": time, "count": waiting.count, "details": waiting.details}

    async def _start(self, kind: Kind, message: Mapping[str, Any], timeout_s: float) -> None:
        command = self._command()
        if command is None:
            return
        # Shielded, so that the end of the daemon does not cut short who tells of it.
        with anyio.move_on_after(timeout_s, shield=True) as patience, _output() as output:
            self._running.append(patience)
            try:
                code = await self._tell_command(command, json.dumps(message, default=str), output.fileno())
            except (OSError, ValueError) as error:  # ValueError: a NUL in the command
                log.warning("notice.failed", kind=kind, count=message["count"], error=str(error))
            else:
                failed = {"error": f"exit code {code}"} if code else {}
                say = log.warning if code else log.info
                say(
                    "notice.failed" if code else "notice.sent",
                    kind=kind,
                    count=message["count"],
                    **failed,
                    output=_end_of(output.fileno()),
                )
            finally:
                self._running.remove(patience)
        if patience.cancelled_caught:
            log.warning("notice.failed", kind=kind, count=message["count"], error="it took too long and was killed")

    async def _tell_command(self, command: Command, message: str, output: int) -> int:
        """Its exit code. However this ends, no process of its group is left."""
        process = await anyio.open_process(
            command if isinstance(command, str) else list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=self._folder,
            env=without_secrets(os.environ),
            start_new_session=True,
        )
        try:
            await _write(process, message)
            return await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await process.wait()
                await process.aclose()


async def _write(process: Process, message: str) -> None:
    """A command need not read what it is told."""
    assert process.stdin is not None
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        await process.stdin.send(message.encode() + b"\n")
        await process.stdin.aclose()


def _output() -> IO[bytes]:
    """Where the command's output goes: nowhere, when there is no room for it."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return Path(os.devnull).open("r+b", buffering=0)


def _end_of(output: int) -> str:
    """The end of a file; of /dev/null nothing."""
    size = os.fstat(output).st_size
    return os.pread(output, _MOST_OUTPUT, max(0, size - _MOST_OUTPUT)).decode(errors="replace").strip()
