"""`pyexpd list`: experiments, for people and for pipes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from pyexp_daemon.cli.context import Workplace, at_least, command, json_option, warn
from pyexp_daemon.cli.rows import SCHEDULING, choose_columns, read_rows
from pyexp_daemon.cli.selectors import Chosen, selector
from pyexp_daemon.export.files import write_json
from pyexp_daemon.export.values import as_text

MOST_ON_A_TERMINAL = 200
LONGEST_CELL = 60


@command("list")
@selector
@click.option("--limit", type=at_least(1), metavar="N", help="At most so many; a terminal shows 200 if not told.")
@click.option("--columns", metavar="A,B,…", help="Which columns; also queue, priority, attempt, tries.")
@json_option
def list_command(
    workplace: Workplace, *, chosen: Chosen, limit: int | None, columns: str | None, as_json: bool
) -> None:
    """List experiments.

    EXPERIMENTS are 7, 3-9, 1,5 or all (the default). A table on a terminal, else lines with tabs between the columns;
    with --json an array of rows with all of the user's columns.
    """
    table = workplace.table
    selection = chosen.of(table)
    shown = choose_columns(
        table, columns, table.columns if as_json else ("ID", "status", *table.keyfields, *table.resultfields)
    )
    ours = any(name in SCHEDULING and name not in table.columns for name in shown)
    with workplace.experiments(adopted=ours) as store:
        workplace.announce()
        on_terminal = sys.stdout.isatty() and not as_json
        most = limit if limit is not None or not on_terminal else MOST_ON_A_TERMINAL + 1
        rows = read_rows(store, table, selection, limit=most, ours=ours)
        if as_json:
            write_json(sys.stdout, shown, rows)
        elif on_terminal:
            _show_table(shown, rows, most=limit or MOST_ON_A_TERMINAL)
        else:
            _print_lines(shown, rows)


def _print_lines(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    click.echo("\t".join(columns))
    for row in rows:
        click.echo("\t".join(_one_line(row[column]) for column in columns))


def _show_table(columns: Sequence[str], rows: Iterable[dict[str, Any]], *, most: int) -> None:
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(*columns, box=None, header_style="bold")
    remaining = iter(rows)
    for row in itertools.islice(remaining, most):
        grid.add_row(*(Text(_short(_one_line(row[column]))) for column in columns))
    Console().print(grid)
    if next(remaining, None) is not None:
        warn(f"only the first {most} are shown; --limit shows more")


def _one_line(value: Any) -> str:
    return as_text(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"
