"""`pyexpd db export`, `merge`, `restore`: experiments from one database into another, and as configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.confirm import confirm
from pyexp_daemon.cli.context import Workplace, command, count_of, json_option, print_json
from pyexp_daemon.cli.fill import DDL_S, fill_grid, preview
from pyexp_daemon.cli.progress import progress_bar
from pyexp_daemon.cli.selectors import Chosen, selector
from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon import doorbell
from pyexp_daemon.export.values import as_json, as_text
from pyexp_daemon.space.grid import Grid, Grids
from pyexp_daemon.store import filling, open_blocking_store, restoring, transfer
from pyexp_daemon.store.dialect import DIALECTS
from pyexp_daemon.store.selection import ALL, Selection
from pyexp_daemon.store.sqlite import BlockingSqlite
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.transfer import Conflict, Place, Transferred, Verdict

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

MOST_CONFLICTS_SHOWN = 20

prefer_option = click.option(
    "--prefer",
    type=click.Choice(["ours", "theirs"]),
    help="Whose results stay where both are done and differ: this table's, or the other's.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask first.")


@command("export")
@click.argument("out", metavar="OUT")
@selector
@prefer_option
@dry_run_option
@yes_option
@json_option
def export_command(
    workplace: Workplace, *, out: str, chosen: Chosen, prefer: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Copy experiments into another database, with all that belongs to them.

    OUT is an SQLite file, or the configuration (.yml) of another database; both are made when they are missing.
    EXPERIMENTS are 7, 3-9, 1,5 or all. Attempts, log rows, snapshots and emissions come along. Called again, it brings
    what is new.
    """
    ours, theirs = _ours(workplace), _other(out, workplace.table)
    with ours.opened() as source:
        _carry_out(
            workplace,
            source,
            theirs,
            selection=chosen.of(workplace.table),
            prefer={"ours": "source", "theirs": "target", None: None}[prefer],
            asks=lambda planned: bool(planned.verdicts[Verdict.TAKEN]),
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )


