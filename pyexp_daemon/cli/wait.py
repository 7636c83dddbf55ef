"""`pyexpd wait`: until all experiments are finished, wherever they run."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace, command, json_option, print_json
from pyexp_daemon.model import Status
from pyexp_daemon.store import reads

_SHORTEST_S = 0.2
_LONGEST_S = 5.0
_UNFINISHED = (Status.CREATED, Status.WAITING, Status.RUNNING)


@command("wait")
@json_option
def wait_command(workplace: Workplace, *, as_json: bool) -> int:
    """Wait until all experiments are finished, wherever they run.

    That is, none is created, waiting or running. Exits with 1 if any ended in an error. Waits through outages of
    the database. Experiments that are paused or cancelled are not waited for.
    """
    with workplace.experiments(adopted=False) as store:
        workplace.announce()
        for turn in itertools.count():
            try:
                counts = store.read(reads.count_by_status(workplace.table))
            except exceptions.ConnectionLost as error:
                counts = {Status.RUNNING: 1}
                _show(str(error))
            else:
                _show(_describe(counts))
            if not any(counts.get(status) for status in _UNFINISHED):
                break
            time.sleep(min(_LONGEST_S, _SHORTEST_S * 1.3 ** min(turn, 50)))
    _show("")
    failed = counts.get(Status.ERROR, 0)
    if as_json:
        print_json({"experiments": dict(counts), "failed": failed})
    else:
        click.echo(f"all finished: {_describe(counts)}")
    return 1 if failed else 0


def _describe(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status or 'without status'}" for status, count in sorted(counts.items()))


def _show(text: str) -> None:
    """The one line that changes while we wait, on a terminal only."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)
