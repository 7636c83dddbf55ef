"""Every exception of the package: PyExperimenter's names and ours.

`exit_code` is what a command ends with, `hint` the one line that says what to type next.
Standard library only: a child process of a daemon imports this module.
"""

from __future__ import annotations

from typing import ClassVar


class PyExperimenterError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        message: one line, naming the place (file, key, table, column).
        hint: one line with the next thing to do, or None.
    """

    exit_code: ClassVar[int] = 64

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(PyExperimenterError):
    """A command was called with arguments that make no sense together, or without a needed confirmation."""


class SelectorError(UsageError):
    """A selector of experiments is malformed or names an unknown column or status."""


class ConfigError(PyExperimenterError, ValueError):
    """The configuration cannot be used."""


class NoConfigFileError(ConfigError, FileNotFoundError):
    """No configuration file was found."""


class InvalidConfigError(ConfigError):
    """A key of the configuration or credentials file is missing, unknown or has a wrong value."""


class InvalidValuesInConfiguration(ConfigError):
    """The values of a keyfield cannot be expanded or do not fit its type."""


class InvalidColumnError(InvalidConfigError):
    """A keyfield or result field is malformed."""


class InvalidLogtableError(InvalidConfigError):
    """A logtable is malformed."""


class MissingLogTableError(ConfigError):
    """A logtable is used that the configuration does not declare."""


class ParameterCombinationError(PyExperimenterError, ValueError):
    """Rows to fill do not match the keyfields."""


class FunctionError(PyExperimenterError):
    """The experiment function cannot be imported or called.

    Args:
        traceback: the child's traceback, or None when there is nothing to show beyond the message.
    """

    def __init__(self, message: str = "", *, hint: str | None = None, traceback: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.traceback = traceback


class DatabaseError(PyExperimenterError):
    """Something about the database is wrong."""

    exit_code = 74


class DatabaseCreationError(DatabaseError):
    """The database does not exist and cannot be created."""


class DatabaseConnectionError(DatabaseError):
    """The database is not reachable or refuses us; nothing was changed by the failed call."""


class DatabaseQueryError(DatabaseError):
    """The database refused a statement for a reason that repeating it does not cure."""


class ConnectionLost(DatabaseConnectionError):
    """The connection broke or a deadline passed while a unit of work ran.

    Args:
        session: which session of which server was lost, for the store's `kill`; None on SQLite.
        unknown: the COMMIT may have happened; the unit has to be read back or repeated under its token.
        timed_out: there was no answer in time, rather than a connection that broke.
    """

    def __init__(
        self,
        message: str,
        *,
        session: object | None = None,
        unknown: bool = False,
        timed_out: bool = False,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.session = session
        self.unknown = unknown
        self.timed_out = timed_out


class SshTunnelError(ConnectionLost):
    """The SSH tunnel to the database cannot be opened; a daemon tries again, as it does when the database is away."""


class RowRefused(DatabaseQueryError):
    """A value of one row cannot be stored; the unit was rolled back, the other rows of it are innocent."""


class MissingTable(DatabaseError):
    """The experiment table (or its database) does not exist; nothing was created."""


class TableError(DatabaseError):
    """The table cannot be used as it is; it was left as it was."""

    exit_code = 64


class EmptyFillDatabaseCallError(TableError):
    """There is nothing to fill: no rows, or a keyfield without any value."""


class CreatingTableError(TableError):
    """A table cannot be created."""


class TableHasWrongStructureError(CreatingTableError):
    """The table has other keyfields or result fields than the configuration."""


class InvalidResultFieldError(TableError):
    """A result was written to a column that is no result field."""


class InvalidLogFieldError(TableError):
    """A log row names a column its logtable does not have."""


class SchemaVersionError(DatabaseError):
    """The table's schema is newer or older than this version works on; it was left as it was."""

    exit_code = 69


class LeaseLost(DatabaseError):
    """Another daemon (or a person) owns this experiment now: stop the attempt and write nothing."""

    def __init__(self, experiment_id: int) -> None:
        super().__init__(f"experiment {experiment_id} is no longer held by this attempt")
        self.experiment_id = experiment_id


class SnapshotError(PyExperimenterError):
    """A snapshot cannot be read."""


class Fenced(DatabaseError):
    """This incarnation of the daemon was declared dead; nothing was written."""


class ChildrenCannotStart(PyExperimenterError):
    """The child processes of this daemon die before they can take an experiment."""

    exit_code = 70


class AlreadyRunning(PyExperimenterError):
    """A daemon of this name already runs on this host for this table."""


class ResultsNotStored(PyExperimenterError):
    """A daemon stopped while the database was away, or lost something that waited for it.

    Args:
        spooled: of how many experiments results wait in the spool.
        lost: of how many they could not be written there either, or not be read back; those run again.
        place: the folder of the spool.
    """

    exit_code = 75

    def __init__(self, *, spooled: int, lost: int, place: str) -> None:
        waiting = f"results of {_experiments(spooled)} wait in {place}"
        gone = f"results of {_experiments(lost)} are lost, because {place} could not be written or read"
        told = "; ".join(text for text, count in ((waiting, spooled), (gone, lost)) if count)
        super().__init__(
            f"not everything is stored: {told}",
            hint="the next `pyexpd run` for this table on this host stores them"
            if spooled
            else "these experiments run again",
        )
        self.spooled = spooled
        self.lost = lost


def _experiments(count: int) -> str:
    return f"{count} experiment{'' if count == 1 else 's'}"


class AllocationUnknown(PyExperimenterError):
    """A batch system does not say when the allocation ends.

    Args:
        command: what it was asked by.
        error: why not.
    """

    def __init__(self, command: str, error: str) -> None:
        super().__init__(f"{command}: {error}")
        self.command = command
        self.error = error


class NoExperimentsLeftException(PyExperimenterError):
    """There is no experiment left to execute."""


class NoPausedExperimentsException(PyExperimenterError):
    """There is no paused experiment with this id."""


def cause_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What really went wrong: an error that says so in words, if there is one."""
    leaves: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, PyExperimenterError)), leaves[0])
