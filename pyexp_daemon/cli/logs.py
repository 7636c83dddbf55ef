"""`pyexpd logs`: what an attempt printed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace, at_least, command, warn
from pyexp_daemon.cli.rows import read_one
from pyexp_daemon.export.values import as_text
from pyexp_daemon.store import reads

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.tables import Table

_FOLLOW_S = 0.3
_BLOCK_BYTES = 256 * 1024


@command("logs")
@click.argument("experiment", type=at_least(0))
@click.option("--attempt", type=at_least(1), metavar="N", help="Which attempt; default: the last one.")
@click.option("-f", "--follow", is_flag=True, help="Show what is added until Ctrl-C, or until the attempt has ended.")
def logs_command(workplace: Workplace, *, experiment: int, attempt: int | None, follow: bool) -> None:
    """Show what an attempt printed.

    The whole log if it lies on this host (or on a file system shared with it), else its last lines from the database.
    """
    table = workplace.table
    with workplace.experiments() as store:
        status = read_one(store, table, experiment)["status"]
        now = _current_attempt(store, table, experiment)
        attempts = store.read(reads.attempts(table, experiment))
    latest = attempts[-1]["attempt"] if attempts and status != "running" else now
    wanted = attempt or latest
    file = workplace.config.logs / f"{experiment}-{wanted}.log"
    if file.exists():
        workplace.announce()
        warn(str(file))
        place = _print_file(file)
        if follow:
            _follow(workplace, experiment, wanted, file, place)
        return
    stored = {row["attempt"]: row for row in attempts}
    if wanted not in stored:
        raise _nothing_there(experiment, wanted, file, runs=status == "running" and wanted == now, ran=bool(attempts))
    workplace.announce()
    tail = as_text(stored[wanted]["log_tail"])
    if tail:
        warn(f"the end of the log; all of it is on {stored[wanted]['host']}")
        click.echo(tail, nl=not tail.endswith("\n"))
    else:
        warn(f"attempt {wanted} of experiment {experiment} printed nothing")


def _current_attempt(store: BlockingStore, table: Table, experiment: int) -> int:
    place = store.read(reads.place(table, experiment))
    return place.attempt if place else 0


def _nothing_there(
    experiment: int, attempt: int, file: Path, *, runs: bool, ran: bool
) -> exceptions.PyExperimenterError:
    if runs:
        return exceptions.UsageError(
            f"attempt {attempt} of experiment {experiment} has printed nothing yet, or runs on another host",
            hint=f"its log would be {file}",
        )
    if not ran:
        return exceptions.UsageError(f"experiment {experiment} has not run yet", hint=f"pyexpd show {experiment}")
    return exceptions.UsageError(
        f"experiment {experiment} has no attempt {attempt}", hint=f"pyexpd show {experiment} lists its attempts"
    )


def _print_file(file: Path, start: int = 0) -> int:
    """Print a file from a place on; where it ended."""
    output = sys.stdout.buffer
    with file.open("rb") as opened:
        opened.seek(start)
        while block := opened.read(_BLOCK_BYTES):
            output.write(block)
        output.flush()
        return opened.tell()


def _follow(workplace: Workplace, experiment: int, attempt: int, file: Path, place: int) -> None:
    with workplace.store() as store:
        is_over = False
        while not is_over:
            time.sleep(_FOLLOW_S)
            row = read_one(store, workplace.table, experiment)
            is_over = row["status"] != "running" or _current_attempt(store, workplace.table, experiment) != attempt
            place = _print_file(file, place)
