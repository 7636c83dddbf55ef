"""The commands that change experiments: reset, cancel, delete, set. What was shown is what is changed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.confirm import confirm
from pyexp_daemon.cli.context import Workplace, command, count_of
from pyexp_daemon.cli.progress import progress_bar
from pyexp_daemon.cli.selectors import Chosen, selector
from pyexp_daemon.daemon import doorbell
from pyexp_daemon.model import Status
from pyexp_daemon.store import edits
from pyexp_daemon.store.edits import Seen
from pyexp_daemon.store.selection import Selection

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.tables import Table

_ASSIGNMENT = re.compile(r"([A-Za-z_]+)=(.*)")
_QUEUE = re.compile(r"[\x21-\x7e]{1,64}")
_MOST_URGENT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a change would do, in words and as rows."""

    chosen: Sequence[Seen]
    does: str
    """`resets 3 experiments: 2 done, 1 error`"""
    loses: Sequence[str] = ()
    """What is gone afterwards, each in a few words."""
    leaves: Sequence[str] = ()
    """Who of the selected is left alone, and why."""

    @property
    def lines(self) -> list[str]:
        return [self.does, *self.loses, *self.leaves]


Apply = Callable[["BlockingStore", Sequence[Seen]], int]
"""Changes one chunk; how many experiments it changed."""


