"""Experiments from one database into another: matched by their fingerprints, with all that belongs to them.

A chunk of experiments is one transaction, and a repeated transfer finds what it did before, so one that was killed goes
on when it is called again. Snapshots follow, part by part, each visible when it is complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyexp_daemon.store import filling
from pyexp_daemon.store.selection import ALL, Selection
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.transfer.delivering import deliver
from pyexp_daemon.store.transfer.fitting import adapted, check_fits, portable
from pyexp_daemon.store.transfer.judging import Conflict, Judged, Target, Verdict, judge, look
from pyexp_daemon.store.transfer.parcels import Experiment, Place, chunks, columns_of_emissions, count, marked, pack
from pyexp_daemon.store.transfer.states import copy_snapshots

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

__all__ = [
    "Conflict",
    "Place",
    "Transferred",
    "Verdict",
    "adapted",
    "count",
    "plan",
    "portable",
    "transfer",
]


@dataclass(slots=True)
class Transferred:
    """What a transfer did, or would do."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    conflicts: list[Conflict] = field(default_factory=list)
    snapshots: int = 0

    def note(self, judged: Iterable[Judged]) -> None:
        for verdict, _, conflict in judged:
            self.verdicts[verdict] += 1
            if conflict is not None:
                self.conflicts.append(conflict)


Advanced = Callable[[int], None]
"""Told after every chunk how many experiments it had."""


def plan(
    source: Place,
    table: Table,
    store: BlockingStore | None,
    *,
    selection: Selection = ALL,
    prefer: str | None = None,
    advanced: Advanced = lambda count: None,
) -> Transferred:
    """What a transfer would do; nothing is changed.

    Args:
        table: the target's, which may be missing, or not yet adopted.
        store: of the target; None: there is not even a database.
        selection, prefer: see `transfer`.

    Raises:
        TableHasWrongStructureError, SchemaVersionError: nothing could be transferred.
    """
    there = _look(source, table, store, prefer)
    done = Transferred()
    for chunk in _without_duplicates(source, selection, done, advanced):
        judged: list[Judged] = [(Verdict.ADDED, 0, None)] * len(chunk)
        if store is not None:
            judged = store.read(judge(there, chunk))
        done.note(judged)
    return done


def transfer(
    source: Place,
    target: Place,
    *,
    selection: Selection = ALL,
    prefer: str | None = None,
    advanced: Advanced = lambda count: None,
) -> Transferred:
    """Bring the experiments of the source into the target, whose tables are there, with fingerprints on every row.

    Args:
        selection: of the source.
        prefer: whose results stay where both are done and differ: `source`, `target`, or nobody's: then those are
            conflicts, and left alone.

    Raises:
        RowRefused: the target cannot store an experiment, which is named; those before it are there.
        TableHasWrongStructureError, SchemaVersionError: nothing can be transferred.
    """
    there = _look(source, target.table, target.store, prefer)
    done = Transferred()
    measured = source.store.read(columns_of_emissions(source.table)) if source.table.codecarbon else ()
    for chunk in _without_duplicates(source, selection, done, advanced):
        parcels = source.store.read(pack(source.table, chunk, measured, wanted=target.table.logtables))
        with filling.alone(target.store, target.table):
            judged = deliver(target.store, there, parcels, measured)
        for parcel, (verdict, target_id, _) in zip(parcels, judged, strict=True):
            if parcel.heads and verdict not in (Verdict.RUNNING, Verdict.CONFLICT):
                done.snapshots += copy_snapshots(source, target, parcel, target_id)
        done.note(judged)
    return done


def _look(source: Place, table: Table, store: BlockingStore | None, prefer: str | None) -> Target:
    there = look(table, store, source, prefer=prefer)
    check_fits(source, there, store)
    return there


def _without_duplicates(
    source: Place, selection: Selection, done: Transferred, advanced: Advanced
) -> Iterator[list[Experiment]]:
    """The selected experiments in chunks, each with its fingerprint; those that the source has twice are counted."""
    seen: set[bytes] = set()
    for chunk in chunks(source, selection):
        unique = marked(source, chunk, seen)
        if len(unique) < len(chunk):
            done.verdicts[Verdict.DUPLICATE] += len(chunk) - len(unique)
        yield unique
        advanced(len(chunk))
