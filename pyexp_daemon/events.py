"""Where the events of a daemon go: JSON lines to a file, and to stdout or readable to a terminal.

docs/reference/events.md has them all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from pyexp_daemon import exceptions
from pyexp_daemon.log import Fanout, configure, facts_of

if TYPE_CHECKING:
    from rich.console import Console

    from pyexp_daemon.log import Event, Sink

FILE_BYTES = 10 * 2**20
"""A log file is closed and kept as `.1` when it has this size."""

FILES_KEPT = 5
"""So many closed log files are kept."""

REPEATED_S = 60.0
"""A warning or error of one cause is said once in this time."""

MOST_CAUSES = 256
"""So many causes are remembered."""

_file: RotatingFileHandler | None = None
_repeats: Repeats | None = None
_guests = 0
_guests_lock = threading.Lock()
_before_guests: dict[str, Any] | None = None


def set_up_for_daemon(folder: Path, *, name: str, table: str, terminal: Console | None, to_stdout: bool) -> Path:
    """Send the events of this process to `<folder>/daemon-<name>.jsonl`, and beside it to whoever watches.

    Args:
        name: the daemon's; part of every event, as is `table`.
        terminal: readable events are printed on it, if there is one.
        to_stdout: whether the JSON lines go to stdout, too.

    Returns:
        The log file.

    Raises:
        UsageError: the file cannot be written.
    """
    global _file, _repeats  # noqa: PLW0603 logging is of the process, as structlog's own configuration is
    path = folder / f"daemon-{name}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _file = _LogFile(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
    except OSError as error:
        raise exceptions.UsageError(
            f"the log file {path} cannot be written: {error.strerror}", hint="Daemon.logs in the configuration"
        ) from error
    sinks: list[Sink] = [_to_file(_file)]
    if terminal is not None:
        sinks.append(_Terminal(terminal))
    if to_stdout:
        sinks.append(_Lines(sys.stdout))
    _repeats = Repeats(Fanout(sinks).msg)
    configure(sinks, level=logging.INFO, limit=_repeats, daemon=name, table=table)
    return path


@contextmanager
def to_logger(logger: logging.Logger) -> Iterator[None]:
    """Send events to a logger of the standard library while the block runs; afterwards structlog is as it was.

    Of blocks that run at the same time, in threads or within each other, the first one's logger gets the events.
    """
    global _repeats, _guests, _before_guests  # noqa: PLW0603 see above
    with _guests_lock:
        _guests += 1
        if _guests == 1:
            _before_guests = structlog.get_config() if structlog.is_configured() else None
            sinks = [_to_standard(logger)]
            _repeats = Repeats(Fanout(sinks).msg)
            configure(sinks, level=logging.INFO, limit=_repeats)
    try:
        yield
    finally:
        with _guests_lock:
            _guests -= 1
            if _guests == 0:
                say_left_out()
                _repeats = None
                structlog.reset_defaults()
                if _before_guests:
                    structlog.configure(**_before_guests)


def say_left_out() -> None:
    """Say what was left out as repeated and not said since; a daemon's last act."""
    if _repeats is not None:
        _repeats.close()


def reopen() -> None:
    """Close the log file; the next event opens it again, under its name, whatever was moved away meanwhile."""
    if _file is not None:
        with suppress(OSError):  # what could not be written is lost; the next file may be on a disk with room
            _file.close()


def readable(*, colors: bool) -> Callable[[Event], str]:
    """How events become lines for people."""
    render = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=24)
    return lambda event: str(render(None, "", dict(event)))


@dataclass(slots=True)
class _Cause:
    said_at: float
    left_out: int = 0
    last: Event | None = None


