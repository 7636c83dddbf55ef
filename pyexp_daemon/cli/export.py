"""`pyexpd export`: experiments and their results as a file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace, command, count_of, warn
from pyexp_daemon.cli.rows import read_rows
from pyexp_daemon.cli.selectors import Chosen, selector
from pyexp_daemon.export.files import WRITERS, replacing


@command("export")
@selector
@click.option(
    "--format", "kind", type=click.Choice(sorted(WRITERS)), help="Default: by the name of the file, else csv."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there instead of stdout.")
def export_command(workplace: Workplace, *, chosen: Chosen, kind: str | None, output: Path | None) -> None:
    """Write experiments and their results as CSV or JSON.

    EXPERIMENTS are 7, 3-9, 1,5 or all (the default). The columns are the user's, ours are left out. The file appears
    when it is complete, in the place of an older one.
    """
    table = workplace.table
    selection = chosen.of(table)
    output = None if output == Path("-") else output
    write = WRITERS[kind or _kind_of(output)]
    if output is not None and output.is_dir():
        raise exceptions.UsageError(f"{output} is a folder", hint=f"-o {output / table.name}.csv")
    with workplace.experiments(adopted=False) as store:
        rows = read_rows(store, table, selection)
        if output is None:
            workplace.announce()
            write(sys.stdout, table.columns, rows)
            return
        with replacing(output) as file:
            workplace.announce()
            count = write(file, table.columns, rows)
    warn(f"{count_of(count, 'experiment')} written to {output}")


def _kind_of(output: Path | None) -> str:
    suffix = output.suffix.removeprefix(".").lower() if output is not None else ""
    return suffix if suffix in WRITERS else "csv"
