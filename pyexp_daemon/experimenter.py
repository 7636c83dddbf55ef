"""PyExperimenter: experiments from Python, for scripts and notebooks; the interface of the package py_experimenter.

Everything is synchronous, and works inside a running event loop, too. What is imported here at once is little: the
rest comes with the first call that needs it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyexp_daemon import exceptions
from pyexp_daemon.experiment_status import ExperimentStatus
from pyexp_daemon.result_processor import ResultProcessor
from pyexp_daemon.worker.emissions import is_available

if TYPE_CHECKING:
    import pandas

    from pyexp_daemon.config.models import Config
    from pyexp_daemon.model import Attempt
    from pyexp_daemon.snapshot import Snapshot
    from pyexp_daemon.space.grid import Grid, Grids, Rows
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.selection import Selection
    from pyexp_daemon.store.tables import Table

    ExperimentFunction = Callable[..., ExperimentStatus | Mapping[str, Any] | None]
    """`function(keyfields, result_processor, custom_fields)`, or with fewer of the three."""

_LONGEST_NAME = 255


class PyExperimenter:
    """One experiment table: filled, worked on and read.

    Relative paths, the SQLite file included, belong to the working directory in which the object is made. It is there
    that experiments run.

    Args:
        experiment_configuration_file_path: the configuration file.
        database_credential_file_path: user and password for MySQL; where there is no such file, they are looked for
            beside the configuration and in the environment, as the command pyexpd does.
        use_ssh_tunnel, table_name, database_name: instead of what the file says, unless None.
        use_codecarbon: track the energy and the emissions of experiments, if codecarbon is installed.
        name: stands in the column `name` of the experiments that are run, for example the number of a job.
        logger_name, log_level: of the logger; one that is new writes to stderr and to `log_file`.
        log_file: its folder is made when it is missing.

    Raises:
        InvalidConfigError, NoConfigFileError: the configuration cannot be used.
        DatabaseCreationError: the credentials cannot be used.
        DatabaseConnectionError: the server cannot be reached, or refuses us. (A database that is missing is no error.)
        SshTunnelError: the tunnel cannot be opened.
    """

    def __init__(
        self,
        experiment_configuration_file_path: str | os.PathLike[str] = "config/experiment_configuration.yml",
        database_credential_file_path: str | os.PathLike[str] = "config/database_credentials.yml",
        use_ssh_tunnel: bool | None = None,
        table_name: str | None = None,
        database_name: str | None = None,
        use_codecarbon: bool = True,
        name: str = "PyExperimenter",
        logger_name: str = "py-experimenter",
        log_level: int | str = logging.INFO,
        log_file: str | os.PathLike[str] = "./logs/py-experimenter.log",
    ) -> None:
        self.logger_name = logger_name
        self.logger = _logger(logger_name, log_level, Path(log_file))
        self.experiment_configuration_file_path = experiment_configuration_file_path
        self.database_credential_file_path = database_credential_file_path
        self.use_codecarbon = use_codecarbon
        self.name = name
        self._project = Path.cwd()
        self._file = self._project / experiment_configuration_file_path
        from pyexp_daemon.config.load import check_config, read_config
        from pyexp_daemon.config.pyexperimenter import PyExperimenterCfg, known_content
        from pyexp_daemon.store.plain import DatabaseConnector

        instead = {
            "Database.use_ssh": use_ssh_tunnel,
            "Database.table.name": table_name,
            "Database.database": database_name,
        }
        overrides = {key: value for key, value in instead.items() if value is not None}
        self._content = known_content(self._file, read_config(self._file, overrides=overrides), self.logger)
        self.config = PyExperimenterCfg.of(check_config(self._file, self._content), self.logger)
        self._says_untracked = use_codecarbon and not is_available()
        self.db_connector = DatabaseConnector(self._load, credentials=self._credentials, logger=self.logger)
        self._try_connection()
        self.logger.info("Initialized and connected to database")

    def fill_table_from_config(self) -> None:
        """Insert the experiments of the configuration that the table lacks; tables that are missing are made.

        Raises:
            InvalidValuesInConfiguration: a value does not fit its keyfield; nothing was inserted.
            TableHasWrongStructureError: the table has other keyfields or result fields; it was left as it was.
        """
        from pyexp_daemon.space.grid import grid_of

        grid = grid_of(self._load())
        for text in grid.notes:
            self.logger.warning("%s", text)
        self._fill(grid)

    def fill_table_from_combination(
        self,
        fixed_parameter_combinations: Sequence[Mapping[str, Any]] | None = None,
        parameters: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Insert each combination of `parameters` with each of the fixed combinations, as far as the table lacks it.

        Raises:
            ParameterCombinationError: there is none, or they do not match the keyfields; nothing was inserted.
            TableHasWrongStructureError: see `fill_table_from_config`.
        """
        from pyexp_daemon.space.grid import combine

        keyfields = list(self.config.database_configuration.keyfields)
        self.fill_table_with_rows(combine(keyfields, parameters or {}, fixed_parameter_combinations or ()))

    def fill_table_with_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert the rows that the table lacks; of equal ones the first. `rows` is left as it is.

        Args:
            rows: one mapping per experiment, keys = keyfields in any order.

        Raises:
            EmptyFillDatabaseCallError: there are no rows.
            ParameterCombinationError: a row does not match the keyfields; nothing was inserted.
            TableHasWrongStructureError: see `fill_table_from_config`.
        """
        if not len(rows):
            raise exceptions.EmptyFillDatabaseCallError("there are no rows to fill the table with")
        self._fill(self._checked(rows))

    def fill_table_from_space(self, configuration: Mapping[str, Any]) -> None:
        """Insert the experiments that variables of `pyexp_daemon.space` stand for, as far as the table lacks them.

        Args:
            configuration: of each keyfield a variable or a constant. The first variable changes fastest; what is
                repeated is an experiment of its own each time.

        Raises:
            EmptyFillDatabaseCallError: a variable has no values, so there are no experiments.
            InvalidValuesInConfiguration: the variables do not fit together; nothing was inserted.
            ParameterCombinationError: they do not match the keyfields; nothing was inserted.
            TableHasWrongStructureError: see `fill_table_from_config`.
        """
        from pyexp_daemon.space.sweep import count, expand

        if not count(configuration):
            raise exceptions.EmptyFillDatabaseCallError(
                "there are no experiments to fill the table with", hint="give each variable a value at least"
            )
        self._fill(self._checked(expand(configuration), repeated=True))

    def create_table(self, create_database: bool = False) -> None:
        """Make the tables that are missing, and add to those that are there what a daemon needs.

        Args:
            create_database: also the database. (An SQLite file is always made.)

        Raises:
            DatabaseCreationError: the database cannot be made.
            TableHasWrongStructureError: see `fill_table_from_config`.
        """
        try:
            with self._store(create=create_database or self._is_sqlite) as store:
                self._make_tables(store)
        except exceptions.DatabaseConnectionError as error:
            if create_database:
                raise exceptions.DatabaseCreationError(str(error), hint=error.hint) from error
            raise
        self.logger.info("Table %s is there", self._table.name)

    def execute(
        self,
        experiment_function: ExperimentFunction,
        random_order: bool = False,
        n_jobs: int | None = None,
        max_experiments: int = -1,
        *,
        mode: Literal["processes", "serial"] = "processes",
        progress: bool = False,
    ) -> None:
        """Run open experiments, beside any number of daemons and other callers.

        Returns when none is left, or `max_experiments` were run, or the allocation of a batch system ends in which this
        runs. An exception of the function is recorded in the table; what the function prints is shown. Ctrl-C hands
        back what runs.

        Args:
            experiment_function: called with keyfields, result processor and custom fields. It may be a closure: what
                belongs to `__main__` travels by value, modules by reference.
            random_order: take experiments of one priority in random order.
            n_jobs: how many run at once; None for the configuration's (1 by default), -1 for as many as there are CPUs.
            max_experiments: run no more than so many; -1 for all.
            mode: `processes`, each in a child process, or `serial`, one after the other in this one, for a debugger:
                without time-outs, and an experiment that crashes takes this process along.
            progress: show a bar on the terminal, or in the notebook.

        Raises:
            NoExperimentsLeftException: fewer than `max_experiments` were open; those were run. (Not when it was told to
                end before.)
            FunctionError: the function cannot be sent to a child or called there; nothing was run.
            DatabaseConnectionError: the database could not be used at the start. (Later it is waited for.)
        """
        if mode not in ("processes", "serial"):
            raise ValueError(f"mode is {mode!r}; there are 'processes' and 'serial'")
        slots = _count_jobs(self.config.n_jobs if n_jobs is None else n_jobs)
        if max_experiments < -1:
            raise ValueError(f"max_experiments is {max_experiments}; -1 stands for all")
        if max_experiments == 0:
            return
        self._be_ready_to_run()
        most = None if max_experiments == -1 else max_experiments
        with self._logging(), self._bar(most, shown=progress) as ended:
            if mode == "serial":
                count = self._here().run_open(
                    self._function(experiment_function), most=most, at_random=bool(random_order), ended=ended
                )
            else:
                count = self._run_as_guest(experiment_function, slots, most, at_random=bool(random_order), ended=ended)
        if count < max_experiments:
            if not self._count_open():
                raise exceptions.NoExperimentsLeftException(
                    f"no experiments left to execute: {count} of {max_experiments} were open"
                )
            self.logger.warning("Ended before %d experiments were run: %d were", max_experiments, count)
            return
        self.logger.info("All configured executions finished.")

    def _count_open(self) -> int:
        """How many experiments of our queues somebody can still run."""
        from pyexp_daemon.store import reads

        with self._store() as store:
            return int(store.read(reads.count_unfinished(self._table, queues=self._load().daemon.queues)))

    def add_experiment_and_execute(
        self, keyfield_values: Mapping[str, Any], experiment_function: ExperimentFunction
    ) -> None:
        """Insert one experiment that nobody else can take, and run it in this process.

        If the table has it already, that is logged, and nothing is run.

        Raises:
            ParameterCombinationError: the values do not match the keyfields; nothing was inserted.
            LeaseLost: somebody took the experiment while it ran.
        """
        from pyexp_daemon.store import filling

        (row,) = self._checked([keyfield_values])
        self._say_untracked()
        with self._store(create=self._is_sqlite) as store:
            self._make_tables(store)
            filling.mark_existing(store, self._table)  # PyExperimenter or a person may have made it
        with self._logging():
            attempt = self._here().add_and_run(row, self._function(experiment_function))
        if attempt is None:
            self.logger.warning("Experiment already exists in the table, and is not run: %s", dict(keyfield_values))

    def unpause_experiment(self, experiment_id: int, experiment_function: ExperimentFunction) -> None:
        """Run a paused experiment to its end, in this process; when two try, one wins.

        Raises:
            NoPausedExperimentsException: it is not paused; nothing was run.
            LeaseLost: somebody took the experiment while it ran.
        """
        self._be_ready_to_run()
        with self._logging():
            attempt = self._here().run(experiment_id, self._function(experiment_function), paused=True)
        if attempt is None:
            raise exceptions.NoPausedExperimentsException(f"there is no paused experiment {experiment_id} in the table")

    def attach(self, experiment_function: Callable[[ResultProcessor], Any], experiment_id: int) -> Any:
        """Call a function with a result processor for an experiment that runs elsewhere; what the function returns.

        It is bound to the lease that the experiment has now: when another attempt begins, its writes raise LeaseLost.
        The status is left alone.

        Raises:
            SelectorError: there is no such experiment.
        """
        self._be_ready_to_run()
        from pyexp_daemon.daemon.attached import attach

        with self._store() as store, closing(attach(store, self._load(), experiment_id)) as result_processor:
            return experiment_function(result_processor)

    def snapshots(self, experiment_id: int, *, allow_pickle: bool = False) -> list[Snapshot]:
        """All snapshots of an experiment, the newest first, their states read; without those replaced meanwhile.

        Args:
            allow_pickle: unpickle what was pickled. Whoever can write to the database can run any code here then.

        Raises:
            SnapshotError: a state has pickled values, and those are not allowed.
        """
        from pyexp_daemon.snapshot import Snapshots
        from pyexp_daemon.store.lookups import look_up

        table = self._table
        with self._store() as store:
            self._make_tables(store, only_existing=True)
            return Snapshots(lambda what, **arguments: store.read(look_up(table, experiment_id, what, arguments))).all(
                allow_pickle=allow_pickle, read=True
            )

    def reset_experiments(self, *states: str | ExperimentStatus, keep_snapshots: bool = False) -> None:
        """Put the experiments of these states back to `created`, under the IDs they have; their results are cleared.

        Running ones, when asked for, are taken from whoever runs them, and what comes of that is thrown away.

        Args:
            states: statuses, or `all`.
            keep_snapshots: leave them what they saved, to go on from there.

        Raises:
            SelectorError: there is no such status; nothing was reset.
        """
        if not states:
            self.logger.warning("No states given to reset experiments. No experiments are reset.")
            return
        from pyexp_daemon.daemon import doorbell

        table = self._table
        selection = select_states(table, states)
        with self._store() as store:
            self._make_tables(store, only_existing=True)
            count = _reset(store, table, selection, keep_snapshots=keep_snapshots)
            doorbell.ring(store, table)
        names = " ".join(state.value if isinstance(state, ExperimentStatus) else state for state in states)
        self.logger.info("%d experiments with status %s were reset", count, names)

    def get_experiment(self, experiment_id: int) -> Experiment:
        """One experiment of the table.

        Raises:
            SelectorError: there is none of this ID.
        """
        from pyexp_daemon.store.selection import select

        table = self._table
        with self._store() as store:
            found = list(read_experiments(store, table, select(table, ids=[str(int(experiment_id))])))
        return _one(table, found, experiment_id)

    def get_experiments(self, *states: str | ExperimentStatus) -> list[Experiment]:
        """The experiments of these statuses, of any when none is named, by ID.

        Raises:
            SelectorError: there is no such status.
        """
        with self._store() as store:
            return list(read_experiments(store, self._table, select_states(self._table, states)))

    def get_progress(self) -> pandas.DataFrame:
        """One row per experiment: `ID`, the keyfields, `status`, and whether it is `done`."""
        table = self.get_table()
        keyfields = list(self.config.database_configuration.keyfields)
        return table[["ID", *keyfields, "status"]].assign(done=table["status"] == "done")

    def completed_ratio(self) -> float | None:
        """The share of the experiments that are done, 0 to 1; None when there are none."""
        from pyexp_daemon.store import reads

        with self._store() as store:
            statuses = store.read(reads.count_by_status(self._table))
        total = sum(statuses.values())
        return statuses.get("done", 0) / total if total else None

    def complete_experiment(self, experiment_id: int, results: Mapping[str, Any]) -> None:
        """Store results that you have, and make the experiment done, whatever its status.

        Of a running one, what is being computed is thrown away. Results that are not named stay.

        Raises:
            InvalidResultFieldError: a name is no result field; nothing was changed.
            RowRefused: a value cannot be stored; nothing was changed.
            SelectorError: there is no such experiment.
        """
        from pyexp_daemon.result_processor import storable
        from pyexp_daemon.store import edits

        table = self._table
        unknown = [name for name in results if name not in table.resultfields]
        if unknown:
            raise exceptions.InvalidResultFieldError(
                f"no such result field: {', '.join(map(str, unknown))}",
                hint=f"result fields are: {', '.join(table.resultfields) or 'none'}",
            )
        with self._store() as store:
            self._make_tables(store, only_existing=True)
            if not store.run(edits.complete(table, experiment_id, storable(results, place="result field"))):
                _one(table, [], experiment_id)

    def mark_incomplete(self, experiment_id: int) -> None:
        """Put an experiment that has ended back to `created`; its results and snapshots stay until it is run again.

        (`reset_experiments` clears them.) One that is open or running is left alone.

        Raises:
            SelectorError: there is no such experiment.
        """
        from pyexp_daemon.daemon import doorbell
        from pyexp_daemon.store import edits

        self.get_experiment(experiment_id)
        with self._store() as store:
            self._make_tables(store, only_existing=True)
            if store.run(edits.reopen(self._table, experiment_id)):
                doorbell.ring(store, self._table)

    def delete_table(self) -> None:
        """Drop the table with everything beside it; nothing when there is none.

        Raises:
            TableError: tables of the user's refer to it by a foreign key; nothing was dropped.
        """
        from pyexp_daemon.store import migrations, structure, uses

        table = self._table
        with self._store() as store:
            state = store.read(structure.inspect(table))
            belongings = uses.droppable(store, table, state)
            for worker in store.read(uses.workers(table, state)):
                self.logger.warning("daemon %s on %s has not signed off from the table", worker.name, worker.host)
            store.change_schema([migrations.ddl(statement) for statement in belongings.statements])

    def get_table(self) -> pandas.DataFrame:
        """The experiments: one row each, columns as in the table."""
        return self._frame(self._table.name)

    def get_logtable(self, logtable_name: str) -> pandas.DataFrame:
        """The rows of a logtable.

        Args:
            logtable_name: as in the configuration, without the table's name.
        """
        return self._frame(f"{self._table.name}__{logtable_name}")

    def get_codecarbon_table(self) -> pandas.DataFrame:
        """The energy that attempts used: one row each.

        Raises:
            ValueError: this object was made with `use_codecarbon=False`.
        """
        if not self.use_codecarbon:
            raise ValueError("CodeCarbon is not used in this experiment.")
        return self._frame(f"{self._table.name}_codecarbon")

    def close_ssh(self) -> None:
        """Close the SSH tunnel; the next connection opens it again."""
        from pyexp_daemon.store import close_tunnel

        if not close_tunnel(self._load(), credentials=self._credentials):
            self.logger.warning("No ssh tunnel to close")

    @property
    def _is_sqlite(self) -> bool:
        return self.config.database_configuration.provider == "sqlite"

    @property
    def _credentials(self) -> Path | None:
        file = self._project / self.database_credential_file_path
        return file if file.exists() else None

    @property
    def _name(self) -> str:
        return str(self.name)[:_LONGEST_NAME]

    @property
    def _table(self) -> Table:
        from pyexp_daemon.store.tables import Table

        config = self._load()
        return Table.of(config.database, codecarbon=config.tracking is not None)

    def _load(self) -> Config:
        """The configuration as `self.config` says it now."""
        from pyexp_daemon.config.load import ROOT, check_config

        content = {ROOT: {**self._content[ROOT], **self.config.section()}}
        config = check_config(self._file, content, project=self._project)
        return config.model_copy(update={"use_codecarbon": self.use_codecarbon and is_available()})

    def _try_connection(self) -> None:
        """Whether the server takes us. Nothing is made, and nothing need be there."""
        from pyexp_daemon.store import target

        config = self._load()
        if self._is_sqlite:
            return
        try:
            target(config, self._credentials)
        except exceptions.ConfigError as error:
            raise exceptions.DatabaseCreationError(str(error), hint=error.hint) from None
        from pyexp_daemon.store import open_blocking_store

        try:
            open_blocking_store(config, credentials=self._credentials).close()
        except exceptions.MissingTable as error:
            self.logger.warning("%s; create_table(create_database=True) makes it", error)

    @contextmanager
    def _store(self, *, create: bool = False) -> Iterator[BlockingStore]:
        from pyexp_daemon.store import open_blocking_store

        with self._logging():
            try:
                store = open_blocking_store(self._load(), credentials=self._credentials, create=create, deadline_s=3600)
                with closing(store):
                    yield store
            except exceptions.MissingTable as error:
                hint = "fill_table_from_config() makes the table, create_table(create_database=True) the database"
                raise exceptions.DatabaseConnectionError(str(error), hint=hint) from error

    @contextmanager
    def _logging(self) -> Iterator[None]:
        from pyexp_daemon.events import to_logger

        with to_logger(self.logger):
            yield

    def _make_tables(self, store: BlockingStore, *, only_existing: bool = False) -> None:
        """Make, adopt or complete the tables."""
        from pyexp_daemon.store import filling, schema, structure

        table = self._table
        if only_existing:
            schema.check_readable(table, store.read(structure.inspect(table)))
        filling.ensure_tables(store, table, show=self._show_changes)

    def _be_ready_to_run(self) -> None:
        self._say_untracked()
        with self._store() as store:
            self._make_tables(store, only_existing=True)

    def _say_untracked(self) -> None:
        if self._says_untracked:
            self._says_untracked = False
            self.logger.warning(
                "Emissions are not tracked, for codecarbon is not installed: pip install 'pyexp-daemon[codecarbon]',"
                " or use_codecarbon=False"
            )

    def _show_changes(self, statements: Sequence[str]) -> None:
        for statement in statements:
            self.logger.info("table %s is changed: %s", self.config.database_configuration.table_name, statement)

    def _checked(self, rows: Iterable[Mapping[str, Any]], *, repeated: bool = False) -> Rows:
        from pyexp_daemon.space.grid import grid_of_rows

        database = self._load().database
        return grid_of_rows(rows, database.table.keyfields, database.provider, repeated=repeated)

    def _fill(self, rows: Grid | Grids | Rows) -> None:
        from pyexp_daemon.daemon import doorbell
        from pyexp_daemon.store import filling

        with self._store(create=self._is_sqlite) as store:
            ringing = doorbell.ringing(store, self._table)
            filled = filling.fill_table(store, self._table, rows, show=self._show_changes, advanced=ringing)
        for unmarked, owner in filled.duplicates:
            self.logger.warning("experiments %d and %d have equal parameters", unmarked, owner)
        self.logger.info("%d rows successfully added to database. %d rows were skipped.", filled.added, filled.there)

    def _here(self) -> Any:
        from pyexp_daemon.daemon.here import Here

        return Here(self._load(), name=self._name, credentials=self._credentials)

    def _function(self, function: ExperimentFunction) -> Any:
        from pyexp_daemon.worker.function import Function
        from pyexp_daemon.worker.pickled import name_of

        return Function(function, spec=name_of(function))

    def _run_as_guest(
        self,
        function: ExperimentFunction,
        slots: int,
        most: int | None,
        *,
        at_random: bool,
        ended: Callable[[Attempt], None],
    ) -> int:
        """Run a daemon until nothing is left, or so many were run; how many it ran."""
        from pyexp_daemon.daemon.guest import run_as_guest
        from pyexp_daemon.daemon.options import RunOptions
        from pyexp_daemon.daemon.resources import own_allocation

        options = RunOptions(
            function=None,
            slots=slots,
            name=self._name,
            until_empty=True,
            max_experiments=most,
            at_random=at_random,
            credentials=self._credentials,
            allocation=own_allocation(),
        )

        def tell(attempt: Attempt) -> None:
            self._show_error(attempt)
            ended(attempt)

        return run_as_guest(function, options, load=self._load, ended=tell)

    @contextmanager
    def _bar(self, most: int | None, *, shown: bool) -> Iterator[Callable[[Attempt], None]]:
        """A bar that advances with every attempt after which an experiment is over."""
        if not shown:
            yield lambda attempt: None
            return
        from pyexp_daemon.cli.progress import progress_bar
        from pyexp_daemon.store import reads

        with self._store() as store:
            statuses = store.read(reads.count_by_status(self._table))
        is_open = statuses.get("created", 0) + statuses.get("waiting", 0)
        over = ("done", "error", "paused", "cancelled")
        with progress_bar("experiments", total=is_open if most is None else min(most, is_open)) as advanced:
            yield lambda attempt: advanced(int(attempt.outcome in over))

    def _show_error(self, attempt: Attempt) -> None:
        if attempt.error:
            self.logger.error("experiment %d: %s", attempt.claim.experiment_id, attempt.error.rstrip())

    def _frame(self, name: str) -> pandas.DataFrame:
        from pyexp_daemon.export.frames import frame
        from pyexp_daemon.store import raw

        with self._store() as store:
            return frame(*raw.read(store, self._table, name))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row of the table: its keyfields and results as mappings, NULL as None."""

    id: int
    keyfields: Mapping[str, Any]
    status: str
    results: Mapping[str, Any]
    error: str | None

    @property
    def is_done(self) -> bool:
        return self.status == ExperimentStatus.DONE.value