def changing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every command has which changes experiments."""
    for decorate in (
        click.option("--yes", is_flag=True, help="Do not ask first."),
        click.option("--dry-run", is_flag=True, help="Only say what would be done."),
        selector,
    ):
        function = decorate(function)
    return function


@command("reset")
@changing
@click.option("--running", is_flag=True, help="Also those that run now; what they compute is thrown away.")
@click.option("--keep-snapshots", is_flag=True, help="Keep what they saved, to go on from there.")
def reset_command(
    workplace: Workplace, *, chosen: Chosen, running: bool, keep_snapshots: bool, dry_run: bool, yes: bool
) -> None:
    """Put experiments back to 'created'; their results are cleared.

    EXPERIMENTS are 7, 3-9, 1,5 or all. They keep their IDs; log rows, emissions, errors and snapshots are cleared, too.
    Their attempts stay as history, and every budget of tries begins anew.
    """
    table = workplace.table
    selection = chosen.required(table)

    def apply(store: BlockingStore, seen: Sequence[Seen]) -> int:
        return store.run(edits.reset(table, seen, keep_snapshots=keep_snapshots))

    with workplace.experiments() as store:
        preview = _preview_reset(_see(store, table, selection), also_running=running)
        _carry_out(workplace, store, preview, apply, done="reset", dry_run=dry_run, yes=yes)


@command("cancel")
@changing
def cancel_command(workplace: Workplace, *, chosen: Chosen, dry_run: bool, yes: bool) -> None:
    """Cancel experiments; running ones are stopped.

    EXPERIMENTS are 7, 3-9, 1,5 or all. What is done stays done; reset brings a cancelled experiment back.
    """
    table = workplace.table
    selection = chosen.required(table)
    stopping = 0

    def apply(store: BlockingStore, seen: Sequence[Seen]) -> int:
        nonlocal stopping
        cancelled, asked = store.run(edits.cancel(table, seen))
        stopping += asked
        return cancelled + asked

    with workplace.experiments() as store:
        preview = _preview_cancel(_see(store, table, selection))
        if _carry_out(workplace, store, preview, apply, done="cancelled", dry_run=dry_run, yes=yes) and stopping:
            click.echo(f"{count_of(stopping, 'running one')} will be stopped by the daemon at its next heartbeat")


@command("delete")
@changing
def delete_command(workplace: Workplace, *, chosen: Chosen, dry_run: bool, yes: bool) -> None:
    """Delete experiments with their results, log rows, emissions, snapshots and attempts.

    EXPERIMENTS are 7, 3-9, 1,5 or all. Those that run now are left alone: cancel them first.
    """
    table = workplace.table
    selection = chosen.required(table)

    def apply(store: BlockingStore, seen: Sequence[Seen]) -> int:
        return store.run(edits.delete(table, seen))

    with workplace.experiments() as store:
        preview = _preview_delete(_see(store, table, selection))
        _carry_out(workplace, store, preview, apply, done="deleted", dry_run=dry_run, yes=yes)


@command("set")
@changing
def set_command(workplace: Workplace, *, chosen: Chosen, dry_run: bool, yes: bool) -> None:
    """Change the queue or the priority of experiments.

    queue=NAME says which nodes may take them, priority=N how early: higher first, 0 to begin with. For example:
    pyexpd set queue=gpu priority=5 --status created. EXPERIMENTS are 7, 3-9, 1,5 or all.
    """
    table = workplace.table
    changes, ids = _read_assignments(chosen.ids)
    selection = Chosen(ids, chosen.statuses, chosen.where).required(table)

    def apply(store: BlockingStore, seen: Sequence[Seen]) -> int:
        return store.run(edits.set_scheduling(table, seen, queue=changes.queue, order=changes.order))

    with workplace.experiments() as store:
        found = _see(store, table, selection)
        preview = Preview(chosen=found, does=f"sets {changes} for {_by_status(found)}")
        _carry_out(workplace, store, preview, apply, done="changed", dry_run=dry_run, yes=yes)


def _preview_reset(found: Sequence[Seen], *, also_running: bool) -> Preview:
    untouched = {Status.CREATED} if also_running else {Status.CREATED, Status.RUNNING}
    chosen = [row for row in found if row.status not in untouched]
    counts = Counter(row.status for row in found)
    lost = _count(counts, "clears the results of", Status.DONE, Status.PAUSED)
    lost += _count(counts, "throws away what is being computed by", Status.RUNNING) if also_running else []
    leaves = _count(counts, "leaves alone", Status.CREATED)
    if not also_running and counts[Status.RUNNING]:
        leaves += [f"{text} (--running resets them, too)" for text in _count(counts, "leaves alone", Status.RUNNING)]
    return Preview(chosen=chosen, does=f"resets {_by_status(chosen)}", loses=lost, leaves=leaves)


def _preview_cancel(found: Sequence[Seen]) -> Preview:
    over = (Status.DONE, Status.CANCELLED)
    known = {*Status}
    chosen = [row for row in found if row.status in known and row.status not in over]
    counts = Counter(row.status for row in found)
    leaves = _count(counts, "leaves alone", *over, *sorted(set(counts) - known))
    return Preview(
        chosen=chosen,
        does=f"cancels {_by_status(chosen)}",
        loses=_count(counts, "stops", Status.RUNNING),
        leaves=leaves,
    )


def _preview_delete(found: Sequence[Seen]) -> Preview:
    chosen = [row for row in found if row.status != Status.RUNNING]
    counts = Counter(row.status for row in found)
    leaves = [f"{text} (cancel them first)" for text in _count(counts, "leaves alone", Status.RUNNING)]
    return Preview(
        chosen=chosen,
        does=f"deletes {_by_status(chosen)}, with their log rows and attempts",
        loses=_count(counts, "deletes the results of", Status.DONE, Status.PAUSED),
        leaves=leaves,
    )


def _count(counts: Counter[str], what: str, *statuses: str) -> list[str]:
    return [
        f"{what} {counts[status]} {status} experiment{'' if counts[status] == 1 else 's'}"
        for status in statuses
        if counts[status]
    ]


def _by_status(rows: Sequence[Seen]) -> str:
    """`3 experiments: 2 done, 1 error`"""
    counts = Counter(row.status or "without status" for row in rows)
    order = {status.value: place for place, status in enumerate(Status)}
    parts = [f"{counts[status]} {status}" for status in sorted(counts, key=lambda status: order.get(status, 99))]
    return count_of(len(rows), "experiment") + (f": {', '.join(parts)}" if parts else "")


def _see(store: BlockingStore, table: Table, selection: Selection) -> list[Seen]:
    found: list[Seen] = []
    while rows := store.read(edits.seen(table, selection, after=found[-1].id if found else 0)):
        found += rows
    return found


def _carry_out(
    workplace: Workplace,
    store: BlockingStore,
    preview: Preview,
    apply: Apply,
    *,
    done: str,
    dry_run: bool,
    yes: bool,
) -> bool:
    """Show, ask, and change in chunks what was shown; whether anything was changed.

    Raises:
        UsageError: nobody can be asked, and --yes was not given.
        Abort: the answer was no.
    """
    in_short = ", ".join([preview.does, *preview.loses])
    confirm(workplace, in_short, preview.lines, yes=yes or dry_run or not preview.chosen)
    if dry_run:
        click.echo("\n".join([*preview.lines, "dry run: nothing was changed"]))
        return False
    changed = 0
    with progress_bar(done, total=len(preview.chosen)) as advanced:
        for start in range(0, len(preview.chosen), edits.CHUNK):
            chunk = preview.chosen[start : start + edits.CHUNK]
            changed += apply(store, chunk)
            advanced(len(chunk))
    if changed:
        doorbell.ring(store, workplace.table)
    for line in (f"{count_of(changed, 'experiment')} {done}", *preview.leaves):
        click.echo(line)
    missed = len(preview.chosen) - changed
    if missed:
        click.echo(f"{count_of(missed, 'experiment')} left alone: changed by somebody else in the meantime")
    return changed > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changes:
    queue: str | None = None
    order: int | None = None

    def __str__(self) -> str:
        parts = [] if self.queue is None else [f"queue={self.queue}"]
        parts += [] if self.order is None else [f"priority={-self.order}"]
        return " and ".join(parts)


def _read_assignments(words: Sequence[str]) -> tuple[_Changes, tuple[str, ...]]:
    """The changes that these words ask for, and the words that name experiments."""
    queue: str | None = None
    order: int | None = None
    ids: list[str] = []
    for word in words:
        found = _ASSIGNMENT.fullmatch(word)
        if not found:
            ids.append(word)
        elif found[1].lower() == "queue":
            queue = _read_queue(found[2])
        elif found[1].lower() == "priority":
            order = -_read_priority(found[2])
        else:
            raise exceptions.UsageError(
                f"{found[1]!r} cannot be set", hint="what can be set is queue=NAME and priority=N"
            )
    if queue is None and order is None:
        raise exceptions.UsageError("nothing to set", hint="pyexpd set queue=NAME priority=N EXPERIMENTS")
    return _Changes(queue=queue, order=order), tuple(ids)


def _read_queue(text: str) -> str:
    if not _QUEUE.fullmatch(text):
        raise exceptions.UsageError(
            f"{text!r} is no name of a queue", hint="at most 64 letters, digits and signs, without spaces"
        )
    return text


def _read_priority(text: str) -> int:
    try:
        priority = int(text)
    except ValueError:
        priority = _MOST_URGENT + 1
    if abs(priority) > _MOST_URGENT:
        raise exceptions.UsageError(f"{text!r} is no priority", hint="a whole number; higher ones run first")
    return priority
