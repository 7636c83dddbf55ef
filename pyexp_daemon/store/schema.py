"""Whether this code may work on the table as it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pyexp_daemon import exceptions
from pyexp_daemon.store.emissions import COLUMNS, is_emissions
from pyexp_daemon.store.migrations import OURS, VERSION
from pyexp_daemon.store.structure import AddedKeyfield, State
from pyexp_daemon.store.tables import Table

MOST_TEXT = 120
"""So much of the value of a keyfield that is being added is kept for messages."""

BEGUN_WITH = "V, with the value you began with as V,"


def check(table: Table, state: State) -> None:
    """Whether a daemon may work on it, and commands on its experiments.

    Raises:
        MissingTable: there is none.
        TableHasWrongStructureError: keyfields or result fields differ from the configuration's.
        SchemaVersionError: it has to be adopted or upgraded first, or is too new.
    """
    check_readable(table, state)
    check_version(table, state)
    refuse_unfinished(table, state)
    for logtable, columns in table.logtables.items():
        if logtable not in state.beside:
            raise exceptions.TableHasWrongStructureError(
                f"table {table.name} has no logtable {logtable}",
                hint="pyexpd fill adds logtables that are missing; --dry-run shows how",
            )
        missing = _missing(state.beside[logtable], columns)
        if missing:
            raise exceptions.TableHasWrongStructureError(
                f"table {table.name}: logtable {logtable} has no column {', '.join(missing)}",
                hint="pyexpd fill adds columns that logtables lack; --dry-run shows how",
            )
    if table.codecarbon and _missing(state.emissions, COLUMNS):
        what = "a complete" if state.emissions else "the"
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has not {what} table {table.name}_codecarbon beside it, and emissions are tracked",
            hint="pyexpd fill makes it; --dry-run shows how",
        )


def check_version(table: Table, state: State) -> None:
    """Whether the table has what this code works on.

    Raises:
        SchemaVersionError: it has to be adopted or upgraded first.
    """
    if state.version is None:
        raise exceptions.SchemaVersionError(
            f"table {table.name} was made by PyExperimenter and has not been adopted yet",
            hint="pyexpd fill (or pyexpd db create) adds the columns a daemon needs",
        )
    if state.version < VERSION:
        raise exceptions.SchemaVersionError(
            f"table {table.name} has schema {state.version}, this pyexp_daemon needs {VERSION}",
            hint="pyexpd db upgrade (or pyexpd fill) brings it up to date; daemons of older versions go on working",
        )


def refuse_unfinished(table: Table, state: State) -> None:
    """Whether all experiments have their values of keyfields that were added later.

    Raises:
        SchemaVersionError: `db add-keyfield` was stopped in the middle, or is at work.
    """
    for added in state.added:
        if not added.is_complete:
            raise exceptions.SchemaVersionError(
                f"table {table.name}: keyfield {added.name} is being added, and not all experiments have it yet",
                hint=f"{resume_of(added)} goes on where it was stopped",
            )


def resume_of(added: AddedKeyfield) -> str:
    """The command that goes on with adding a keyfield, in one line that can be pasted into a shell."""
    text = added.value_text or ""
    # A line break would become a space on the way, and another value.
    is_whole = len(text) <= MOST_TEXT and text.isprintable() and " ".join(text.split()) == text
    return f"pyexpd db add-keyfield {added.name} --value " + (shlex.quote(text) if is_whole else BEGUN_WITH)


def check_readable(table: Table, state: State) -> None:
    """Whether the user's own columns can be read: true of a table that PyExperimenter made, too.

    Raises:
        MissingTable: there is no table.
        TableHasWrongStructureError: keyfields or result fields differ from the configuration's.
        SchemaVersionError: the table needs a newer version of this code.
    """
    check_names(table, state)
    if not state.exists:
        raise exceptions.MissingTable(f"table {table.name} does not exist", hint="pyexpd fill creates and fills it")
    check_completable(table, state)
    missing = _missing(state.columns, table.result_columns)
    if missing:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has no column {', '.join(missing)}",
            hint="pyexpd fill adds result fields that the table lacks; --dry-run shows how",
        )


def check_completable(table: Table, state: State) -> None:
    """Whether `migrations.statements` may make, adopt, upgrade or complete the tables.

    Result fields that the table lacks are no obstacle, they are added; columns that the user added at the end are free.

    Raises:
        TableHasWrongStructureError: the keyfields differ, the table has result fields that nobody declares, or a table
            that has the name of a logtable is none.
        SchemaVersionError: the table needs a newer version of this code.
    """
    check_names(table, state)
    check_logtables(table, state)
    if not state.exists:
        if "pyexpd_meta" in state.beside:
            raise exceptions.TableHasWrongStructureError(
                f"table {table.name} is gone, but the tables beside it are there still",
                hint="pyexpd db drop takes them away, and then pyexpd fill begins anew",
            )
        return
    check_version_known(table, state)
    check_keyfields(table, state)
    missing = _missing(state.columns, table.keyfields)
    if missing:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has no column {', '.join(missing)}",
            hint=f"pyexpd db add-keyfield {missing[0]} --value V adds it, or give the table another name",
        )
    made_without = [name for name in table.keyfields if name.lower() not in state.fingerprinted]
    if state.fingerprinted and made_without:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has a column {', '.join(made_without)}, but was made without such a keyfield",
            hint=f"pyexpd db add-keyfield {made_without[0]} --value V makes one of it, with V where it is NULL",
        )
    check_columns(table, state)


def check_names(table: Table, state: State) -> None:
    """Whether the database calls the tables what the configuration calls them.

    Raises:
        TableHasWrongStructureError: it has a table whose name differs in capitals, and takes it for the same.
    """
    if not state.ignores_capitals:
        return
    stored = {name.lower(): name for name in state.beside}
    same = [(table.name, state.stored_name or table.name)]
    same += [(f"{table.name}__{name}", f"{table.name}__{stored.get(name.lower(), name)}") for name in table.logtables]
    for wanted, there in same:
        if wanted != there:
            raise exceptions.TableHasWrongStructureError(
                f"the database has a table {there} and takes {wanted} for the same",
                hint=f"write {there.removeprefix(f'{table.name}__')} in the configuration, or choose another name",
            )


def check_logtables(table: Table, state: State) -> None:
    """Whether the tables that have the names of logtables are logtables, and so for emissions.

    Raises:
        TableHasWrongStructureError: one is another experiment table, or a table of the user's.
    """
    for logtable in table.logtables:
        if logtable in state.beside and not is_logtable(state, logtable):
            raise exceptions.TableHasWrongStructureError(
                f"table {table.name}__{logtable} is there and is no logtable of table {table.name}",
                hint=f"give the logtable {logtable} another name",
            )
    if table.codecarbon and state.emissions and not is_emissions(state.emissions):
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name}_codecarbon is there and does not hold emissions",
            hint="give the experiment table another name, or track no emissions",
        )


def is_logtable(state: State, name: str) -> bool:
    """Whether the table of this name beside the experiments has what every logtable has."""
    columns = {column.lower() for column in state.beside[name]}
    return columns >= {"id", "experiment_id", "timestamp"} and f"{name}__pyexpd_meta" not in state.beside


def logtables(table: Table, state: State) -> list[str]:
    """The logtables of a table: those of the configuration, and those that were made for another one.

    What only has such a name is none of them: a table of the user's, or the logtable of another experiment table.
    """

    def is_our_make(name: str) -> bool:
        return "__" not in name and "pyexpd_seq" in (column.lower() for column in state.beside[name])

    return [
        name for name in state.beside if is_logtable(state, name) and (name in table.logtables or is_our_make(name))
    ]


def check_columns(table: Table, state: State) -> None:
    """Whether the configuration names every column of the user's, but for those that stand at the end.

    Raises:
        TableHasWrongStructureError: it does not.
    """
    known = {column.lower() for column in (*table.columns, *OURS["mysql"])}
    end = next((place for place, name in enumerate(state.columns) if name.lower() == "error"), len(state.columns))
    unknown = [column for column in state.columns[:end] if column.lower() not in known]
    if unknown:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has a column {', '.join(unknown)} that the configuration does not name",
            hint="add it to the keyfields or resultfields, or give the table another name",
        )


def check_results(table: Table, state: State) -> None:
    """Whether the configuration names every result field that the table was given, at its end too.

    Raises:
        TableHasWrongStructureError: it does not.
    """
    there = {name.lower() for name in state.columns}
    known = {name.lower() for name in table.result_columns}
    unnamed = [name for name in state.results if name.lower() in there - known]
    if unnamed:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has a result field {', '.join(sorted(unnamed))} that the configuration does not name",
            hint="add it to the resultfields",
        )


def check_version_known(table: Table, state: State) -> None:
    """Whether this code may touch a table of this schema at all.

    Raises:
        SchemaVersionError: it is too new.
    """
    if state.oldest is not None and state.oldest > VERSION:
        raise exceptions.SchemaVersionError(
            f"table {table.name} has schema {state.version}, this pyexp_daemon knows none newer than {VERSION}",
            hint="upgrade pyexp_daemon on this node",
        )


def check_keyfields(table: Table, state: State) -> None:
    """Whether the configuration names the keyfields of the table as such.

    Raises:
        TableHasWrongStructureError: it does not, so its experiments would be others than those of the table.
    """
    ours = {name.lower() for name in table.keyfields}
    results = [name for name in table.result_columns if name.lower() in state.keys]
    unnamed = [*results, *(added.name for added in state.added if added.name.lower() not in ours)]
    if unnamed:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has a keyfield {', '.join(unnamed)} that the configuration does not name",
            hint="add it to the keyfields, or give the table another name",
        )


def _missing(there: Iterable[str], wanted: Iterable[str]) -> list[str]:
    known = {column.lower() for column in there}
    return [column for column in wanted if column.lower() not in known]
