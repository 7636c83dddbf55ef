"""What every module logs with. structlog comes with the first event: most commands have none, and it loads for long.

Until something else is set up, events go where structlog puts them; `events.py` sets up what a daemon needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structlog.typing import Processor

Event = MutableMapping[str, Any]
Sink = Callable[[Event], None]

_WARNING = 30
"""The level, as `logging` numbers it."""

_OF_THE_LINE = ("event", "level", "timestamp", "exception")
"""What a line for people shows in its own way, or not at all."""

_wanted: Callable[[], None] | None = None
"""What is to be set up before the first event."""


class _Logger:
    """structlog's logger, which is loaded and set up when something is said."""

    def __getattr__(self, name: str) -> Any:
        import structlog

        settle()
        return getattr(structlog.get_logger(), name)


_logger = _Logger()


def get_logger() -> Any:
    """The logger of a module: structlog's, in all but its name."""
    return _logger


def set_up_for_command(*, silent: bool = False) -> None:
    """Keep quiet, but for warnings, which go to stderr: the result of a command is alone on stdout.

    Args:
        silent: not even warnings; the command says itself what it finds.
    """
    global _wanted  # noqa: PLW0603 logging is of the process, as structlog's own configuration is
    _wanted = partial(configure, [] if silent else [_warn], level=_WARNING)


def settle() -> None:
    """Set up at once what would wait for the first event: somebody else may log by structlog."""
    wanted = _wanted
    if wanted is not None:
        wanted()


def configure(sinks: Sequence[Sink], *, level: int, limit: Processor | None = None, **facts: str) -> None:
    """Send the events of this process to all sinks.

    Args:
        level: this and above.
        limit: passes an event on, or drops it.
        facts: what every event has.
    """
    import structlog

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
            *([limit] if limit else []),
            lambda logger, method, event: ((event,), {}),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: Fanout(sinks),
        cache_logger_on_first_use=False,
    )
    forget()


def forget() -> None:
    """Set nothing up before the first event."""
    global _wanted  # noqa: PLW0603 see above
    _wanted = None


class Fanout:
    """What structlog takes for a logger: hands every event to all sinks."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def msg(self, event: Event) -> None:
        for sink in self._sinks:
            sink(event)

    debug = info = warning = error = critical = exception = msg


def facts_of(event: Event) -> str:
    """` key=value` for each fact, as people read them behind the name of an event."""
    return "".join(f" {key}={value}" for key, value in event.items() if key not in _OF_THE_LINE)


def _warn(event: Event) -> None:
    """`pyexpd: warning: event key=value` on stderr."""
    sys.stderr.write(f"pyexpd: {event['level']}: {event['event']}{facts_of(event)}\n")
