"""The live line of a daemon on a terminal: what runs here, and how far the whole table is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.cli.times import show_duration
from pyexp_daemon.model import Status

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pyexp_daemon.daemon.supervisor import Supervisor

LOOK_S = 2.0
RATE_S = 60.0
_MOST_SHOWN = 8
_UNFINISHED = (Status.CREATED, Status.WAITING, Status.RUNNING)


class Pace:
    """How fast the whole table gets on, as its counts show it over the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self.counts: Mapping[str, int] = {}

    def note(self, counts: Mapping[str, int], *, now: float) -> None:
        """The table has these counts at this moment (monotonic)."""
        self.counts = counts
        finished = sum(counts.values()) - self.unfinished
        if self._seen and finished < self._seen[-1][1]:
            self._seen.clear()  # a reset: what was finished before says nothing any more
        self._seen.append((now, finished))
        while now - self._seen[0][0] > RATE_S:
            self._seen.popleft()

    @property
    def unfinished(self) -> int:
        return sum(self.counts.get(status, 0) for status in _UNFINISHED)

    @property
    def per_second(self) -> float | None:
        """Experiments finished in a second; None as long as it cannot be told."""
        if len(self._seen) < 2:
            return None
        (first_at, first), (last_at, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else None


def summary(pace: Pace, *, running: int, slots: int) -> str:
    """`running 2 of 2 · 14 done · 1 error · 80 in all · 3.2/s · about 20 s left`"""
    counts = pace.counts
    parts = [f"running {running} of {slots}"]
    if counts:
        parts += [f"{counts.get(Status.DONE, 0)} done", f"{counts.get(Status.ERROR, 0)} error"]
        parts += [f"{sum(counts.values())} in all"]
    rate = pace.per_second
    if rate and pace.unfinished:
        parts.append(f"{rate:.1f}/s" if rate >= 0.1 else f"{rate * 3600:.0f}/h")
        parts.append(f"about {show_duration(pace.unfinished / rate)} left")
    return " · ".join(parts)


class LiveLine:
    """Shows a supervisor on a terminal while `run` runs; also says when the table is finished."""

    def __init__(
        self, supervisor: Supervisor, console: Console, *, is_finished: bool, say_finished: Callable[[], None]
    ) -> None:
        """
        Args:
            is_finished: whether nothing is left to do at the start.
            say_finished: called when the table becomes finished.
        """
        self._supervisor = supervisor
        self._console = console
        self._is_finished = is_finished
        self._say_finished = say_finished
        self._pace = Pace()

    async def run(self) -> None:
        """Show it until cancelled."""
        from rich.live import Live

        with Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True):
            while True:
                began = time.monotonic()
                with suppress(exceptions.DatabaseError):  # the daemon says that it is away; we show what we knew
                    self._pace.note(await self._supervisor.count_by_status(), now=time.monotonic())
                    self._notice_the_end()
                # Counting a large table takes a while: it must not become a load of its own.
                await anyio.sleep(max(LOOK_S, 20 * (time.monotonic() - began)))

    def _notice_the_end(self) -> None:
        is_finished = not self._pace.unfinished
        if is_finished and not self._is_finished:
            self._say_finished()
        self._is_finished = is_finished

    def _render(self) -> RenderableType:
        from rich.text import Text

        supervisor = self._supervisor
        running = supervisor.pool.running
        lines = [summary(self._pace, running=len(running), slots=supervisor.options.slots)]
        for experiment_id, (fraction, description) in list(supervisor.progress.items())[:_MOST_SHOWN]:
            share = "" if fraction is None else f" {fraction:4.0%}"
            said = "".join(character if character.isprintable() else " " for character in description or "")
            lines.append(f"  experiment {experiment_id}{share} {said}".rstrip())
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
