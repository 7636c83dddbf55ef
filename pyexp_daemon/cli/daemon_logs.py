"""The logs of the daemons: JSON lines in files that are rotated, read from their end and followed."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import click

from pyexp_daemon import events, exceptions
from pyexp_daemon.cli.context import Workplace, warn

LEVELS = ("debug", "info", "warning", "error", "critical")

_TEXTS = ("event", "level", "exception", "stack", "logger", "logger_name")
"""Keys whose values the renderer takes for texts."""

_FILE = re.compile(r"daemon-(.+)\.jsonl(?:\.\d+)?")
_FOLLOW_S = 0.3

LOOK_S = 5.0
"""How often logs of new daemons are looked for: the folder may hold the logs of many thousand attempts, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody wants to see.

    Args:
        lines: how many of the last ones.
        daemon: the name of one daemon; None for all.
        level: this and above; None for all.
        as_json: as they were written.
    """

    lines: int
    daemon: str | None
    level: str | None
    as_json: bool


@dataclass(frozen=True)
class Line:
    """One line of a log; what is no JSON object is shown as it is."""

    text: str

    @functools.cached_property
    def event(self) -> dict[str, Any]:
        try:
            event = json.loads(self.text)
        except (ValueError, RecursionError):
            event = None
        return event if isinstance(event, dict) else {}

    @property
    def timestamp(self) -> str:
        time = self.event.get("timestamp")
        return time if isinstance(time, str) else ""

    def has_level(self, level: str | None) -> bool:
        if level is None:
            return True
        own = self.event.get("level")
        return isinstance(own, str) and own in LEVELS and LEVELS.index(own) >= LEVELS.index(level)


class Tail:
    """The log of one daemon: its last lines, then what is added, through rotation."""

    def __init__(self, folder: Path, name: str) -> None:
        base = folder / f"daemon-{name}.jsonl"
        self._paths = [base, *(base.with_name(f"{base.name}.{number}") for number in range(1, events.FILES_KEPT + 1))]
        self._file: BinaryIO | None = None
        self._rest = b""

    def last(self, count: int, *, level: str | None) -> list[Line]:
        """The last lines of this level; `more` goes on behind them."""
        lines = [line for line in self.more() if line.has_level(level)]
        for path, _ in self._places(but=self._inode()):
            if len(lines) >= count:
                break
            lines[:0] = [line for line in _lines_of(path) if line.has_level(level)]
        return lines[-count:] if count else []

    def more(self) -> list[Line]:
        """What was added since the last call; at the first one, the newest file."""
        lines: list[Line] = []
        while self._file or self._open_newest():
            lines += self._read()
            following = self._following()
            if following is None:
                break
            lines += self._read()  # what was written between our reading and its being put aside
            self._open(following)
        return lines

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[Line]:
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._file.tell():  # emptied in place
            self._file.seek(0)
            self._rest = b""
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        return _decoded(whole)

    def _following(self) -> Path | None:
        """The file that was begun after ours was put aside; None while ours is the newest."""
        places = self._places()
        inode = self._inode()
        own = next((number for number, (_, other) in enumerate(places) if other == inode), None)
        if own is None:  # ours was moved away or deleted
            return self._paths[0] if places and places[0][0] == self._paths[0] else None
        return places[own - 1][0] if own else None

    def _open_newest(self) -> bool:
        places = self._places()
        if places:
            self._open(places[0][0])
        return self._file is not None

    def _open(self, path: Path) -> None:
        self.close()
        self._rest = b""
        try:
            self._file = path.open("rb")
        except FileNotFoundError:  # put aside at this moment: the next turn finds it
            self._file = None
        except OSError as error:
            raise unreadable(path, error) from error

    def _inode(self) -> int | None:
        return os.fstat(self._file.fileno()).st_ino if self._file else None

    def _places(self, *, but: int | None = None) -> list[tuple[Path, int]]:
        """The files that are there with their inodes, newest first."""
        found = []
        for path in self._paths:
            try:
                inode = path.stat().st_ino
            except OSError:
                continue
            if inode != but:
                found.append((path, inode))
        return found


def show(workplace: Workplace, wish: Wish, *, follow: bool) -> None:
    """Print the last lines of the daemons' logs by time, and with `follow` what is added until Ctrl-C.

    Raises:
        UsageError: there is no log, or it cannot be read.
    """
    folder = workplace.config.logs
    say = _printer(wish)
    names = _names(folder, wish.daemon)
    if not names and not follow:
        raise _nothing_there(folder, wish.daemon)
    click.echo(f"configuration {workplace.config.path}, logs {folder}", err=True)
    if not names:
        warn(f"{_nothing_there(folder, wish.daemon)}; waiting for it")
    tails = {name: Tail(folder, name) for name in names}
    try:
        last = _merged(tail.last(wish.lines, level=wish.level) for tail in tails.values())
        _print(last[max(0, len(last) - wish.lines) :], say)
        looked_at = time.monotonic()
        while follow:
            time.sleep(_FOLLOW_S)
            if time.monotonic() - looked_at >= LOOK_S:
                looked_at = time.monotonic()
                for name in _names(folder, wish.daemon):
                    tails.setdefault(name, Tail(folder, name))
            added = _merged(tail.more() for tail in tails.values())
            _print((line for line in added if line.has_level(wish.level)), say)
    finally:
        for tail in tails.values():
            tail.close()


def _names(folder: Path, wanted: str | None) -> list[str]:
    """The daemons that have a log, in the order of their names."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith("daemon-")]
        found = {match[1] for name in names if (match := _FILE.fullmatch(name))}
    except (FileNotFoundError, NotADirectoryError):
        found = set()
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(found if wanted is None else found & {wanted})


