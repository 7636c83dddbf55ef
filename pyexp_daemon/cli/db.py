"""`pyexpd db`: the database and its tables."""

from __future__ import annotations

import click

from pyexp_daemon.cli.context import Workplace, command, count_of, json_option, print_json
from pyexp_daemon.cli.groups import Group
from pyexp_daemon.cli.place import configuration_options
from pyexp_daemon.store import filling, schema


@click.group("db", cls=Group, no_args_is_help=False)
@configuration_options
def db_command() -> None:
    """Create the database and its tables, or show their version."""


@command("create")
def _create(workplace: Workplace) -> None:
    """Create the database and its tables where they are missing, without experiments.

    A table that PyExperimenter made gets the columns and indexes that a daemon needs; nothing else of it is touched.
    """
    with workplace.store(create=True) as store:
        made = filling.ensure_tables(store, workplace.table)
        workplace.announce()
    click.echo(f"created ({count_of(len(made), 'statement')})" if made else "everything was there already")


@command("version")
@json_option
def _version(workplace: Workplace, *, as_json: bool) -> None:
    """Show the version of the table's schema, and what this pyexpd works on."""
    table = workplace.table
    with workplace.store() as store:
        state = store.read(schema.inspect(table))
        if not state.exists:
            schema.check_readable(table, state)
        missing = schema.statements(table, state)
        server = store.describe()
    workplace.announce()
    if as_json:
        print_json(
            {
                "table": table.name,
                "schema": state.version,
                "oldest": state.oldest,
                "known": schema.VERSION,
                "up_to_date": not missing and state.version == schema.VERSION,
                "server": server,
            }
        )
        return
    found = "not adopted yet" if state.version is None else f"schema {state.version}"
    click.echo(f"table {table.name}: {found}; this pyexpd works on schema {schema.VERSION}; {server}")
    if missing or state.version != schema.VERSION:
        click.echo("pyexpd fill (or pyexpd db create) brings it up to date")


db_command.add_command(_create)
db_command.add_command(_version)
