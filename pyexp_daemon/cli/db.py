"""`pyexpd db`: the database and its tables."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.confirm import confirm
from pyexp_daemon.cli.context import Workplace, command, count_of, json_option, print_json, warn
from pyexp_daemon.cli.fill import DDL_S, MOST_DUPLICATES_SHOWN
from pyexp_daemon.cli.groups import Group
from pyexp_daemon.cli.place import configuration_options
from pyexp_daemon.cli.progress import progress_bar
from pyexp_daemon.cli.times import show_duration
from pyexp_daemon.cli.transfer import export_command, merge_command, restore_command
from pyexp_daemon.config.document import read_value
from pyexp_daemon.config.models import Keyfield
from pyexp_daemon.model import Status
from pyexp_daemon.space.grid import Grid
from pyexp_daemon.space.identity import ColumnType
from pyexp_daemon.space.samples import Distribution
from pyexp_daemon.store import filling, keyfields, migrations, reads, release, schema, structure, uses
from pyexp_daemon.store.keyfields import NewKeyfield
from pyexp_daemon.store.structure import State
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.uses import Worker

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore


@click.group("db", cls=Group, no_args_is_help=False)
@configuration_options
def db_command() -> None:
    """Create, upgrade, extend, copy, merge, release or drop the tables, or show their version."""


dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
force_option = click.option("--force", is_flag=True, help="Although daemons have not signed off.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask first.")


@command("create")
def _create(workplace: Workplace) -> None:
    """Create the database and its tables where they are missing, without experiments.

    A table that PyExperimenter made gets the columns and indexes that a daemon needs; nothing else of it is touched.
    """
    with workplace.store(create=True, deadline_s=DDL_S) as store:
        made = filling.ensure_tables(store, workplace.table)
        workplace.announce()
    click.echo(f"created ({count_of(len(made), 'statement')})" if made else "everything was there already")


@command("upgrade")
@dry_run_option
@yes_option
def _upgrade(workplace: Workplace, *, dry_run: bool, yes: bool) -> None:
    """Bring the tables to the schema of this version.

    Daemons go on working meanwhile, those of older versions too, unless it says that they are too old. What the
    configuration has and the tables lack (result fields, logtables) is added, too.
    """
    table = workplace.table
    with workplace.store(deadline_s=DDL_S) as store:
        state = store.read(structure.inspect(table))
        if not state.exists:
            schema.check_readable(table, state)
        schema.check_completable(table, state)
        schema.refuse_unfinished(table, state)
        changes = migrations.changes(table, state)
        if not changes:
            if not dry_run:
                filling.ensure_tables(store, table)  # it may record what an older version did not
            workplace.announce()
            click.echo(f"table {table.name} has {_name_schema(state)}: nothing to do")
            return
        workers = store.read(uses.workers(table, state))
        too_old = uses.too_old(workers, oldest=migrations.oldest_after(state))
        way = f"table {table.name} from {_name_schema(state)} to {_name_schema(state, migrations.pending(state))}"
        if not _is_wanted(
            workplace,
            [f"upgrades {way}", *_describe_changes(changes), *_describe_too_old(too_old)],
            dry_run=dry_run,
            yes=yes,
        ):
            return
        done = filling.ensure_tables(store, table)
    click.echo(f"upgraded {way} ({count_of(len(done), 'statement')})")


@command("version")
@json_option
def _version(workplace: Workplace, *, as_json: bool) -> None:
    """Show the version of the table's schema, and what this pyexpd works on."""
    table = workplace.table
    with workplace.store() as store:
        state = store.read(structure.inspect(table))
        if not state.exists:
            schema.check_readable(table, state)
        missing = migrations.changes(table, state)
        server = store.describe()
    workplace.announce()
    if as_json:
        print_json(
            {
                "table": table.name,
                "schema": state.version,
                "oldest": state.oldest,
                "known": migrations.VERSION,
                "up_to_date": not missing and state.version == migrations.VERSION,
                "server": server,
            }
        )
        return
    click.echo(f"table {table.name}: {_name_schema(state)}; this pyexpd works on schema {migrations.VERSION}; {server}")
    if missing:
        click.echo("pyexpd db upgrade (or pyexpd fill) brings it up to date")