def _nothing_there(folder: Path, wanted: str | None) -> exceptions.UsageError:
    others = _names(folder, None)
    if wanted is not None and others:
        return exceptions.UsageError(
            f"there is no log of a daemon {wanted!r} in {folder}", hint=f"there are those of {', '.join(others)}"
        )
    return exceptions.UsageError(
        f"no daemon of this configuration has written a log here yet;"
        f" it would be {folder}/daemon-{wanted or 'NAME'}.jsonl"
    )


def unreadable(path: Path, error: OSError) -> exceptions.UsageError:
    return exceptions.UsageError(f"{path} cannot be read: {error.strerror}")


def _merged(logs: Iterable[Sequence[Line]]) -> list[Line]:
    """By time; what has none, such as a line that is no JSON, stays behind the line before it."""
    timed = []
    for lines in logs:
        last = ""
        for line in lines:
            last = line.timestamp or last
            timed.append((last, line))
    return [line for _, line in sorted(timed, key=lambda pair: pair[0])]


def _print(lines: Iterable[Line], say: Callable[[Line], str]) -> None:
    for line in lines:
        click.echo(_printable(say(line)))


def _printer(wish: Wish) -> Callable[[Line], str]:
    if wish.as_json:
        return lambda line: line.text
    render = events.readable(colors=sys.stdout.isatty() and "NO_COLOR" not in os.environ)

    def say(line: Line) -> str:
        if "event" not in line.event:
            return line.text
        # One table has one configuration, but may have many daemons. What exc_info means to the renderer is no JSON.
        shown = {key: value for key, value in line.event.items() if key not in ("table", "exc_info")}
        texts = {key: str(shown[key]) for key in _TEXTS if key in shown}
        try:
            return render(shown | texts | {"timestamp": _local(line.timestamp)})
        except RecursionError:  # values in values in values
            return line.text

    return say


def _printable(text: str) -> str:
    """JSON may name halves of characters, which no encoding has."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _local(timestamp: str) -> str:
    try:
        return datetime.fromisoformat(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # the last two: a year that no time zone has
        return timestamp


def _lines_of(path: Path) -> list[Line]:
    try:
        return _decoded(path.read_bytes().split(b"\n"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error) from error


def _decoded(lines: Iterable[bytes]) -> list[Line]:
    return [Line(line.decode("utf-8", "replace")) for line in lines if line.strip()]
