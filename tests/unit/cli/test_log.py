"""Where events go."""

from __future__ import annotations

import io
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from rich.console import Console

from pyexp_daemon import events, exceptions, log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    events.reopen()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_daemon_writes_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = events.set_up_for_daemon(tmp_path / "logs", name="node-1", table="exp", terminal=None, to_stdout=True)
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
    path = events.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    try:
        raise ValueError("luck")
    except ValueError as error:
        structlog.get_logger().warning("heartbeat.failed", exc_info=error)
    assert "ValueError: luck" in str(lines(path)[0]["exception"])


def test_terminal_gets_readable_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=False, width=200)
    events.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=console, to_stdout=False)
    structlog.get_logger().info("daemon.started", slots=2)
    assert "daemon.started" in screen.getvalue()
    assert "slots" in screen.getvalue()
    assert "{" not in screen.getvalue()
    assert capsys.readouterr().out == ""


def test_files_are_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FILE_BYTES", 2000)
    path = events.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    for number in range(200):
        structlog.get_logger().info("attempt.finished", experiment_id=number)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [path.name, *(f"{path.name}.{number}" for number in range(1, 6))]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert lines(path)[-1]["experiment_id"] == 199


def test_moved_file_is_made_anew(tmp_path: Path) -> None:
    path = events.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    structlog.get_logger().info("daemon.started")
    path.rename(tmp_path / "moved")
    events.reopen()
    structlog.get_logger().info("daemon.stopped")
    assert [line["event"] for line in lines(path)] == ["daemon.stopped"]


def test_full_disk_is_said_once_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    assert events._file is not None
    events._file.close()
    events._file.stream = Path("/dev/full").open("w")  # noqa: SIM115 the handler closes it
    for _ in range(3):
        structlog.get_logger().info("daemon.started")
    said = capsys.readouterr().err
    assert said.count("cannot be written") == 1
    assert "Traceback" not in said


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(exceptions.UsageError, match="cannot be written"):
        events.set_up_for_daemon(tmp_path / "file" / "logs", name="n", table="exp", terminal=None, to_stdout=False)


def test_command_says_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up_for_command()
    log.get_logger().info("daemon.started")
    log.get_logger().warning("heartbeat.failed", error="away")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "pyexpd: warning: heartbeat.failed error=away\n"
    log.set_up_for_command(silent=True)
    log.get_logger().error("slot.broken")
    assert capsys.readouterr().err == ""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Book:
    """What a limited log says, with a clock that tests move."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.lines: list[dict[str, Any]] = []
        self.repeats = events.Repeats(lambda line: self.lines.append(dict(line)), clock=self.clock)

    def say(self, event: str, level: str = "warning", **facts: Any) -> None:
        try:
            line = self.repeats(None, level, {"event": event, "level": level, "timestamp": self.clock.now, **facts})
        except structlog.DropEvent:
            return
        self.lines.append(dict(line))

    @property
    def total(self) -> int:
        return sum(1 + line.get("repeated", 0) for line in self.lines)


def test_cause_is_said_once_a_minute_and_the_rest_counted() -> None:
    book = Book()
    for second in range(0, 130, 10):
        book.clock.now = 1000.0 + second
        book.say("rescue.failed", "error", error="away", silent_s=second, pid=second)
    assert [(line["timestamp"], line.get("repeated")) for line in book.lines] == [
        (1000.0, None),
        (1060.0, 5),
        (1120.0, 5),
    ]


@pytest.mark.parametrize(
    ("event", "facts"),
    [
        ("claim.refused", {"error": "away", "slot": 1}),
        ("rescue.failed", {"error": "other", "slot": 1}),
        ("rescue.failed", {"error": "away", "slot": 2}),
        ("rescue.failed", {"error": "away", "slot": 1, "exception": "Traceback …\nValueError: luck"}),
    ],
)
def test_other_cause_is_said_at_once(event: str, facts: dict[str, Any]) -> None:
    book = Book()
    book.say("rescue.failed", error="away", slot=1)
    book.say(event, **facts)
    assert len(book.lines) == 2


def test_what_concerns_an_experiment_or_is_no_warning_is_never_left_out() -> None:
    book = Book()
    for _ in range(3):
        book.say("lease.lost", experiment_id=7, attempt=1)
        book.say("slot.started", "info", slot=1)
    assert len(book.lines) == 6


def test_what_was_left_out_is_said_when_it_does_not_come_again() -> None:
    """Any later event brings it; the window begins anew then."""
    book = Book()
    for _ in range(4):
        book.say("rescue.failed", error="away")
    book.clock.now += 61
    book.say("slot.started", "info", slot=1)
    assert [(line["event"], line.get("repeated")) for line in book.lines] == [
        ("rescue.failed", None),
        ("rescue.failed", 2),
        ("slot.started", None),
    ]
    book.say("rescue.failed", error="away")
    assert len(book.lines) == 3


def test_nothing_is_lost_and_memory_is_bounded() -> None:
    """However events fall, each is said or counted once everything has been said."""
    book, chance = Book(), random.Random(1)
    for _ in range(20_000):
        book.clock.now += 70.0 if chance.random() < 0.001 else 0.01
        book.say("rescue.failed", error=chance.randrange(2000) if chance.random() < 0.5 else 1)
        assert len(book.repeats._causes) <= events.MOST_CAUSES
    book.repeats.close()
    assert book.total == 20_000
    assert len(book.lines) < 15_000
    book.repeats.close()
    assert book.total == 20_000


def test_daemon_leaves_out_repeated_causes_and_says_in_the_end_how_many(tmp_path: Path) -> None:
    path = events.set_up_for_daemon(tmp_path, name="n", table="exp", terminal=None, to_stdout=False)
    for _ in range(5):
        structlog.get_logger().error("rescue.failed", error="away")
    assert len(lines(path)) == 1
    events.say_left_out()
    first, last = lines(path)
    assert last == {**first, "timestamp": last["timestamp"], "repeated": 3}
    assert list(last)[:5] == ["timestamp", "level", "event", "daemon", "table"]


def test_events_go_to_a_logger_while_blocks_run_and_structlog_is_then_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    before = structlog.get_config()
    one, other = events.to_logger(logging.getLogger("one")), events.to_logger(logging.getLogger("other"))
    with caplog.at_level(logging.INFO):
        one.__enter__()
        structlog.get_logger().info("first", number=1)
        other.__enter__()
        one.__exit__(None, None, None)  # as of two threads
        structlog.get_logger().warning("second")
        structlog.get_logger().warning("second")
        other.__exit__(None, None, None)
    assert structlog.get_config() == before
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("one", "first number=1"),
        ("one", "second"),
        ("one", "second"),  # said once, and once more at the end as what was left out
    ]
