"""ResultProcessor: what an experiment function receives to store results, log rows and progress while it runs.

Standard library only: a child process of a daemon imports this module, in whatever interpreter (3.9 or newer) it runs.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from pyexp_daemon import exceptions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

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
    ) -> None:
        self.experiment_id = experiment_id
        self.attempt = attempt
        self._recorder = recorder
        self._resultfields = resultfields
        self._logtables = logtables
        self._workdir = workdir
        self._buffer = _Buffer(recorder)
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
        """Whether this experiment was asked to come to an end: save what is worth saving, and return."""
        return self._recorder.should_stop()

    @property
    def workdir(self) -> Path:
        """A folder for this experiment alone, the same for all its attempts; it exists."""
        from pathlib import Path

        folder = Path(self._workdir)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

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

    def _refuse_strangers(self) -> None:
        if os.getpid() != self._pid:
            raise exceptions.UsageError(
                "the result processor works only in the process that runs the experiment function",
                hint="give the values back to that process, and store them there",
            )
        if self._over:
            raise exceptions.UsageError(
                f"experiment {self.experiment_id} is over; what a thread of it stores now belongs nowhere",
                hint="wait for your threads before the function returns",
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


class _Buffer:
    """Log rows and the latest progress, sent together: a second after the first of them at the latest."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.RLock()
        self._rows: list[LogRow] = []
        self._size_bytes = 0
        self._progress: tuple[float | None, str | None] | None = None
        self._timer: threading.Timer | None = None

    def add_rows(self, rows: list[LogRow]) -> None:
        with self._lock:
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
