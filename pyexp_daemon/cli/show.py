"""`pyexpd show`: one experiment, its attempts, and what happens to it next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pyexp_daemon.cli.context import Workplace, at_least, command, count_of, json_option, print_json
from pyexp_daemon.cli.rows import read_one
from pyexp_daemon.cli.sizes import show_size
from pyexp_daemon.cli.times import iso_time, show_duration, show_time
from pyexp_daemon.cli.why import Facts, explain
from pyexp_daemon.export.values import as_json, as_text
from pyexp_daemon.store import daemons, reads, snapshots
from pyexp_daemon.store.reads import Place

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

_INDENT = "    "


@command("show")
@click.argument("experiment", type=at_least(0))
@json_option
def show_command(workplace: Workplace, *, experiment: int, as_json: bool) -> None:
    """Show one experiment, its attempts, and what happens to it next."""
    with workplace.experiments(adopted=False) as store:
        adopted = workplace.is_adopted()
        row = read_one(store, workplace.table, experiment)
        facts = _facts(workplace, store, row, adopted=adopted)
        saved = store.read(snapshots.heads(workplace.table, experiment)) if adopted else []
    workplace.announce()
    if as_json:
        print_json(_document(row, facts, saved))
    else:
        _print(workplace, row, facts, saved)


def _facts(workplace: Workplace, store: BlockingStore, row: Mapping[str, Any], *, adopted: bool) -> Facts:
    table = workplace.table
    place = store.read(reads.place(table, row["ID"])) if adopted else None
    states = ("live", "draining", "stopped", "dead") if place and place.daemon else ("live", "draining")
    known = store.read(daemons.look(table, states=states)) if adopted else []
    attempts: list[dict[str, Any]] = store.read(reads.attempts(table, row["ID"])) if adopted else []
    return Facts(
        id=row["ID"],
        status=row["status"] or "",
        now=store.read(reads.clock(table)),
        place=place,
        attempts=attempts,
        daemons=[
            daemon for daemon in known if daemon.state in ("live", "draining") or (place and daemon.id == place.daemon)
        ],
        tries=workplace.config.limits.tries.model_dump(),
    )


def _document(row: Mapping[str, Any], facts: Facts, saved: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    place = facts.place
    return {
        "experiment": {name: as_json(value) for name, value in row.items()},
        "scheduling": None if place is None else _scheduling(place),
        "attempts": [
            {name: as_json(value) for name, value in attempt.items()}
            | {name: iso_time(attempt[name]) for name in ("started", "ended")}
            for attempt in facts.attempts
        ],
        "snapshots": [
            {name: head[name] for name in ("sequence", "attempt", "label", "size_bytes")}
            | {"created": iso_time(head["created"])}
            for head in saved
        ],
        "next": explain(facts),
    }


def _scheduling(place: Place) -> dict[str, Any]:
    return {
        "queue": place.queue,
        "priority": -place.order,
        "attempt": place.attempt,
        "tries": json.loads(place.tries) if place.tries else {},
        "not_before": iso_time(place.not_before),
        "ahead": place.ahead,
        "cancel": place.cancel,
    }


def _print(workplace: Workplace, row: Mapping[str, Any], facts: Facts, saved: Sequence[Mapping[str, Any]]) -> None:
    table = workplace.table
    width = max(map(len, table.columns))
    click.echo(f"experiment {facts.id}: {facts.status or 'no status'}")
    for column in table.columns:
        if column not in ("ID", "status") and row[column] is not None:
            click.echo(f"  {column:<{width}}  {_indented(as_text(row[column]), width + 4)}")
    place = facts.place
    if place is not None and (place.queue != "default" or place.order):
        click.echo(f"  queue {place.queue}, priority {-place.order}")
    for attempt in facts.attempts:
        click.echo(f"attempt {attempt['attempt']}: {_describe(attempt)}")
        if attempt["error"] and as_text(attempt["error"]) != as_text(row["error"]):
            click.echo(_INDENT + _indented(as_text(attempt["error"]).strip(), len(_INDENT)))
    if saved:
        newest = saved[0]
        size_bytes = sum(head["size_bytes"] for head in saved)
        click.echo(
            f"{count_of(len(saved), 'snapshot')} ({show_size(size_bytes)}), the newest of attempt {newest['attempt']}"
            f" at {show_time(newest['created'])}{_labelled(newest['label'])}"
        )
    click.echo(explain(facts))


def _labelled(label: str | None) -> str:
    return "" if label is None else f", labelled {label}"


def _describe(attempt: Mapping[str, Any]) -> str:
    parts = [str(attempt["outcome"])]
    if attempt["started"] is not None and attempt["ended"] is not None:
        parts.append(f"after {show_duration(attempt['ended'] - attempt['started'])}")
    if attempt["host"]:
        parts.append(f"on {attempt['host']}")
    if attempt["ended"] is not None:
        parts.append(f"at {show_time(attempt['ended'])}")
    details = {
        "exit code": attempt["exit_code"],
        "signal": attempt["signal"],
        "CPU": None if attempt["cpu_seconds"] is None else show_duration(attempt["cpu_seconds"]),
        "memory": None if attempt["peak_rss_bytes"] is None else f"{attempt['peak_rss_bytes'] / 2**20:.0f} MiB",
        "code": attempt["code_version"],
    }
    known = ", ".join(f"{name} {value}" for name, value in details.items() if value is not None)
    return " ".join(parts) + (f" ({known})" if known else "")


def _indented(text: str, by: int) -> str:
    return text.rstrip("\n").replace("\n", "\n" + " " * by)
