"""What every command begins with: the configuration, loaded once, and the database behind it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyexp_daemon import exceptions, log
from pyexp_daemon.cli.place import Place, configuration_options, place_of
from pyexp_daemon.config.load import find_config, load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.store import open_blocking_store, schema, structure, target
from pyexp_daemon.store.tables import Table

if TYPE_CHECKING:
    from pyexp_daemon.space.grid import Grid, Grids
    from pyexp_daemon.store import BlockingStore


class Workplace:
    """The configuration a command works on; read when first asked for."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._is_announced = False
        self._found: structure.State | None = None
        self.credentials = place.credentials

    @functools.cached_property
    def file(self) -> Path:
        """The configuration file, as it was named or found."""
        return find_config(self._place.config)

    @functools.cached_property
    def config(self) -> Config:
        log.set_up_for_command()
        return load_config(self.file)

    def grid(self) -> Grid | Grids:
        """The experiments of the configuration, every value checked against its column.

        Raises:
            InvalidValuesInConfiguration: a value does not fit, is listed twice, or two become the same.
        """
        from pyexp_daemon.space.grid import grid_of

        config = self.config
        try:
            return grid_of(config)
        except exceptions.InvalidValuesInConfiguration as error:
            raise exceptions.InvalidValuesInConfiguration(f"{self.file}: {error}", hint=error.hint) from None

    @functools.cached_property
    def table(self) -> Table:
        return Table.of(self.config.database, codecarbon=self.config.tracking is not None)

    @functools.cached_property
    def database(self) -> str:
        """The database in full: the SQLite file, or mysql://server/name."""
        if self.config.database.provider == "sqlite":
            return str(self.config.database_path)
        return str(target(self.config, self.credentials))

    @contextmanager
    def store(self, *, create: bool = False, deadline_s: float = 60.0) -> Iterator[BlockingStore]:
        """A connection to the database.

        Args:
            create: make the database when it is missing.
            deadline_s: how long one statement may take.
        """
        store = open_blocking_store(self.config, credentials=self.credentials, create=create, deadline_s=deadline_s)
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def experiments(self, *, adopted: bool = True) -> Iterator[BlockingStore]:
        """A connection to the database of a table that is there.

        Args:
            adopted: the command needs our own columns and tables.

        Raises:
            MissingTable: there is no such table; nothing was made.
            SchemaVersionError: the table has to be adopted or brought up to date first.
        """
        with self.store() as store:
            state = self._found = store.read(structure.inspect(self.table))
            if adopted:
                schema.check(self.table, state)
            else:
                schema.check_readable(self.table, state)
            yield store

    def is_adopted(self) -> bool:
        """Whether the table of `experiments` has our columns and the tables beside it.

        Raises:
            SchemaVersionError: it has those of an older version, and has to be brought up to date first.
        """
        assert self._found is not None
        if self._found.version is None:
            return False
        schema.check_version(self.table, self._found)
        return True

    def announce(self) -> None:
        """Say once, before anything else is said, what this is about; on stderr, for stdout is the result."""
        if self._is_announced:
            return
        self._is_announced = True
        click.echo(f"configuration {self.config.path}, database {self.database}, table {self.table.name}", err=True)
        warning = self.credentials_warning()
        if warning:
            warn(f"warning: {warning}")

    def announce_changes(self, statements: Sequence[str]) -> None:
        """Say how a table that is there is about to be changed."""
        self.announce()
        for statement in statements:
            warn(f"table {self.table.name} is changed: {statement};")

    def credentials_warning(self) -> str | None:
        """What is unwise about the credentials, in one line."""
        if self.config.database.provider == "sqlite":
            return None
        from pyexp_daemon.config.credentials import load_credentials

        return load_credentials(self.config, self.credentials).warning


def command(
    name: str, *, cls: type[click.Command] = click.Command
) -> Callable[[Callable[..., int | None]], click.Command]:
    """Make a command of a function: it is called with the workplace and its own options."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        @functools.wraps(function)
        def call(**options: Any) -> int | None:
            return function(Workplace(place_of(click.get_current_context())), **options)

        make: Callable[[Any], click.Command] = click.command(name, cls=cls)
        return make(configuration_options(call))

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class _WholeNumber(click.IntRange):
    """What click calls an integer range, in words for people."""

    name = "whole number"


def at_least(smallest: int) -> click.IntRange:
    """The type of an option or argument that is a whole number, no smaller than this."""
    return _WholeNumber(min=smallest)


def print_json(document: Any) -> None:
    """The result of a command as one JSON document on stdout."""
    click.echo(json.dumps(document, ensure_ascii=False, indent=2, default=str))


def warn(text: str) -> None:
    """A notice for people, on stderr."""
    click.echo(f"pyexpd: {text}", err=True)


def count_of(number: int, noun: str) -> str:
    """`1 experiment`, `2 experiments`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
