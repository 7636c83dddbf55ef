"""`Daemon.on_event` as a real command: what it is told, how often, and that none of its faults reaches the daemon."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog

from pyexp_daemon.daemon import notices
from pyexp_daemon.daemon.notices import Command, Notices
from tests.e2e.project import is_alive
from tests.helpers import wait_until_async, whole_lines

RECORD = "cat >> told; echo >> told"
Start = Callable[..., AbstractAsyncContextManager[Notices]]


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """What the daemon logs."""
    with structlog.testing.capture_logs() as said:
        yield said


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts the service with a command; its end is the end of the daemon."""

    @asynccontextmanager
    async def run(command: Command | None, *, pause_s: float = 10, timeout_s: float = 20) -> AsyncIterator[Notices]:
        about = {"table": "exp", "daemon": "node-1", "host": "node"}
        made = Notices(lambda: command, about=about, folder=tmp_path, timeout_s=timeout_s, pause_s=pause_s)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(made.run)
                yield made
                tasks.cancel_scope.cancel()

    return run


def is_gone(pid: int) -> bool:
    return not is_alive(pid)


def told(folder: Path) -> list[dict[str, Any]]:
    path = folder / "told"
    return [json.loads(line) for line in whole_lines(path) if line] if path.exists() else []


async def test_the_command_gets_one_json_document(start: Start, tmp_path: Path) -> None:
    async with start(RECORD) as made:
        made.tell("lost", daemon="node-2", host="other")
        await wait_until_async(lambda: told(tmp_path))
    (message,) = told(tmp_path)
    assert message.pop("time").endswith("Z")
    assert message == {
        "event": "lost",
        "table": "exp",
        "daemon": "node-1",
        "host": "node",
        "count": 1,
        "details": [{"daemon": "node-2", "host": "other"}],
    }


async def test_a_thousand_failures_do_not_start_a_thousand_processes(start: Start, tmp_path: Path) -> None:
    """The first is told at once, what comes while the pause lasts is told together at its end; kinds are apart."""
    async with start(RECORD, pause_s=4.0) as made:
        began = anyio.current_time()
        made.tell("failing", experiment_id=0)
        await wait_until_async(lambda: told(tmp_path))
        for number in range(1, 1000):
            made.tell("failing", experiment_id=number)
        made.tell("paused", reason="disk")
        await wait_until_async(lambda: len(told(tmp_path)) == 3)
        assert anyio.current_time() - began >= 4.0
    first, other, rest = told(tmp_path)
    assert (first["event"], first["count"]) == ("failing", 1)
    assert other["event"] == "paused"
    assert (rest["event"], rest["count"], len(rest["details"])) == ("failing", 999, notices.MOST_DETAILS)


async def test_what_is_told_last_is_told_before_the_end(start: Start, tmp_path: Path) -> None:
    """A daemon that ends because all is finished says so; a command that runs then is not cut short."""
    async with start(f"sleep 0.5; {RECORD}") as made:
        made.tell("failing")
        await wait_until_async(lambda: made._running)
        made.tell("failing")
        made.tell("finished")
    assert sorted(message["event"] for message in told(tmp_path)) == ["failing", "failing", "finished"]


async def test_a_list_is_a_program_without_a_shell(start: Start, tmp_path: Path) -> None:
    async with start(("sh", "-c", 'echo "$1" > argument; cat > told', "sh", "$HOME; exit 1")) as made:
        made.tell("finished")
        await wait_until_async(lambda: told(tmp_path))
    assert (tmp_path / "argument").read_text() == "$HOME; exit 1\n"


async def test_a_command_that_hangs_is_killed_with_its_group(start: Start, tmp_path: Path, events: list[Any]) -> None:
    async with start("sleep 600 & echo $! > child; echo $$ > shell; wait", timeout_s=3.0) as made:
        made.tell("finished")
        await wait_until_async(lambda: events)
    assert [(event["event"], event["error"]) for event in events] == [
        ("notice.failed", "it took too long and was killed")
    ]
    for name in ("child", "shell"):
        pid = int((tmp_path / name).read_text())
        await wait_until_async(partial(is_gone, pid), what=f"the death of the {name}")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("echo out of order; exit 3", "exit code 3"),
        (("./missing",), "No such file"),
        ("true\0false", "null byte"),
        (("true", "a\0b"), "null byte"),
        ("exec <&-; true", None),
    ],
)
async def test_its_faults_are_an_event(start: Start, events: list[Any], command: Command, error: str | None) -> None:
    async with start(command) as made:
        made.tell("finished", much="x" * 200_000)
        await wait_until_async(lambda: events)
    assert [event["event"] for event in events] == ["notice.failed" if error else "notice.sent"]
    if error:
        assert error in events[0]["error"]
    if error == "exit code 3":
        assert events[0]["output"] == "out of order"


async def test_it_is_told_although_there_is_no_room_for_its_output(
    start: Start, tmp_path: Path, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    async with start(f"echo said; {RECORD}") as made:
        made.tell("finished")
        await wait_until_async(lambda: events)
    assert [event["event"] for event in events] == ["notice.sent"]
    assert events[0]["output"] == ""
    assert len(told(tmp_path)) == 1


async def test_no_secret_is_in_its_environment(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYEXPD_MYSQL_PASSWORD", "MYSQL_PWD", "PGPASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("OF_THE_USER", "there")
    async with start("env > environment; cat > told") as made:
        made.tell("finished")
        await wait_until_async(lambda: told(tmp_path))
    environment = (tmp_path / "environment").read_text()
    assert "hunter2" not in environment
    assert "OF_THE_USER=there" in environment
    assert os.environ["PYEXPD_MYSQL_PASSWORD"] == "hunter2"


async def test_without_a_command_nothing_is_kept(start: Start) -> None:
    async with start(None) as made:
        made.tell("finished")
        assert made._waiting == {}
