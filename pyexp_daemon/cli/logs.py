"""`pyexpd logs`: what the daemons did, or what an attempt printed."""

from __future__ import annotations

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli import attempt_logs, daemon_logs
from pyexp_daemon.cli.context import Workplace, at_least, command

_LINES = 50


@command("logs")
@click.argument("experiment", type=at_least(0), required=False)
@click.option("--attempt", type=at_least(1), metavar="N", help="Which attempt of EXPERIMENT; default: the last one.")
@click.option(
    "-f", "--follow", is_flag=True, help="Show what is added until Ctrl-C, or until EXPERIMENT comes to its end."
)
@click.option("-n", "--lines", type=at_least(0), metavar="N", help=f"How many lines of daemons; default: {_LINES}.")
@click.option("--daemon", metavar="NAME", help="Only the log of this daemon.")
@click.option("--level", type=click.Choice(daemon_logs.LEVELS), help="Only lines of this level and above.")
@click.option("--json", "as_json", is_flag=True, help="Lines of daemons as they were written, a JSON object each.")
def logs_command(
    workplace: Workplace,
    *,
    experiment: int | None,
    attempt: int | None,
    follow: bool,
    lines: int | None,
    daemon: str | None,
    level: str | None,
    as_json: bool,
) -> None:
    """Show what the daemons did, or what an attempt printed.

    Without EXPERIMENT: the last lines of the logs of this configuration's daemons, as far as they lie on this host.

    With EXPERIMENT: the whole log of an attempt if it lies on this host (or on a file system shared with it), else
    its last lines from the database. -f also waits for the first attempt, and goes on with the next one after a retry.
    """
    if experiment is None:
        if attempt is not None:
            raise exceptions.UsageError(
                "--attempt needs the number of an experiment", hint=f"pyexpd logs 7 --attempt {attempt}"
            )
        wish = daemon_logs.Wish(lines=_LINES if lines is None else lines, daemon=daemon, level=level, as_json=as_json)
        daemon_logs.show(workplace, wish, follow=follow)
        return
    if lines is not None or daemon or level or as_json:
        raise exceptions.UsageError(
            "--lines, --daemon, --level and --json are for the logs of daemons", hint=f"pyexpd logs {experiment}"
        )
    if follow:
        attempt_logs.follow(workplace, experiment, attempt)
    else:
        attempt_logs.show(workplace, experiment, attempt)
