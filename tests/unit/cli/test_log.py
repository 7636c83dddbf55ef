"""Where events go."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from rich.console import Console

from pyexp_daemon import exceptions, log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    log.reopen()
    structlog.reset_defaults()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_daemon_writes_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log.set_up_for_daemon(tmp_path / "logs", name="node-1", table="exp", terminal=None, to_stdout=True)
    assert path == tmp_path / "logs" / "daemon-node-1.jsonl"
    with structlog.contextvars.bound_contextvars(experiment_id=7):
        structlog.get_logger().warning("lease.lost", attempt=2, path=Path("/x"), text="100 % ä")
    structlog.get_logger().debug("nothing.said")
    (line,) = lines(path)
    assert list(line)[:5] == ["timestamp", "level", "event", "daemon", "table"]
    assert line == {
        "timestamp": line["timestamp"],
        "level": "warning",
        "event": "lease.lost",
        "daemon": "node-1",
        "table": "exp",
        "experiment_id": 7,
        "attempt": 2,
        "path": "/x",
        "text": "100 % ä",
    }
    assert str(line["timestamp"]).endswith("Z")
    assert json.loads(capsys.readouterr().out) == line


def test_traceback_becomes_part_of_the_line(tmp_path: Path) -> None:
    path = log.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    try:
        raise ValueError("luck")
    except ValueError as error:
        structlog.get_logger().warning("heartbeat.failed", exc_info=error)
    assert "ValueError: luck" in str(lines(path)[0]["exception"])


def test_terminal_gets_readable_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=False, width=200)
    log.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=console, to_stdout=False)
    structlog.get_logger().info("daemon.started", slots=2)
    assert "daemon.started" in screen.getvalue()
    assert "slots" in screen.getvalue()
    assert "{" not in screen.getvalue()
    assert capsys.readouterr().out == ""


def test_files_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FILE_BYTES", 2000)
    path = log.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    for number in range(200):
        structlog.get_logger().info("attempt.finished", experiment_id=number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [path.name, *(f"{path.name}.{number}" for number in range(1, 6))]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert lines(path)[-1]["experiment_id"] == 199


def test_moved_file_is_made_anew(tmp_path: Path) -> None:
    path = log.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    structlog.get_logger().info("daemon.started")
    path.rename(tmp_path / "moved")
    log.reopen()
    structlog.get_logger().info("daemon.stopped")
    assert [line["event"] for line in lines(path)] == ["daemon.stopped"]


def test_full_disk_is_said_once_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    assert log._file is not None
    log._file.close()
    log._file.stream = Path("/dev/full").open("w")  # noqa: SIM115 the handler closes it
    for _ in range(3):
        structlog.get_logger().info("daemon.started")
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert "Traceback" not in said


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(exceptions.UsageError, match="cannot be written"):
        log.set_up_for_daemon(tmp_path / "file" / "logs", name="n", table="exp", terminal=None, to_stdout=False)


def test_command_says_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up_for_command()
    structlog.get_logger().info("daemon.started")
    structlog.get_logger().warning("heartbeat.failed", error="away")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "pyexpd: warning: heartbeat.failed error=away\n"
    log.set_up_for_command(silent=True)
    structlog.get_logger().error("slot.broken")
    assert capsys.readouterr().err == ""