def read_experiments(store: BlockingStore, table: Table, selection: Selection) -> Iterator[Experiment]:
    """The selected experiments, by ID."""
    from pyexp_daemon.store import discovery, reads

    results = discovery.parsed(table.resultfields)
    after = 0
    while rows := store.read(reads.experiments(table, selection, after=after)):
        for row in rows:
            yield Experiment(
                id=row["ID"],
                keyfields={name: row[name] for name in table.keyfields},
                status=row["status"] or "",
                results={name: column.from_database(row[name]) for name, column in results.items()},
                error=row["error"],
            )
        after = rows[-1]["ID"]


def _one(table: Table, found: Sequence[Experiment], experiment_id: int) -> Experiment:
    if not found:
        raise exceptions.SelectorError(
            f"table {table.name} has no experiment {experiment_id}", hint="get_experiments() are those that there are"
        )
    return found[0]


def select_states(table: Table, states: Sequence[str | ExperimentStatus]) -> Selection:
    """The experiments of these statuses, of which `all` is one; all when none is named."""
    from pyexp_daemon.store.selection import ALL, select

    names = [state.value if isinstance(state, ExperimentStatus) else state for state in states]
    return ALL if ExperimentStatus.ALL.value in names else select(table, statuses=names)


def _reset(store: BlockingStore, table: Table, selection: Selection, *, keep_snapshots: bool) -> int:
    from pyexp_daemon.store import edits

    after, count = 0, 0
    while seen := store.read(edits.seen(table, selection, after=after, limit=edits.CHUNK)):
        count += store.run(edits.reset(table, seen, keep_snapshots=keep_snapshots))
        after = seen[-1].id
    return count


def _logger(name: str, level: int | str, file: Path) -> logging.Logger:
    """The logger of that name; a new one writes to stderr and to the file."""
    is_new = name not in logging.root.manager.loggerDict
    logger = logging.getLogger(name)
    logger.setLevel(level)
    if is_new:
        file.parent.mkdir(parents=True, exist_ok=True)
        formatter = logging.Formatter("%(asctime)s  | %(name)s - %(levelname)-8s | %(message)s")
        for handler in (logging.StreamHandler(), logging.FileHandler(file)):
            handler.setFormatter(formatter)
            logger.addHandler(handler)
    return logger


def _count_jobs(n_jobs: int) -> int:
    if n_jobs == -1:
        from pyexp_daemon.daemon.resources import count_cpus, own_allocation

        return count_cpus(own_allocation())
    if n_jobs < 1:
        raise ValueError(f"n_jobs is {n_jobs}; it is how many experiments run at once, or -1 for as many as CPUs")
    return n_jobs