@command("add-keyfield")
@click.argument("name")
@click.option("--value", "text", required=True, metavar="V", help="What the experiments have that are there already.")
@dry_run_option
@yes_option
def _add_keyfield(workplace: Workplace, *, name: str, text: str, dry_run: bool, yes: bool) -> None:
    """Add a keyfield of the configuration to a table that has experiments.

    V is written as in the configuration, null for none. Experiments that are there get it, and `fill` knows them
    again. Where it is a column already, they keep what they have, and get V where it is NULL.

    Daemons finish what runs and claim nothing until they are restarted with the present configuration. If it is stopped
    in the middle, the same command goes on.
    """
    new = _new_keyfield(workplace, name, text)
    table = workplace.table
    with workplace.store(deadline_s=DDL_S) as store:
        planned = keyfields.plan(store, table, new)
        shown = " ".join(new.shown.split())
        does = f"gives {count_of(planned.experiments, 'experiment')} of table {table.name} {name} = {shown}"
        workers = store.read(uses.workers(table, store.read(structure.inspect(table))))
        lines = [
            does,
            *(f"  {statement};" for statement in planned.statements),
            *_describe_concerned(workers, name),
        ]
        if not _is_wanted(workplace, lines, dry_run=dry_run, yes=yes):
            return
        with progress_bar("adding", total=planned.experiments) as advanced:
            duplicates = keyfields.add(store, planned, new, advanced=advanced)
    for unmarked, owner in duplicates[:MOST_DUPLICATES_SHOWN]:
        warn(f"experiments {unmarked} and {owner} have equal parameters; {unmarked} keeps no fingerprint")
    _warn_if_not_listed(workplace, new, shown)
    click.echo(f"added keyfield {name}: {count_of(planned.experiments, 'experiment')} got {shown}")


@command("release")
@force_option
@dry_run_option
@yes_option
def _release(workplace: Workplace, *, force: bool, dry_run: bool, yes: bool) -> None:
    """Take out of the tables what was added to PyExperimenter's, so that it can fill them again.

    Experiments, results and log rows stay; attempts, priorities and queues are lost.
    """
    table = workplace.table
    with workplace.store(deadline_s=DDL_S) as store:
        state = store.read(structure.inspect(table))
        schema.check_readable(table, state)
        if not (force or dry_run):
            _refuse_in_use(store, table, state)
        planned = release.statements(table, state)
        if not planned:
            click.echo(f"nothing to take out: table {table.name} is as PyExperimenter makes it")
            return
        what = f"takes out of table {table.name} what was added to PyExperimenter's; the history of attempts is lost"
        if not _is_wanted(workplace, [what, *(f"  {text};" for text in planned)], dry_run=dry_run, yes=yes):
            return
        created = store.run(release.hand_back(table)) if "pyexpd_token" in state.columns else 0
        store.change_schema([migrations.ddl(statement) for statement in planned])
    click.echo(f"released table {table.name}; {count_of(created, 'experiment')} put back to created")


@command("drop")
@force_option
@dry_run_option
@yes_option
def _drop(workplace: Workplace, *, force: bool, dry_run: bool, yes: bool) -> None:
    """Drop the experiment table with all results, and every table beside it."""
    table = workplace.table
    with workplace.store(deadline_s=DDL_S) as store:
        state = store.read(structure.inspect(table))
        belongings = uses.droppable(store, table, state)
        if not (state.exists or "pyexpd_meta" in state.beside):
            schema.check_readable(table, state)
        if not (force or dry_run):
            _refuse_in_use(store, table, state)
        counts = store.read(reads.count_by_status(table)) if state.exists else {}
        done = counts.get(Status.DONE, 0)
        what = f"table {table.name}: {count_of(sum(counts.values()), 'experiment')}, {done} with results"
        if not _is_wanted(
            workplace,
            [
                f"drops {what}",
                *(f"  {statement};" for statement in belongings.statements),
                *(f"  stays, for it is none of its tables: {name}" for name in belongings.others),
            ],
            dry_run=dry_run,
            yes=yes,
        ):
            return
        store.change_schema([migrations.ddl(statement) for statement in belongings.statements])
    click.echo(f"dropped {what}")


def _refuse_in_use(store: BlockingStore, table: Table, state: State) -> None:
    """Raises UsageError while daemons have not signed off."""
    workers = store.read(uses.workers(table, state))
    if workers:
        raise exceptions.UsageError(
            f"{_name_workers(workers)} on table {table.name}",
            hint="end them first, or add --force if they are gone for good",
        )