@command("merge")
@click.argument("other", metavar="OTHER")
@prefer_option
@dry_run_option
@yes_option
@json_option
def merge_command(
    workplace: Workplace, *, other: str, prefer: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Bring the experiments of another database into this one.

    OTHER is an SQLite file, or the configuration (.yml) of another database. Experiments are the same when their
    parameters are. Results win over what is unfinished; what runs here is left alone. Where both are done with
    different results, --prefer says which stay; without it nothing is done. Called again, it brings what is new, also
    after it was killed.
    """
    ours = _ours(workplace)
    with _other(other, workplace.table).opened() as source:
        changed = _carry_out(
            workplace,
            source,
            ours,
            selection=ALL,
            prefer={"ours": "target", "theirs": "source", None: None}[prefer],
            asks=lambda planned: True,
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
    if changed:
        with ours.opened() as target:
            doorbell.ring(target.store, target.table)


@command("restore")
@click.option("--overwrite", is_flag=True, help="Delete all experiments of a table that differs, and fill it anew.")
@dry_run_option
@yes_option
@json_option
def restore_command(workplace: Workplace, *, overwrite: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Make sure that the table has exactly the experiments of the configuration.

    A table that is missing or empty is filled; one that has these experiments is left as it is, to be gone on with. One
    that has others is an error that says which. --overwrite then deletes them all, with their results, and fills the
    table anew, in one transaction.
    """
    grid = workplace.grid()
    try:
        document, text = _restore(workplace, grid, overwrite=overwrite, dry_run=dry_run, yes=yes)
    except exceptions.MissingTable:
        workplace.announce()
        document, text = _filled(workplace, grid, there=0, dry_run=dry_run)
    print_json({"dry_run": dry_run, **document}) if as_json else click.echo(text)


def _restore(
    workplace: Workplace, grid: Grid | Grids, *, overwrite: bool, dry_run: bool, yes: bool
) -> tuple[dict[str, int], str]:
    """Make a table that is there as it should be; what was done, as numbers and in words."""
    table = workplace.table
    with workplace.experiments(adopted=False) as store:
        workplace.announce()
        differs = restoring.difference(store, table, grid)
        if not differs or not differs.there:
            return _filled(workplace, grid, there=differs.there, dry_run=dry_run)
        if not overwrite:
            raise exceptions.TableHasWrongStructureError(
                f"table {table.name} has other experiments than {workplace.file}: {differs.words}",
                hint="pyexpd fill adds what is missing; --overwrite deletes all and fills anew",
            )
        store.read(restoring.check_idle(table))
        deleted, added = differs.there, len(grid)
        what = f"{count_of(deleted, 'experiment')} with their results"
        if not dry_run:
            confirm(workplace, f"deletes {what} and fills the table anew", yes=yes)
            with _ours(workplace).completed(), filling.alone(store, table):
                deleted, added = store.run(restoring.overwrite(table, grid))
            doorbell.ring(store, table)
    text = f"{'would delete' if dry_run else 'deleted'} {what}, {'would add' if dry_run else 'added'} {added}"
    return {"there": differs.there, "deleted": deleted, "added": added}, text


def _filled(workplace: Workplace, grid: Grid | Grids, *, there: int, dry_run: bool) -> tuple[dict[str, int], str]:
    """Fill a table that lacks all experiments or none; where it lacks none, it is completed."""
    added = (preview if dry_run else fill_grid)(workplace, grid).added
    document = {"there": there, "deleted": 0, "added": added}
    if there:
        return document, f"{count_of(there, 'experiment')}, as configured"
    return document, f"{'would add' if dry_run else 'added'} {added}"


class _How(Enum):
    """What a database is opened for; only CREATE makes it where it is missing, else that is MissingTable."""

    READ = auto()
    WRITE = auto()
    CREATE = auto()


@dataclass(frozen=True)
class _Side:
    """A table in a database; either may not be there."""

    table: Table
    connect: Callable[[_How], BlockingStore]
    show: Callable[[Sequence[str]], None] = lambda statements: None
    """Told of the statements before they change a table that is there."""

    @contextmanager
    def opened(self) -> Iterator[Place]:
        """The database as it is, to be read."""
        with closing(self.connect(_How.READ)) as store:
            yield Place(store=store, table=self.table)

    @contextmanager
    def completed(self) -> Iterator[Place]:
        """Database and tables, made where they are missing, with a fingerprint on every row."""
        with closing(self.connect(_How.CREATE)) as store:
            filling.ensure_tables(store, self.table, show=self.show)
            filling.mark_existing(store, self.table)
        with closing(self.connect(_How.WRITE)) as store:  # which, unlike one that fills, holds little in memory
            yield Place(store=store, table=self.table)


def _ours(workplace: Workplace) -> _Side:
    return _Side(
        workplace.table,
        lambda how: _by_config(workplace.config, how, credentials=workplace.credentials),
        workplace.announce_changes,
    )


def _other(name: str, table: Table) -> _Side:
    """An SQLite file, or the database of a configuration.

    Args:
        table: ours, for what the fields are.
    """
    path = Path(name)
    if path.suffix not in (".yml", ".yaml"):
        there = transfer.portable(replace(table, dialect=DIALECTS["sqlite"]))
        return _Side(there, lambda how: BlockingSqlite(path, create=how is _How.CREATE, read_only=how is _How.READ))
    config = load_config(path)
    there = replace(table, name=config.database.table.name, dialect=DIALECTS[config.database.provider])
    return _Side(transfer.portable(there), lambda how: _by_config(config, how))


def _by_config(config: Config, how: _How, *, credentials: Path | None = None) -> BlockingStore:
    return open_blocking_store(config, credentials=credentials, create=how is _How.CREATE, deadline_s=DDL_S)


def _carry_out(
    workplace: Workplace,
    source: Place,
    side: _Side,
    *,
    selection: Selection,
    prefer: str | None,
    asks: Callable[[Transferred], bool],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> bool:
    """Look first, refuse conflicts, ask, and transfer; whether anything was changed."""
    source = transfer.adapted(source, workplace.table)
    total = source.store.read(transfer.count(source.table, selection))
    workplace.announce()
    planned = _look(source, side, total, selection=selection, prefer=prefer)
    if dry_run:
        _say(planned, dry_run=True, as_json=as_json)
        return False
    if planned.conflicts:
        shown = "; ".join(map(_show, planned.conflicts[:3])) + ("; …" if len(planned.conflicts) > 3 else "")
        raise exceptions.UsageError(
            f"{count_of(len(planned.conflicts), 'experiment')} done in both with different results: {shown}",
            hint="--prefer ours or --prefer theirs; --dry-run lists them, and no experiment was changed",
        )
    changes = planned.verdicts[Verdict.ADDED] + planned.verdicts[Verdict.TAKEN]
    if changes and asks(planned):
        confirm(workplace, _plan(planned), yes=yes)
    with side.completed() as target, progress_bar("copying", total=total) as advanced:
        done = transfer.transfer(source, target, selection=selection, prefer=prefer, advanced=advanced)
    _say(done, dry_run=False, as_json=as_json)
    return changes > 0


def _look(source: Place, side: _Side, total: int, *, selection: Selection, prefer: str | None) -> Transferred:
    """What a transfer into a side as it is would do."""
    with ExitStack() as stack, progress_bar("looking", total=total) as advanced:
        try:
            store = stack.enter_context(side.opened()).store
        except exceptions.MissingTable:
            store = None  # into what is not there yet, everything goes
        return transfer.plan(source, side.table, store, selection=selection, prefer=prefer, advanced=advanced)


def _say(done: Transferred, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(_document(done, dry_run=dry_run))
        return
    for conflict in done.conflicts[:MOST_CONFLICTS_SHOWN]:
        click.echo(f"conflict: {_show(conflict)}")
    if (more := len(done.conflicts) - MOST_CONFLICTS_SHOWN) > 0:
        click.echo(f"… and {count_of(more, 'more conflict')}")
    click.echo(f"{'would have ' if dry_run else ''}{_summary(done)}")


def _plan(planned: Transferred) -> str:
    parts = [
        f"adds {count_of(planned.verdicts[Verdict.ADDED], 'experiment')}",
        f"replaces {count_of(planned.verdicts[Verdict.TAKEN], 'experiment')}",
    ]
    return " and ".join(
        part for part, verdict in zip(parts, (Verdict.ADDED, Verdict.TAKEN), strict=True) if planned.verdicts[verdict]
    )


def _summary(done: Transferred) -> str:
    counts = done.verdicts
    parts = [f"added {counts[Verdict.ADDED]}", f"took {counts[Verdict.TAKEN]}", f"{counts[Verdict.SAME]} the same"]
    for verdict, text in (
        (Verdict.KEPT, "kept"),
        (Verdict.RUNNING, "running, left alone"),
        (Verdict.CONFLICT, "in conflict"),
        (Verdict.DUPLICATE, "with the parameters of another, left out"),
    ):
        if counts[verdict]:
            parts.append(f"{counts[verdict]} {text}")
    if done.snapshots:
        parts.append(count_of(done.snapshots, "snapshot"))
    return ", ".join(parts)


def _show(conflict: Conflict) -> str:
    keys = ", ".join(f"{name}={value!r}" for name, value in conflict.keyfields.items())
    fields = ", ".join(
        f"{name} {as_text(conflict.source[name])} and {as_text(conflict.target[name])}" for name in conflict.source
    )
    return f"{conflict.source_id} and {conflict.target_id} ({keys}): {fields}"


def _document(done: Transferred, *, dry_run: bool) -> Mapping[str, Any]:
    counted: Sequence[Verdict] = [verdict for verdict in Verdict if verdict is not Verdict.CONFLICT]
    return {
        "dry_run": dry_run,
        **{verdict.value: done.verdicts[verdict] for verdict in counted},
        "conflicts": [
            {
                "source": conflict.source_id,
                "target": conflict.target_id,
                "keyfields": {name: as_json(value) for name, value in conflict.keyfields.items()},
                "results": {
                    name: [as_json(conflict.source[name]), as_json(conflict.target[name])] for name in conflict.source
                },
            }
            for conflict in done.conflicts
        ],
        "snapshots": done.snapshots,
    }
