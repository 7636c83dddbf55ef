"""The logs of daemons and attempts, read while they are written, rotated and cut."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from logging import makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyexp_daemon.cli import daemon_logs
from pyexp_daemon.cli.attempt_logs import _Printed
from pyexp_daemon.cli.daemon_logs import Line, Tail, Wish
from pyexp_daemon.worker.output import BoundedLog


class Daemon:
    """Writes numbered events as a daemon does, into small files."""

    def __init__(self, folder: Path, name: str = "n", *, size: int = 2000) -> None:
        self.path = folder / f"daemon-{name}.jsonl"
        self.handler = RotatingFileHandler(self.path, maxBytes=size, backupCount=5)
        self.count = 0

    def write(self, count: int = 1, **facts: Any) -> None:
        for _ in range(count):
            event = {"timestamp": f"{self.count:06}", "level": "info", "event": "x.said", "number": self.count, **facts}
            self.handler.handle(makeLogRecord({"msg": json.dumps(event)}))
            self.count += 1


@pytest.fixture
def daemon(tmp_path: Path) -> Any:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.handler.close()


def numbers(lines: list[Line]) -> list[int]:
    return [line.event["number"] for line in lines]


def test_last_lines_come_from_rotated_files_too(daemon: Daemon, tmp_path: Path) -> None:
    daemon.write(100)
    assert len(list(tmp_path.iterdir())) > 3
    tail = Tail(tmp_path, "n")
    assert numbers(tail.last(60, level=None)) == list(range(40, 100))
    daemon.write(3)
    assert numbers(tail.more()) == [100, 101, 102]
    tail.close()


def test_last_lines_of_a_level_are_found_however_far_back(daemon: Daemon, tmp_path: Path) -> None:
    daemon.write(2, level="error")
    daemon.write(90)
    daemon.write(1, level="warning")
    tail = Tail(tmp_path, "n")
    assert numbers(tail.last(3, level="warning")) == [0, 1, 92]
    tail.close()
    again = Tail(tmp_path, "n")
    assert numbers(again.last(1, level="error")) == [1]
    again.close()


def test_every_line_is_read_once_through_any_rotation(daemon: Daemon, tmp_path: Path) -> None:
    chance = random.Random(1)
    daemon.write(5)
    tail = Tail(tmp_path, "n")
    seen = numbers(tail.last(2, level=None))
    while daemon.count < 1000:
        daemon.write(chance.choice((0, 1, 20, 60)))  # 60 are several files at once
        seen += numbers(tail.more())
    assert seen == list(range(3, daemon.count))
    tail.close()


def test_what_is_written_while_files_are_looked_at_is_read(daemon: Daemon, tmp_path: Path) -> None:
    """Between the last read of a file and its being put aside it may have grown."""

    class Interrupted(Tail):
        def _following(self) -> Path | None:
            daemon.write(0 if daemon.count > 200 else 30)
            return super()._following()

    daemon.write(1)
    tail = Interrupted(tmp_path, "n")
    assert numbers(tail.more()) == list(range(daemon.count))
    tail.close()


def test_line_that_is_not_complete_is_read_when_it_is(tmp_path: Path) -> None:
    path = tmp_path / "daemon-n.jsonl"
    path.write_text('{"number": 0}\n{"num')
    tail = Tail(tmp_path, "n")
    assert numbers(tail.more()) == [0]
    with path.open("a") as file:
        file.write('ber": 1}\n')
    assert numbers(tail.more()) == [1]
    tail.close()


def test_file_that_is_moved_away_or_emptied_is_followed(daemon: Daemon, tmp_path: Path) -> None:
    tail = Tail(tmp_path, "n")
    daemon.write(50)
    assert len(list(tmp_path.iterdir())) > 1
    count = numbers(tail.more())[-1]
    assert count == 49
    daemon.path.rename(tmp_path / "kept-by-logrotate")
    daemon.write(1)
    assert numbers(tail.more()) == [50]
    daemon.handler.close()
    daemon.write(2)
    assert numbers(tail.more()) == [51, 52]
    daemon.handler.close()
    os.truncate(daemon.path, 0)
    daemon.write(1)
    assert numbers(tail.more()) == [53]
    tail.close()


def test_log_that_appears_later_is_read_from_its_beginning(tmp_path: Path) -> None:
    tail = Tail(tmp_path, "n")
    assert tail.last(5, level=None) == tail.more() == []
    daemon = Daemon(tmp_path)
    daemon.write(2)
    assert numbers(tail.more()) == [0, 1]
    daemon.handler.close()
    tail.close()


@pytest.fixture
def output() -> Callable[[], bytes]:
    return lambda: b"".join(b"%d\n" % number for number in range(3000))


@pytest.mark.parametrize("size", [200, 1000, 10**6])
def test_attempt_is_printed_whole_although_its_file_keeps_head_and_end_only(
    size: int, output: Callable[[], bytes], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Whoever follows from the beginning, and often enough, sees what the file has given up long ago."""
    chance = random.Random(size)
    log = BoundedLog(str(tmp_path / "log"), size_bytes=size)
    printed = _Printed(tmp_path / "log", size)
    left = output()
    while left:
        piece = chance.randrange(1, size // 4)
        log.write(left[:piece])
        left = left[piece:]
        printed.more()
    log.close()
    assert capfdbinary.readouterr().out == output()
    assert (tmp_path / "log").stat().st_size < max(size + 100, len(output()) + 1)


def test_what_was_given_up_before_it_could_be_printed_is_counted(
    output: Callable[[], bytes], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = BoundedLog(str(tmp_path / "log"), size_bytes=1000)
    printed = _Printed(tmp_path / "log", 1000)
    log.write(output()[:700])
    printed.more()
    log.write(output()[700:])
    printed.more()
    log.close()
    shown = capfdbinary.readouterr().out
    before, _, rest = shown.partition(b"\n--- ")
    count, _, after = rest.partition(b" bytes left out ---\n")
    assert before == output()[:700]
    assert output().endswith(after)
    assert len(before) + int(count) + len(after) == len(output())


def test_file_that_has_gaps_already_is_printed_as_it_is_and_followed(
    output: Callable[[], bytes], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = BoundedLog(str(tmp_path / "log"), size_bytes=1000)
    log.write(output()[:5000])
    printed = _Printed(tmp_path / "log", 1000)
    printed.more()
    assert capfdbinary.readouterr().out == (tmp_path / "log").read_bytes()
    log.write(output()[5000:5100])
    printed.more()
    log.close()
    assert capfdbinary.readouterr().out == output()[5000:5100]


ODD = [
    '{"timestamp": 7, "level": 7, "event": "a.said"}',
    '{"timestamp": null, "level": ["x"], "event": {"b": 1}}',
    '{"event": "c.said", "exception": {"of": ["another", "kind"]}, "stack": 1, "exc_info": "true", "logger": 2}',
    '{"event": "d.said", "deep": ' + "[" * 950 + "]" * 950 + "}",
    '{"event": "e.said", "deep": ' + "[" * 50_000 + "]" * 50_000 + "}",
    '{"event": "f.said", "half": "\\ud800"}',
    '{"timestamp": "0001-01-01T00:00:00+00:00", "event": "g.said"}',
    '{"event": "h.said", "number": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("level", [None, "debug"])
def test_a_line_of_any_kind_is_shown(odd: str, level: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    wish = Wish(lines=9, daemon=None, level=None, as_json=False)
    Line(odd).has_level(level)
    daemon_logs._print([Line(odd)], daemon_logs._printer(wish))
    said = capsys.readouterr().out
    said.encode()
    assert ".said" in said or "{'b': 1}" in said


def test_what_is_no_json_stays_behind_the_line_before_it() -> None:
    """A traceback between two events is not moved to the top of what several daemons say."""
    one = [Line('{"timestamp": "3", "event": "x"}'), Line("Traceback"), Line('{"timestamp": "5", "event": "x"}')]
    other = [Line('{"timestamp": "2", "event": "y"}'), Line('{"timestamp": "4", "event": "y"}')]
    merged = daemon_logs._merged([one, other])
    assert [line.timestamp or line.text for line in merged] == ["2", "3", "Traceback", "4", "5"]


def test_following_looks_for_new_daemons_now_and_then_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder there may be the logs of many thousand attempts; the logs themselves are read often."""
    now, looks, reads = [0.0], [], []
    names, more = daemon_logs._names, Tail.more

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] > 30:
            raise KeyboardInterrupt

    def count_look(*arguments: Any) -> list[str]:
        looks.append(now[0])
        return names(*arguments)

    def count_read(self: Tail) -> list[Line]:
        reads.append(now[0])
        return more(self)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(daemon_logs, "_names", count_look)
    monkeypatch.setattr(Tail, "more", count_read)
    (tmp_path / "daemon-n.jsonl").write_text("")
    workplace: Any = SimpleNamespace(config=SimpleNamespace(path=tmp_path / "c.yml", logs=tmp_path))
    with pytest.raises(KeyboardInterrupt):
        daemon_logs.show(workplace, Wish(lines=9, daemon=None, level=None, as_json=False), follow=True)
    assert len(looks) <= 1 + 30 / daemon_logs.LOOK_S
    assert len(reads) > 90