def _is_wanted(workplace: Workplace, lines: Sequence[str], *, dry_run: bool, yes: bool) -> bool:
    """Show what would be done, and ask.

    Args:
        lines: the first says it in short.

    Raises:
        UsageError: nobody can be asked, and --yes was not given.
        Abort: the answer was no.
    """
    confirm(workplace, lines[0], lines, yes=yes or dry_run)
    if dry_run:
        click.echo("\n".join([*lines, "dry run: nothing was changed"]))
    elif yes:
        click.echo("\n".join(lines), err=True)
    return not dry_run


def _name_schema(state: State, steps: Sequence[migrations.Migration] = ()) -> str:
    """`schema 2`: of the table, or of the table after these steps."""
    version = steps[-1].version if steps else state.version
    return "PyExperimenter's schema" if version is None else f"schema {version}"


def _describe_changes(changes: Sequence[migrations.Change]) -> list[str]:
    return [
        line
        for change in changes
        for line in (f"  {change.summary}", *(f"    {statement};" for statement in change.statements))
    ]


def _describe_too_old(workers: Sequence[Worker]) -> list[str]:
    return [f"  too old for it, will stop claiming and end: {_name_worker(worker)}" for worker in workers]


def _describe_concerned(workers: Sequence[Worker], name: str) -> list[str]:
    """What becomes of the daemons that work on a table which gets this keyfield."""
    heedless = uses.heedless(workers)
    heeding = [worker for worker in workers if worker.keyfields is not None and name.lower() not in worker.keyfields]
    return [
        *(
            f"  too old to notice (or just started), end it before pyexpd fill: {_name_worker(worker)}"
            for worker in heedless
        ),
        *(f"  claims nothing more until it is restarted: {_name_worker(worker)}" for worker in heeding),
    ]


def _name_worker(worker: Worker) -> str:
    return f"daemon {worker.name} on {worker.host} (process {worker.pid}, version {worker.version})"


def _name_workers(workers: Sequence[Worker]) -> str:
    first = workers[0]
    more = f" and {count_of(len(workers) - 1, 'other')}" if len(workers) > 1 else ""
    return (
        f"daemon {first.name} on {first.host} (process {first.pid}, last beat {show_duration(first.silent_s)} ago)"
        f"{more} {'work' if more else 'works'}"
    )


def _new_keyfield(workplace: Workplace, name: str, text: str) -> NewKeyfield:
    """The keyfield as the configuration has it, with a value that was checked as `fill` checks values.

    Raises:
        UsageError: the configuration does not name it.
        InvalidValuesInConfiguration: the value does not fit its column.
    """
    database = workplace.config.database
    declared = database.table.keyfields
    if name not in declared:
        close = difflib.get_close_matches(name, declared, n=1)
        raise exceptions.UsageError(
            f"{workplace.file} has no keyfield {name!r}",
            hint=f"did you mean {close[0]!r}?" if close else "add it to the keyfields first, with its type",
        )
    try:
        value = read_value(text)
        ((stored,), _) = next(
            iter(Grid.of({name: Keyfield(type=declared[name].type, values=(value,))}, provider=database.provider))
        )
    except exceptions.ConfigError as error:
        raise exceptions.InvalidValuesInConfiguration(f"--value {text}: {error}", hint=error.hint) from None
    return NewKeyfield(
        name=name,
        sql_type=declared[name].type,
        value=stored,
        canonical=ColumnType.parse(declared[name].type).declared(value)[1],
        text=text,
    )


def _warn_if_not_listed(workplace: Workplace, new: NewKeyfield, shown: str) -> None:
    """Say when `fill` will add experiments with other values beside those that are there."""
    column = ColumnType.parse(new.sql_type)
    values = workplace.config.database.table.keyfields[new.name].values
    if isinstance(values, Distribution):
        return  # who can tell
    if all(column.declared(value)[1] != new.canonical for value in ((None,) if values is None else values)):
        warn(f"{workplace.file}: {shown} is not among the values of {new.name}, so fill adds experiments anew")


for _verb in (
    _create,
    _upgrade,
    _version,
    _add_keyfield,
    export_command,
    merge_command,
    restore_command,
    _release,
    _drop,
):
    db_command.add_command(_verb)
