"""`pyexpd fill`: the experiments of the configuration that the table lacks."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace, command, count_of, json_option, print_json, warn
from pyexp_daemon.cli.progress import progress_bar
from pyexp_daemon.daemon import doorbell
from pyexp_daemon.space.grid import Grid, Grids
from pyexp_daemon.store import filling
from pyexp_daemon.store.filling import Filled

MOST_DUPLICATES_SHOWN = 10

DDL_S = 3600.0
"""How long a statement may take that makes an index of a large table."""


@command("fill")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
def fill_command(workplace: Workplace, *, dry_run: bool, as_json: bool) -> None:
    """Insert the experiments of the configuration that the table lacks.

    Makes the database and its tables when they are missing, and adds what a daemon needs to a table of PyExperimenter.
    Result fields and logtables that the table lacks are added, and shown before.
    Any number of fills may run at once: an experiment is never inserted twice.
    """
    grid = workplace.grid()
    filled = preview(workplace, grid) if dry_run else fill_grid(workplace, grid)
    for note in grid.notes:
        warn(note)
    _report_duplicates(filled.duplicates)
    if filled.others:
        are = "is" if filled.others == 1 else "are"
        warn(f"{count_of(filled.others, 'experiment')} of the table {are} not in the file")
    if as_json:
        print_json(_document(filled, dry_run=dry_run))
        return
    if dry_run:
        for statement in filled.statements:
            click.echo(f"{statement};")
    click.echo(f"{'would add' if dry_run else 'added'} {filled.added}, {filled.there} already there")


def fill_grid(workplace: Workplace, grid: Grid | Grids) -> Filled:
    """Fill the table of a configuration, with a progress bar; daemons of this host hear of it."""
    table, show = workplace.table, workplace.announce_changes
    with workplace.store(create=True, deadline_s=DDL_S) as store:
        try:
            with progress_bar("filling", total=len(grid)) as advanced:
                ringing = doorbell.ringing(store, table, advanced)
                return filling.fill_table(store, table, grid, show=show, ready=workplace.announce, advanced=ringing)
        except exceptions.RowRefused as error:
            raise exceptions.InvalidValuesInConfiguration(f"table {table.name}: {error}") from error


def preview(workplace: Workplace, grid: Grid | Grids) -> Filled:
    """What `fill_grid` would do; a database or table that is missing is named."""
    try:
        with workplace.store() as store:
            filled = filling.preview(store, workplace.table, grid)
    except exceptions.MissingTable as error:
        filled = Filled(added=len(grid), there=0, statements=filling.statements_for_new(workplace.table))
        workplace.announce()
        warn(str(error))
        return filled
    workplace.announce()
    return filled


def _report_duplicates(duplicates: Sequence[tuple[int, int]]) -> None:
    for unmarked, owner in duplicates[:MOST_DUPLICATES_SHOWN]:
        warn(f"experiments {unmarked} and {owner} have equal parameters; {unmarked} keeps no fingerprint")
    more = len(duplicates) - MOST_DUPLICATES_SHOWN
    if more > 0:
        warn(f"… and {more} more with equal parameters")


def _document(filled: Filled, *, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "added": filled.added,
        "already_there": filled.there,
        "not_in_file": filled.others,
        "duplicates": [{"experiment": unmarked, "equal_to": owner} for unmarked, owner in filled.duplicates],
        "statements": list(filled.statements),
    }
