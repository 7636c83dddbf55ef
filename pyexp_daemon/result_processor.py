"""ResultProcessor: what an experiment function receives to store results, log rows and progress while it runs.

Standard library only: a child process of a daemon imports this module, in whatever interpreter (3.9 or newer) it runs.
"""

from __future__ import annotations

import operator
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from pyexp_daemon import exceptions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from pyexp_daemon.snapshot import Snapshot, Snapshots

LogRow = tuple[str, float, dict[str, Any]]
"""One row of a logtable: the table, when it was logged (seconds since the epoch), its columns."""

BUFFER_S = 1.0
"""How long log rows and progress may wait for others to travel with."""

BUFFER_BYTES = 256 * 1024
"""How much waiting data is sent at once, whatever the clock says (estimated)."""

_UNCHANGED = (bool, int, float, bytes, type(None))


class Recorder(Protocol):
    """Where the results, log rows and progress of one running experiment go."""

    def send_results(self, results: dict[str, Any]) -> None:
        """Store the results; return when they are durable, raise when they are refused."""

    def send_snapshot(self, state_id: str, part: int, data: bytes, head: dict[str, Any] | None) -> None:
        """Store a part of a snapshot's state, as `send_results` stores results.

        Args:
            state_id: the name of the state, 32 hex digits.
            part: its place among the parts, from 0.
            head: with the last part, what makes it a snapshot: `label`, `created` (seconds since the epoch),
                `size_bytes`, `parts` (how many) and `keep` (how many of this label may stay, None for all).
        """

    def look_up(self, what: str, arguments: dict[str, Any]) -> Any:
        """What the database has, see `store/lookups.py`; waits while it is away."""

    def send_logs(self, rows: list[LogRow]) -> None:
        """Store log rows (logtable, seconds since the epoch, columns) in this order, some time soon."""

    def send_progress(self, fraction: float | None, description: str | None) -> None:
        """Show how far the experiment is."""

    def should_stop(self) -> bool:
        """Whether the experiment was asked to come to an end; answers at once."""


