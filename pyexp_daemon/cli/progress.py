"""Progress on a terminal or in a notebook, always on stderr; nothing where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(text: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """A bar while the block runs; call what it gives, from any thread, with how many were done since the last call."""
    if not (sys.stderr.isatty() or "ipykernel" in sys.modules):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What is printed meanwhile goes above the bar, but not what somebody has sent elsewhere.
    console, both = Console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=both) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.advance(task, done)
