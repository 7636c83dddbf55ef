"""A process beside the one that runs an experiment: it writes for the experiment as long as that is what it was."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.resources import result_processor, snapshot_report
from pyexp_daemon.model import LogRow, Report
from pyexp_daemon.result_processor import ResultProcessor
from pyexp_daemon.store import attached, lookups
from pyexp_daemon.store.attached import Attachment
from pyexp_daemon.store.tables import Table

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore


def attach(store: BlockingStore, config: Config, experiment_id: int) -> ResultProcessor:
    """A result processor for an experiment that is there, bound to its present lease, or status if nobody runs it.

    Its writes raise LeaseLost, and change nothing, once the experiment was finished, requeued or taken by another.

    Raises:
        SelectorError: there is no such experiment.
    """
    table = Table.of(config.database)
    seen = store.read(attached.attach(table, experiment_id))
    if seen is None:
        raise exceptions.SelectorError(
            f"table {table.name} has no experiment {experiment_id}", hint="pyexpd list shows what there is"
        )
    return result_processor(config, _Recorder(store, table, seen), experiment_id=experiment_id, attempt=seen.attempt)


class _Recorder:
    """Writes what is said to the database at once; shared by threads."""

    def __init__(self, store: BlockingStore, table: Table, seen: Attachment) -> None:
        self._store = store
        self._table = table
        self._seen = seen
        self._lock = threading.Lock()

    def send_snapshot(self, state_id: str, part: int, data: bytes, head: dict[str, Any] | None) -> None:
        """Store a part of a snapshot."""
        self._write(snapshot_report(self._seen.claim, state_id, part, data, head))

    def look_up(self, what: str, arguments: dict[str, Any]) -> Any:
        """What the database has."""
        with self._lock:
            return self._store.read(lookups.look_up(self._table, self._seen.experiment_id, what, arguments))

    def send_results(self, results: dict[str, Any]) -> None:
        """Store the results."""
        self._write(Report(claim=self._seen.claim, results=results))

    def send_logs(self, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        """Store log rows. They have no number that would tell a repeated write: what is lost on the way is an error."""
        logs = tuple(LogRow(logtable=table, seq=None, time=moment, columns=columns) for table, moment, columns in rows)
        self._write(Report(claim=self._seen.claim, logs=logs))

    def send_progress(self, fraction: float | None, description: str | None) -> None:
        """Nothing: how far the experiment is, says the process that runs it."""

    def should_stop(self) -> bool:
        """Whether the experiment moved on."""
        with self._lock:
            return self._store.read(attached.attach(self._table, self._seen.experiment_id)) != self._seen

    def _write(self, report: Report) -> None:
        with self._lock:
            if not self._store.run(attached.write(self._table, self._seen, report)):
                raise exceptions.LeaseLost(self._seen.experiment_id)