class ResultProcessor:
    """Stores what one experiment has to say, under the lease of its attempt. Safe to use from several threads.

    Args:
        recorder: where everything goes.
        experiment_id: the experiment's row.
        attempt: which run of the experiment this is, from 1.
        resultfields: the fields that `process_results` may write.
        logtables: for every logtable its columns.
        workdir: the folder for this experiment; made when first asked for.
        store: gives what the configuration's `Store` makes in this process; None without one.
        ends: says when the allocation ends in which this runs, seconds since the epoch; None without an end.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        experiment_id: int,
        attempt: int,
        resultfields: Collection[str],
        logtables: Mapping[str, Collection[str]],
        workdir: str,
        store: Callable[[], Mapping[str, Any]] | None = None,
        ends: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.experiment_id = experiment_id
        self.attempt = attempt
        self._recorder = recorder
        self._resultfields = resultfields
        self._logtables = logtables
        self._workdir = workdir
        self._store = store
        self._ends = ends
        self._buffer = _Buffer(recorder)
        self._saving = threading.Lock()
        self._pid = os.getpid()
        self._over = False

    def process_results(self, results: dict[str, Any]) -> None:
        """Write result fields; when this returns they are stored, and survive whatever happens next.

        Writing a field again replaces its value.

        Raises:
            InvalidResultFieldError: a key is no result field; nothing was written.
            TypeError: a value is of a type that no column holds; nothing was written.
            LeaseLost: this experiment belongs to another attempt now; nothing was written, come to an end.
        """
        self._refuse_strangers()
        stored = self.checked_results(results)
        self._buffer.flush()
        if stored:
            self._recorder.send_results(stored)

    def process_logs(self, logs: dict[str, dict[str, Any]]) -> None:
        """Append one row to each of these logtables, dated now.

        Rows are written in order, within about a second; what `logs` holds is copied, never changed.

        Args:
            logs: `{logtable: {column: value}}`.

        Raises:
            MissingLogTableError: the configuration declares no such logtable; nothing was written.
            InvalidLogFieldError: the logtable has no such column; nothing was written.
            TypeError: a value is of a type that no column holds; nothing was written.
        """
        self._refuse_strangers()
        now = time.time()
        self._buffer.add_rows([(table, now, self._checked_columns(table, columns)) for table, columns in logs.items()])

    def progress(self, fraction: float | None = None, description: str | None = None) -> None:
        """Show how far the experiment is; as cheap as you like to call, the latest of each second is shown.

        Args:
            fraction: 0 to 1, or None for unknown.
            description: a few words, for example `"epoch 3 of 10"`.
        """
        self._refuse_strangers()
        self._buffer.set_progress(
            None if fraction is None else float(fraction), None if description is None else str(description)
        )

    @property
    def should_stop(self) -> bool:
        """Whether this experiment was asked to come to an end.

        Then save a snapshot if you can, and return `ExperimentStatus.CREATED`, "again please": the experiment is to be
        run again, by whoever has time for it, and this attempt is not counted against it.
        """
        self._refuse_forks()
        return self._recorder.should_stop()

    def remaining_time(self) -> float | None:
        """Seconds until the allocation of a batch system ends in which this runs, 0 after that; None without an end.

        Some time before it `should_stop` becomes true: `Daemon.drain_timeout`, `Limits.grace` and ten seconds. A limit
        that is changed meanwhile is heard of within some minutes, where a daemon runs the experiment.
        """
        ends = self._ends()
        return None if ends is None else max(0.0, ends - time.time())

    def save_snapshot(
        self, state: Any, label: str | None = None, keep: int | None = None, *, allow_pickle: bool = False
    ) -> None:
        """Save a state from which a later attempt of this experiment can go on; when this returns, it is stored.

        What was logged before is stored before it. Once it is stored, crashes and losses of the node before it do not
        count any more: the experiment has got further.

        Args:
            state: numbers, text, bytes, dates, NumPy arrays, and lists, tuples, sets and dicts of them.
            label: what to call it, at most 255 characters.
            keep: so many of this label stay, the newest; 1 is enough to resume from. None keeps all.
            allow_pickle: pickle what is of another type. It has to be allowed again when it is read.

        Raises:
            TypeError: the state has a value of a type that no snapshot holds; nothing was saved.
            ValueError: the label is too long, or `keep` is not positive; nothing was saved.
            LeaseLost: this experiment belongs to another attempt now; nothing was saved, come to an end.
        """
        import secrets

        from pyexp_daemon import snapshot

        self._refuse_strangers()
        _check_snapshot(label, keep)
        created = time.time()
        buffers = snapshot.encode(state, allow_pickle=allow_pickle)
        size_bytes, parts = sum(map(len, buffers)), snapshot.count_parts(buffers)
        head = {"label": label, "created": created, "size_bytes": size_bytes, "parts": parts, "keep": keep}
        state_id = secrets.token_hex(16)
        with self._saving:  # parts that belong to no snapshot go when the next one is complete
            self._buffer.flush()
            for number, part in enumerate(snapshot.parts_of(buffers)):
                self._recorder.send_snapshot(state_id, number, part, head if number == parts - 1 else None)

    def latest_snapshot(self, label: str | None = None, *, allow_pickle: bool = False) -> Snapshot | None:
        """The newest snapshot of this experiment, whichever attempt saved it; None when there is none.

        It has `.state`, `.label`, `.created`, `.sequence`, `.attempt` and `.size_bytes`.

        Args:
            label: only those of this label.
            allow_pickle: unpickle what was pickled. Whoever can write to the database can run any code here then.

        Raises:
            SnapshotError: it cannot be read.
        """
        _check_text(label, "label")
        return self._snapshots().latest(label=label, allow_pickle=allow_pickle)

    def snapshots(self, *, allow_pickle: bool = False) -> list[Snapshot]:
        """All snapshots of this experiment, the newest first; each state is read when it is asked for."""
        return self._snapshots().all(allow_pickle=allow_pickle)

    def results_of(self, experiment_id: int, table: str | None = None) -> dict[str, Any] | None:
        """The results of another experiment; None as long as it is not done.

        Args:
            table: another experiment table of the same database; None for this one.

        Raises:
            SelectorError: there is no such experiment, or no such table.
        """
        self._refuse_strangers()
        _check_text(table, "table")
        arguments = {"experiment_id": operator.index(experiment_id), "table": table}
        found: dict[str, Any] | None = self._recorder.look_up("results_of", arguments)
        return found

    def results_where(self, table: str | None = None, /, **keyfields: Any) -> list[dict[str, Any]]:
        """The experiments that are done and have these parameters, by ID: `ID`, keyfields and results of each.

        Args:
            table: another experiment table of the same database; None for this one.
            keyfields: values as the configuration would give them; none for all experiments that are done.

        Raises:
            SelectorError: there is no such keyfield, or no such table.
        """
        self._refuse_strangers()
        _check_text(table, "table")
        found: list[dict[str, Any]] = []
        nested = {name: value for name, value in keyfields.items() if isinstance(value, (dict, list))}  # JSON
        others = {name: value for name, value in keyfields.items() if name not in nested}
        wanted = {**nested, **storable(others, place="keyfield")}
        while True:
            arguments = {"table": table, "keyfields": wanted, "after": found[-1]["ID"] if found else 0}
            page = self._recorder.look_up("results_where", arguments)
            if not page:
                return found
            found += page

    @property
    def workdir(self) -> Path:
        """A folder for this experiment alone, the same for all its attempts; it exists."""
        from pathlib import Path

        folder = Path(self._workdir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def store(self) -> Mapping[str, Any]:
        """What is loaded once per process and shared by its experiments, such as a data set; it cannot be changed.

        Raises:
            UsageError: the configuration has no `Store`.
            FunctionError: it cannot be made.
        """
        if self._store is None:
            hint = "Store: my_project.train:load in the configuration, below PY_EXPERIMENTER"
            raise exceptions.UsageError("there is no store", hint=hint)
        return self._store()

    def flush(self) -> None:
        """Send what is still buffered; done by itself every second and at the end."""
        self._buffer.flush()

    def close(self) -> None:
        """Send what is still buffered; the experiment is over, and whatever comes later is refused."""
        self._over = True
        self._buffer.flush()

    def checked_results(self, results: dict[str, Any]) -> dict[str, Any]:
        """The results as they will be stored.

        Raises:
            InvalidResultFieldError: a key is no result field.
            TypeError: a value is of a type that no column holds.
        """
        unknown = [str(name) for name in results if name not in self._resultfields]
        if unknown:
            raise exceptions.InvalidResultFieldError(
                f"no such result field: {', '.join(unknown)}",
                hint=f"result fields are: {', '.join(self._resultfields) or 'none'}",
            )
        return storable(results, place="result field")

    def _snapshots(self) -> Snapshots:
        from pyexp_daemon.snapshot import Snapshots

        self._refuse_strangers()
        return Snapshots(lambda what, **arguments: self._recorder.look_up(what, arguments))

    def _refuse_strangers(self) -> None:
        self._refuse_forks()
        if self._over:
            raise exceptions.UsageError(
                f"experiment {self.experiment_id} is over; what a thread of it stores now belongs nowhere",
                hint="wait for your threads before the function returns",
            )

    def _refuse_forks(self) -> None:
        """A forked process shares the channel with this one, and would take its answers."""
        if os.getpid() != self._pid:
            raise exceptions.UsageError(
                "the result processor works only in the process that runs the experiment function",
                hint="give the values back to that process, and store them there",
            )

    def _checked_columns(self, table: str, columns: dict[str, Any]) -> dict[str, Any]:
        if table not in self._logtables:
            raise exceptions.MissingLogTableError(
                f"no such logtable: {table}", hint=f"logtables are: {', '.join(self._logtables) or 'none'}"
            )
        unknown = [str(name) for name in columns if name not in self._logtables[table]]
        if unknown:
            raise exceptions.InvalidLogFieldError(
                f"logtable {table} has no column {', '.join(unknown)}",
                hint=f"its columns are: {', '.join(self._logtables[table])}",
            )
        return storable(columns, place=f"column of logtable {table}")


def _check_text(value: Any, what: str) -> None:
    if not (value is None or isinstance(value, str)):
        raise TypeError(f"{what} is of type {type(value).__name__}; it is text, or None")


def _check_snapshot(label: Any, keep: Any) -> None:
    _check_text(label, "label")
    if label is not None and (len(label) > 255 or encodable(label) != label):
        raise ValueError(f"{label!r} is no label of a snapshot: text of at most 255 characters")
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ValueError(f"keep is {keep!r}; so many snapshots of a label are to stay, at least 1")


class _Buffer:
    """Log rows and the latest progress, sent together: a second after the first of them at the latest."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.RLock()
        self._rows: list[LogRow] = []
        self._size_bytes = 0
        self._progress: tuple[float | None, str | None] | None = None
        self._timer: threading.Timer | None = None
        self._refusal: exceptions.PyExperimenterError | None = None

    def add_rows(self, rows: list[LogRow]) -> None:
        with self._lock:
            self._raise_refusal()
            self._rows += rows
            self._size_bytes += sum(_size_bytes(columns) for _, _, columns in rows)
            if self._size_bytes > BUFFER_BYTES:
                self.flush()
            else:
                self._flush_soon()

    def set_progress(self, fraction: float | None, description: str | None) -> None:
        with self._lock:
            self._progress = (fraction, description)
            self._flush_soon()

    def flush(self) -> None:
        """Send everything; while one thread sends, others wait, so that the order stays."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            rows, self._rows, self._size_bytes = self._rows, [], 0
            progress, self._progress = self._progress, None
            self._raise_refusal()
            if rows:
                self._recorder.send_logs(rows)
            if progress is not None:
                self._recorder.send_progress(*progress)

    def _flush_soon(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(BUFFER_S, self._flush_in_time)
            self._timer.daemon = True
            self._timer.start()

    def _flush_in_time(self) -> None:
        try:
            self.flush()
        except OSError:
            return  # the daemon is gone: the next call, or the end of the experiment, meets the same fault
        except exceptions.PyExperimenterError as error:
            with self._lock:
                self._refusal = self._refusal or error  # for the function: it is raised at its next call, or its end

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal


def storable(fields: Mapping[str, Any], *, place: str) -> dict[str, Any]:
    r"""A copy of `fields` with values that a column can hold: numbers, text, bytes, dates, Decimals, None.

    Scalars of numpy and its kin are unwrapped; characters that no encoding holds are written as `\udc80`.

    Args:
        fields: values by name, as the user gave them.
        place: what a key is, for the error text: `result field`.

    Raises:
        TypeError: a value is of another type; the text names the field and the type.
    """
    return {str(name): _storable_value(value, f"{place} {name}") for name, value in fields.items()}


def _storable_value(value: Any, place: str) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, _UNCHANGED):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if _is_scalar_of_an_array_library(value):
        return _storable_value(value.item(), place)
    return _storable_date_or_decimal(value, place)


def _is_scalar_of_an_array_library(value: Any) -> bool:
    return getattr(value, "shape", None) == () and hasattr(value, "item") and type(value.item()) is not type(value)


def _storable_date_or_decimal(value: Any, place: str) -> Any:
    import datetime
    import decimal

    if isinstance(value, datetime.datetime):
        not_a_time = value != value  # pandas.NaT, a datetime of a kind
        return None if not_a_time else datetime.datetime.combine(value.date(), value.timetz())
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)):
        return value
    raise TypeError(
        f"{place} cannot hold a value of type {type(value).__name__}; store a number, text, bytes, a date or None"
    )


def encodable(text: str) -> str:
    r"""The text itself; a character that UTF-8 cannot hold (a lone surrogate) is written as `\udc80`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text


def _size_bytes(columns: dict[str, Any]) -> int:
    return 64 + sum(len(value) if isinstance(value, (str, bytes)) else 16 for value in columns.values())
