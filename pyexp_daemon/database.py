"""Databases of experiments from Python: opened, read, copied and merged; for scripts and notebooks.

Experiments are run by `PyExperimenter`, or by daemons; here whole databases are looked at, with any number of tables in
them. What is imported at once is little: the rest comes with the first call that needs it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pyexp_daemon import exceptions
from pyexp_daemon.experiment_status import ExperimentStatus
from pyexp_daemon.experimenter import Experiment, read_experiments, select_states

if TYPE_CHECKING:
    import pandas

    from pyexp_daemon.space.grid import Grid, Grids
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.dialect import Dialect
    from pyexp_daemon.store.tables import Table
    from pyexp_daemon.store.transfer import Place, Transferred

Prefer = Literal["primary", "secondary"]


class ExperimentDatabase:
    """A database of experiment tables, made by `open_db`; a context manager that closes it.

    `name` says which it is.
    """

    def __init__(self, store: BlockingStore, dialect: Dialect, name: str, *, folder: Any = None) -> None:
        self.name = name
        self._store = store
        self._dialect = dialect
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ExperimentDatabase({self.name!r})"

    def close(self) -> None:
        """Close the connection; what was in memory is gone."""
        self._store.close()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def tables(self) -> list[str]:
        """The names of the experiment tables."""
        from pyexp_daemon.store import discovery

        found: list[str] = self._store.read(discovery.names(self._dialect))
        return found

    def get_experiment(self, table: str, experiment_id: int) -> Experiment:
        """One experiment.

        Raises:
            SelectorError: there is no such table, or no such experiment in it.
        """
        from pyexp_daemon.store.selection import select

        there = self._table(table)
        found = list(read_experiments(self._store, there, select(there, ids=[str(int(experiment_id))])))
        if not found:
            raise exceptions.SelectorError(f"table {table} has no experiment {experiment_id}")
        return found[0]

    def get_experiments(self, table: str, *states: str | ExperimentStatus) -> list[Experiment]:
        """The experiments of these statuses, of any when none is named, by ID.

        Raises:
            SelectorError: there is no such table, or no such status.
        """
        there = self._table(table)
        return list(read_experiments(self._store, there, select_states(there, states)))

    def get_table(self, table: str) -> pandas.DataFrame:
        """The experiments of a table: one row each.

        Raises:
            SelectorError: there is no such table.
        """
        return self._frame(self._table(table), table)

    def get_logtable(self, table: str, logtable: str) -> pandas.DataFrame:
        """The rows of a logtable of an experiment table.

        Raises:
            SelectorError, MissingTable: there is no such table.
        """
        return self._frame(self._table(table), f"{table}__{logtable}")

    def get_progress(self, table: str) -> pandas.DataFrame:
        """One row per experiment: `ID`, the keyfields, `status`, and whether it is `done`.

        Raises:
            SelectorError: there is no such table.
        """
        frame = self.get_table(table)
        return frame[["ID", *self._table(table).keyfields, "status"]].assign(done=frame["status"] == "done")

    def completed_ratio(self, table: str) -> float | None:
        """The share of the experiments that are done, 0 to 1; None when there are none.

        Raises:
            SelectorError: there is no such table.
        """
        from pyexp_daemon.store import reads

        statuses: dict[str, int] = self._store.read(reads.count_by_status(self._table(table)))
        total = sum(statuses.values())
        return statuses.get("done", 0) / total if total else None

    def _table(self, name: str) -> Table:
        from pyexp_daemon.store import discovery

        found: Table | None = self._store.read(discovery.table(self._dialect, name))
        if found is None:
            tables = ", ".join(self.tables) or "none"
            raise exceptions.SelectorError(f"{self.name} has no experiment table {name!r}", hint=f"there are: {tables}")
        return found

    def _frame(self, table: Table, name: str) -> pandas.DataFrame:
        from pyexp_daemon.export.frames import frame
        from pyexp_daemon.store import raw

        return frame(*raw.read(self._store, table, name))

    def _place(self, table: Table) -> Place:
        from pyexp_daemon.store.transfer import Place

        return Place(store=self._store, table=replace(table, dialect=self._dialect))


def open_db(
    path_or_config: str | os.PathLike[str] | None = None, *, create: bool = True, in_memory: bool = False
) -> ExperimentDatabase:
    """Open a database of experiments.

    Args:
        path_or_config: an SQLite file, or a configuration file (.yml), whose database is meant; credentials are found
            as the command pyexpd finds them.
        create: make it, and the folders above a file, when it is missing.
        in_memory: a new SQLite database in memory, which is gone when it is closed.

    Raises:
        ValueError: it is both or neither.
        MissingTable: it is missing, and is not to be made.
        DatabaseConnectionError, ConfigError: it cannot be opened.
    """
    from pyexp_daemon.store.dialect import DIALECTS
    from pyexp_daemon.store.sqlite import BlockingSqlite

    if in_memory == (path_or_config is not None):
        raise ValueError("name a file, or in_memory=True")
    if path_or_config is None:
        memory = Path("/dev/shm")
        folder = tempfile.TemporaryDirectory(prefix="pyexpd-", dir=memory if os.access(memory, os.W_OK) else None)
        store = BlockingSqlite(Path(folder.name) / "memory.db", create=True)
        return ExperimentDatabase(store, DIALECTS["sqlite"], "memory", folder=folder)
    path = Path(path_or_config)
    if path.suffix not in (".yml", ".yaml"):
        return ExperimentDatabase(BlockingSqlite(path, create=create), DIALECTS["sqlite"], str(path))
    from pyexp_daemon.config.load import load_config
    from pyexp_daemon.store import open_blocking_store

    config = load_config(path)
    database = config.database
    name = str(config.database_path) if database.provider == "sqlite" else f"mysql database {database.database}"
    return ExperimentDatabase(
        open_blocking_store(config, create=create, deadline_s=3600), DIALECTS[database.provider], name
    )


def export_db(
    database: ExperimentDatabase, out: str | os.PathLike[str], *tables: str, prefer: Prefer | None = None
) -> ExperimentDatabase:
    """Copy experiment tables into another database, with all that belongs to them; the other one, open.

    Args:
        out: as for `open_db`; made when it is missing. What is there already is merged with.
        tables: their names; all when none is given.
        prefer: see `merge_databases`; `secondary` is `database`.

    Raises:
        SelectorError: there is no such table.
        and what `merge_databases` raises.
    """
    names = tables or database.tables
    for name in names:
        _source(database, database._table(name))  # refused before anything is made
    other = open_db(out)
    try:
        merge_databases(other, database, *names, prefer=prefer)
    except BaseException:
        other.close()
        raise
    return other


def merge_databases(
    primary: ExperimentDatabase, secondary: ExperimentDatabase, *tables: str, prefer: Prefer | None = None
) -> dict[str, dict[str, int]]:
    """Bring the experiments of one database into another; once more changes nothing.

    Experiments are the same when their parameters are. Results win over what is unfinished, and what runs in the
    primary is left alone. A table that the primary lacks is made.

    Args:
        tables: of the secondary, by name; all when none is given.
        prefer: whose results stay where both are done, with different ones.

    Returns:
        For each table how many experiments were `added`, `taken`, the `same`, `kept`, `running` or a `duplicate`.

    Raises:
        SelectorError: there is no such table.
        TableHasWrongStructureError: a table of that name has other fields.
        UsageError: there are experiments with two results, and `prefer` was not given; nothing was changed.
    """
    merges = [_Merge.planned(primary, secondary, name, prefer) for name in tables or secondary.tables]
    return {merge.source.table.name: merge.carry_out() for merge in merges}


def _source(database: ExperimentDatabase, table: Table) -> Place:
    """The table of that name as a source.

    Raises:
        TableHasWrongStructureError, SchemaVersionError: it is none; or it has columns at its end that nobody recorded
            as result fields: they would be left behind.
    """
    from pyexp_daemon.store import structure, transfer

    place = database._place(table)
    columns = place.store.read(structure.inspect(place.table)).columns
    last = columns[columns.index("error") + 1 :] if "error" in columns else ()
    known = {name.lower() for name in (*table.keyfields, *table.result_columns)}
    added = [name for name in last if not name.startswith("pyexpd_") and name.lower() not in known]
    if added:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} of {database.name} has columns of its own at its end: {', '.join(added)}",
            hint="pyexpd fill, with a configuration that names those which are result fields, records them as such",
        )
    return transfer.adapted(place, table)


@dataclass(frozen=True)
class _Merge:
    """A table to be merged: nothing stands against it."""

    source: Place
    target: Place
    prefer: str | None

    @classmethod
    def planned(
        cls, primary: ExperimentDatabase, secondary: ExperimentDatabase, name: str, prefer: Prefer | None
    ) -> Self:
        """
        Raises:
            what `merge_databases` raises; nothing was changed.
        """
        from pyexp_daemon.store import transfer

        theirs = secondary._table(name)
        ours = primary._table(name) if name in primary.tables else replace(theirs, dialect=primary._dialect)
        logtables = {
            logtable: _with_missing(ours.logtables.get(logtable, {}), columns)
            for logtable, columns in theirs.logtables.items()
        }
        ours = replace(ours, logtables={**ours.logtables, **logtables}, codecarbon=ours.codecarbon or theirs.codecarbon)
        ours = transfer.portable(ours)
        source = _source(secondary, ours)
        wanted = None if prefer is None else {"primary": "target", "secondary": "source"}[prefer]
        planned: Transferred = transfer.plan(source, ours, primary._store, prefer=wanted)
        if planned.conflicts:
            first = planned.conflicts[0]
            raise exceptions.UsageError(
                f"table {name}: {len(planned.conflicts)} experiments are done in both with different results, the first"
                f" is {first.target_id} in {primary.name} and {first.source_id} in {secondary.name}:"
                f" {dict(first.target)} and {dict(first.source)}",
                hint='prefer="primary" or prefer="secondary"',
            )
        return cls(source, primary._place(ours), wanted)

    def carry_out(self) -> dict[str, int]:
        from pyexp_daemon.store import filling, transfer

        filling.ensure_tables(self.target.store, self.target.table)
        filling.mark_existing(self.target.store, self.target.table)
        done = transfer.transfer(self.source, self.target, prefer=self.prefer)
        return {verdict.value: count for verdict, count in done.verdicts.items()}


def _with_missing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """The columns of a logtable, and those that only the other one has."""
    known = {name.lower() for name in ours}
    return {**ours, **{name: kind for name, kind in theirs.items() if name.lower() not in known}}


def restore_from_db(configuration: str | os.PathLike[str], *, overwrite: bool = False) -> int:
    """Make sure that the table of a configuration has exactly its experiments; how many of them are done.

    A table that is missing or empty is filled; one that has these experiments stays as it is.

    Args:
        overwrite: delete all experiments of a table that has others, and fill it anew, in one transaction.

    Raises:
        TableHasWrongStructureError: it has other experiments, or other fields; nothing was changed.
        UsageError: it is to be overwritten, and experiments are running; nothing was changed.
    """
    from pyexp_daemon.config.load import load_config
    from pyexp_daemon.space.grid import grid_of
    from pyexp_daemon.store import filling, open_blocking_store, reads, restoring, structure
    from pyexp_daemon.store.tables import Table

    config = load_config(Path(configuration))
    table = Table.of(config.database, codecarbon=config.tracking is not None)
    grid: Grid | Grids = grid_of(config)
    with ExperimentDatabase(
        open_blocking_store(config, create=True, deadline_s=3600), table.dialect, str(configuration)
    ) as database:
        store = database._store
        if not store.read(structure.inspect(table)).exists:
            filling.ensure_tables(store, table)
        differs = restoring.difference(store, table, grid)
        if differs and differs.there and not overwrite:
            raise exceptions.TableHasWrongStructureError(
                f"table {table.name} has other experiments than {configuration}: {differs.words}",
                hint="overwrite=True deletes them all and fills the table anew",
            )
        if differs and differs.there:
            store.read(restoring.check_idle(table))
            filling.ensure_tables(store, table)
            with filling.alone(store, table):
                store.run(restoring.overwrite(table, grid))
        else:
            filling.fill_table(store, table, grid)
        return int(store.read(reads.count_by_status(table)).get("done", 0))