class Repeats:
    """A processor that says warnings and errors of one cause once a minute, and how many were left out before.

    Those of an experiment always pass, the others are of one cause when they agree in all that tells one from another.
    Every one is either said or counted by the key `repeated` of a later one.
    """

    def __init__(self, say: Callable[[Event], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()  # the heartbeat has a thread of its own
        self._causes: dict[tuple[tuple[str, str], ...], _Cause] = {}
        """In the order in which they were said last."""

    def __call__(self, logger: object, method: str, event: Event) -> Event:
        with self._lock:
            now = self._clock()
            self._say_overdue(now, but=_cause_of(event))
            if event["level"] not in ("warning", "error", "critical") or "experiment_id" in event:
                return event
            return self._say_or_count(event, now)

    def close(self) -> None:
        """Say what was left out."""
        with self._lock:
            for cause in self._causes.values():
                self._say_last(cause)
            self._causes.clear()

    def _say_or_count(self, event: Event, now: float) -> Event:
        mark = _cause_of(event)
        cause = self._causes.get(mark)
        if cause is not None and now - cause.said_at < REPEATED_S:
            cause.left_out += 1
            cause.last = event
            raise structlog.DropEvent
        self._causes.pop(mark, None)
        if len(self._causes) >= MOST_CAUSES:
            self._say_last(self._causes.pop(next(iter(self._causes))))
        self._causes[mark] = _Cause(now)
        return {**event, "repeated": cause.left_out} if cause and cause.left_out else event

    def _say_overdue(self, now: float, *, but: tuple[tuple[str, str], ...]) -> None:
        """Say what was left out a minute ago and did not come again, and forget what was not left out."""
        while self._causes:
            mark, cause = next(iter(self._causes.items()))
            if now - cause.said_at < REPEATED_S or mark == but:
                return
            del self._causes[mark]
            if cause.left_out:
                self._say_last(cause)
                self._causes[mark] = _Cause(now)

    def _say_last(self, cause: _Cause) -> None:
        if cause.last is not None:
            more = cause.left_out - 1
            self._say({**cause.last, "repeated": more} if more else cause.last)


def _cause_of(event: Event) -> tuple[tuple[str, str], ...]:
    """What tells events apart; processes, durations, sizes and moments are others each time."""
    facts = {
        name: str(value)
        for name, value in event.items()
        if name not in _VOLATILE and not name.endswith(("_s", "_bytes"))
    }
    facts["exception"] = facts.get("exception", "").strip().rpartition("\n")[2]
    return tuple(sorted(facts.items()))


_VOLATILE = ("timestamp", "pid", "reports", "traceback")


def _to_file(handler: logging.Handler) -> Sink:
    def write(event: Event) -> None:
        handler.handle(logging.makeLogRecord({"msg": _line(event)}))

    return write


def _to_standard(logger: logging.Logger) -> Sink:
    def write(event: Event) -> None:
        facts = facts_of(event)
        trace = f"\n{event['exception']}" if "exception" in event else ""
        logger.log(logging.getLevelNamesMapping()[event["level"].upper()], "%s%s%s", event["event"], facts, trace)

    return write


def _line(event: Event) -> str:
    """The event as JSON; what every line has stands in front, in one order."""
    first = {key: event[key] for key in ("timestamp", "level", "event", "daemon", "table") if key in event}
    return json.dumps({**first, **event}, default=str)


class _LogFile(RotatingFileHandler):
    """A log file; when it cannot be written, that is said once, and the experiments go on."""

    _is_broken = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 the name is logging's
        error = sys.exc_info()[1]
        if not self._is_broken:
            self._is_broken = True
            Indifferent(sys.stderr).write(
                f"pyexpd: warning: the log file {self.baseFilename} cannot be written: {error}\n"
            )


class Indifferent:
    """A stream to a terminal or pipe that may go away at any time: nobody reads then, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lines:
    """JSON lines to a stream, until nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def __call__(self, event: Event) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(_line(event) + "\n")
            self._stream.flush()
        except OSError:
            self._stream = None


class _Terminal:
    """Readable lines above whatever is live on the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._render = readable(colors=not console.no_color)

    def __call__(self, event: Event) -> None:
        from rich.text import Text

        shown = {key: value for key, value in event.items() if key not in ("daemon", "table")}
        shown["timestamp"] = time.strftime("%H:%M:%S")
        self._console.print(Text.from_ansi(self._render(shown)), soft_wrap=True)
