"""Where log events go: JSON lines to a file, and to stdout or readable to a terminal. See docs/reference/events.md."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog

from pyexp_daemon import exceptions

if TYPE_CHECKING:
    from rich.console import Console

    Event = structlog.typing.EventDict
    Sink = Callable[[Event], None]

FILE_BYTES = 10 * 2**20
"""A log file is closed and kept as `.1` when it has this size."""

FILES_KEPT = 5
"""So many closed log files are kept."""

_file: RotatingFileHandler | None = None


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
    global _file  # noqa: PLW0603 logging is of the process, as structlog's own configuration is
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
    _configure(sinks, level=logging.INFO, daemon=name, table=table)
    return path


def set_up_for_command(*, silent: bool = False) -> None:
    """Keep quiet, but for warnings, which go to stderr: the result of a command is alone on stdout.

    Args:
        silent: not even warnings; the command says itself what it finds.
    """
    _configure([] if silent else [_Warnings()], level=logging.WARNING)


def reopen() -> None:
    """Close the log file; the next event opens it again, under its name, whatever was moved away meanwhile."""
    if _file is not None:
        with suppress(OSError):  # what could not be written is lost; the next file may be on a disk with room
            _file.close()


def _configure(sinks: Sequence[Sink], *, level: int, **facts: str) -> None:
    def add_facts(logger: object, method: str, event: Event) -> Event:
        # These keys are the daemon's; an event that has a `name` of its own (of another daemon) keeps it.
        return {**facts, **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            add_facts,
            lambda logger, method, event: ((event,), {}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Fanout(sinks),
        cache_logger_on_first_use=False,
    )


class _Fanout:
    """What structlog takes for a logger: hands every event to all sinks."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def msg(self, event: Event) -> None:
        for sink in self._sinks:
            sink(event)

    debug = info = warning = error = critical = exception = msg


def _to_file(handler: logging.Handler) -> Sink:
    def write(event: Event) -> None:
        handler.handle(logging.makeLogRecord({"msg": _line(event)}))

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
        self._render = structlog.dev.ConsoleRenderer(colors=not console.no_color, pad_event_to=24)

    def __call__(self, event: Event) -> None:
        from rich.text import Text

        shown = {key: value for key, value in event.items() if key not in ("daemon", "table")}
        shown["timestamp"] = time.strftime("%H:%M:%S")
        self._console.print(Text.from_ansi(str(self._render(None, "", shown))), soft_wrap=True)


class _Warnings:
    """`pyexpd: warning: event key=value` on stderr."""

    def __call__(self, event: Event) -> None:
        facts = "".join(
            f" {key}={value}" for key, value in event.items() if key not in ("event", "level", "timestamp", "exception")
        )
        sys.stderr.write(f"pyexpd: {event['level']}: {event['event']}{facts}\n")
