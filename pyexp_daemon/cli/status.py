"""`pyexpd status`: how far everything is, and who works on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace, command, json_option, print_json
from pyexp_daemon.cli.fleet import Fleet
from pyexp_daemon.cli.fleet import look as look_at_daemons
from pyexp_daemon.cli.times import show_duration
from pyexp_daemon.model import Status
from pyexp_daemon.store import reads

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

RATE_S = 60.0
"""The rate is counted over the last minute."""

WATCH_S = 2.0
_MOST_STRANGERS_SHOWN = 10
_UNFINISHED = (Status.CREATED, Status.WAITING, Status.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What `status` shows."""

    counts: dict[str, int]
    adopted: bool
    done_last_minute: int = 0
    code_versions: dict[str, int] = field(default_factory=dict)
    fleet: Fleet = field(default_factory=lambda: Fleet(now=0.0))
    strangers: list[int] = field(default_factory=list)
    """Running experiments without a token."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def eta_s(self) -> float | None:
        """Until nothing is left at the present rate; None when nothing moves or nothing is left."""
        left = sum(self.counts.get(status, 0) for status in _UNFINISHED)
        return left / self.done_last_minute * RATE_S if left and self.done_last_minute else None


@command("status")
@click.option("--watch", is_flag=True, help="Show it anew every two seconds, until Ctrl-C.")
@json_option
def status_command(workplace: Workplace, *, watch: bool, as_json: bool) -> None:
    """Show counts by status, speed, code versions and daemons."""
    if watch and as_json:
        raise exceptions.UsageError("--watch and --json exclude each other", hint="call status --json again and again")
    if watch and not sys.stdout.isatty():
        raise exceptions.UsageError("--watch needs a terminal", hint="pyexpd status --json is for scripts")
    with workplace.experiments(adopted=False) as store:
        adopted = workplace.is_adopted()
        overview = look(workplace, store, adopted=adopted)
        workplace.announce()
        if as_json:
            print_json(_document(workplace, overview))
        elif watch:
            _watch(workplace, store, overview)
        else:
            click.echo("\n".join(describe(overview)))


def look(workplace: Workplace, store: BlockingStore, *, adopted: bool) -> Overview:
    """Read everything that `status` shows."""
    table = workplace.table
    counts = store.read(reads.count_by_status(table))
    if not adopted:
        return Overview(counts=counts, adopted=False)
    return Overview(
        counts=counts,
        adopted=True,
        done_last_minute=store.read(reads.finished_since(table, RATE_S)),
        code_versions=store.read(reads.code_versions(table)),
        fleet=look_at_daemons(store, workplace),
        strangers=store.read(reads.strangers(table)),
    )


def describe(overview: Overview) -> list[str]:
    """The overview as lines."""
    return [
        *_describe_counts(overview),
        *_describe_speed(overview),
        *_describe_code(overview.code_versions),
        *_describe_daemons(overview),
        *_describe_strangers(overview.strangers),
        *([] if overview.adopted else ["the table was made by PyExperimenter; pyexpd fill adds what a daemon needs"]),
    ]


def _describe_counts(overview: Overview) -> list[str]:
    known = [status.value for status in Status]
    order = [*known, *sorted(set(overview.counts) - set(known))]
    lines = [
        f"{overview.counts[status]:>9}  {status if status in known else _name_unknown(status)}"
        for status in order
        if overview.counts.get(status)
    ]
    return [*lines, f"{overview.total:>9}  in all"]


def _name_unknown(status: str) -> str:
    known = status.strip().lower()
    if known in list(Status):
        return f"{status} (put there by hand; the status is written {known})"
    return f"{status or 'without status'} (put there by hand; no daemon takes it)"


def _describe_speed(overview: Overview) -> list[str]:
    if not overview.done_last_minute:
        return []
    eta = f", all finished in about {show_duration(overview.eta_s)}" if overview.eta_s else ""
    return [f"{overview.done_last_minute} done in the last minute{eta}"]


def _describe_code(versions: Mapping[str, int]) -> list[str]:
    return [f"code {version}: {count} done" for version, count in sorted(versions.items())]


def _describe_daemons(overview: Overview) -> list[str]:
    if not overview.fleet.daemons:
        return ["no daemon is live"] if overview.adopted else []
    return overview.fleet.describe()


def _describe_strangers(strangers: Sequence[int]) -> list[str]:
    if not strangers:
        return []
    shown = ", ".join(map(str, strangers[:_MOST_STRANGERS_SHOWN]))
    more = "…" if len(strangers) > _MOST_STRANGERS_SHOWN else ""
    return [f"running without a token, never rescued (PyExperimenter's, or set by hand): {shown}{more}"]


def _document(workplace: Workplace, overview: Overview) -> dict[str, Any]:
    return {
        "configuration": str(workplace.config.path),
        "database": workplace.database,
        "table": workplace.table.name,
        "adopted": overview.adopted,
        "experiments": overview.counts,
        "total": overview.total,
        "done_last_minute": overview.done_last_minute,
        "eta_seconds": None if overview.eta_s is None else round(overview.eta_s, 1),
        "code_versions": overview.code_versions,
        "daemons": overview.fleet.documents(),
        "running_without_token": overview.strangers,
    }


def _watch(workplace: Workplace, store: BlockingStore, overview: Overview) -> None:
    """Show it again and again; an outage of the database is shown, too, and waited for."""
    from rich.live import Live
    from rich.text import Text

    lines = describe(overview)
    try:
        with Live(Text("\n".join(lines)), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_S)
                try:
                    lines = describe(look(workplace, store, adopted=overview.adopted))
                    trouble = []
                except exceptions.DatabaseError as error:
                    trouble = [f"as of before: {error}"]
                live.update(Text("\n".join([*lines, *trouble])), refresh=True)
    except KeyboardInterrupt:
        return
