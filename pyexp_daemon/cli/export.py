"""`pyexpd export`: experiments and their results as a file, or aggregated as a table for a paper."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace, at_least, command, count_of, warn
from pyexp_daemon.cli.rows import read_rows
from pyexp_daemon.cli.selectors import Chosen, selector
from pyexp_daemon.export.files import WRITERS, format_of, replacing, write
from pyexp_daemon.export.pivot import AGGREGATES, pivot
from pyexp_daemon.export.pivot_table import Pivot

PIVOT_WRITERS = {"csv": Pivot.to_csv, "json": Pivot.to_json, "latex": Pivot.to_latex, "md": Pivot.to_markdown}


class _Export(click.Command):
    """A command that takes `--pivot a x b` as `--pivot "a x b"`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--pivot" in args:
            start = args.index("--pivot") + 1
            words = list(itertools.takewhile(lambda word: not word.startswith("-"), args[start : start + 3]))
            if words[1:2] == ["x"]:
                args[start : start + len(words)] = [" ".join(words)]
        return super().parse_args(ctx, args)


@command("export", cls=_Export)
@selector
@click.option("--format", "kind", type=click.Choice(sorted(WRITERS)), help="Default: by the name of the file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write there instead of stdout.")
@click.option("--pivot", "layout", metavar="'ROWS x COLUMNS'", help="Aggregate over all fields but these.")
@click.option("--value", multiple=True, metavar="FIELD", help="What is aggregated; repeatable.")
@click.option("--agg", metavar="AGGREGATE", help=f"{', '.join(AGGREGATES)}. Default: the first.")
@click.option("--best", type=click.Choice(["max", "min"]), help="Which cells of each row are shown in bold.")
@click.option("--best-of", type=click.Choice(["rows", "columns"]), help="Of what they are the best.")
@click.option("--digits", type=at_least(0), metavar="N", help="How many digits after the point. Default: 3.")
def export_command(
    workplace: Workplace, *, chosen: Chosen, kind: str | None, output: Path | None, layout: str | None, **options: Any
) -> None:
    """Write experiments and their results, or a table of aggregated results.

    EXPERIMENTS are 7, 3-9, 1,5 or all (the default). The columns are the user's, ours are left out. The file appears
    when it is complete, in the place of an older one.

    With --pivot, for a paper: --pivot 'dataset x kernel' --value test_f1 --best max --format latex.
    """
    output = None if output == Path("-") else output
    if output is not None and output.is_dir():
        raise exceptions.UsageError(f"{output} is a folder", hint=f"-o {output / workplace.table.name}.csv")
    kind = kind or (format_of(output) if output else None)
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if layout is not None:
        _write_pivot(workplace, chosen, layout, given, kind=kind or "md", output=output)
    elif given:
        name = next(iter(given)).replace("_", "-")
        raise exceptions.UsageError(f"--{name} needs --pivot", hint='--pivot "dataset x kernel"')
    else:
        _write_rows(workplace, chosen, kind=kind or "csv", output=output)


def _write_rows(workplace: Workplace, chosen: Chosen, *, kind: str, output: Path | None) -> None:
    table = workplace.table
    if kind == "parquet" and output is None:
        raise exceptions.UsageError("parquet needs a file", hint=f"-o {table.name}.parquet")
    selection = chosen.of(table)
    with workplace.experiments(adopted=False) as store:
        rows = _announced(workplace, read_rows(store, table, selection))
        if output is None:
            WRITERS[kind](sys.stdout, table.types, rows)
        else:
            count = write(output, table.types, rows, kind=kind)
            warn(f"{count_of(count, 'experiment')} written to {output}")


def _announced(workplace: Workplace, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, and before the first of them the line that everything begins with: a file is open by then."""
    workplace.announce()
    yield from rows


def _write_pivot(
    workplace: Workplace,
    chosen: Chosen,
    layout: str,
    options: Mapping[str, Any],
    *,
    kind: str,
    output: Path | None,
) -> None:
    table = workplace.table
    if kind not in PIVOT_WRITERS:
        raise exceptions.UsageError(f"--pivot is not written as {kind}", hint=f"one of {', '.join(PIVOT_WRITERS)}")
    if "value" not in options:
        fields = ", ".join(table.resultfields)
        raise exceptions.UsageError("--pivot needs --value", hint=f"the result fields are {fields}")
    if "best_of" in options and "best" not in options:
        raise exceptions.UsageError("--best-of needs --best", hint="--best max, or --best min")
    selection = chosen.of(table)
    with workplace.experiments(adopted=False) as store:
        rows = read_rows(store, table, selection)
        made = pivot(rows, layout, fields=table.columns, only_done=not chosen.is_by_status, **options)
    text = PIVOT_WRITERS[kind](made)
    if output is None:
        workplace.announce()
        click.echo(text, nl=False)
    else:
        with replacing(output) as file:
            workplace.announce()
            file.write(text)
    warn(made.summary)
