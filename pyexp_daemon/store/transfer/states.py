"""Snapshots follow their experiments: part by part, each visible when it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyexp_daemon.model import Status
from pyexp_daemon.store import snapshots
from pyexp_daemon.store.reports import RECEIPT
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.transfer.delivering import moment, numbers_of_attempts, seconds
from pyexp_daemon.store.transfer.parcels import Parcel, Place
from pyexp_daemon.store.unit import Commit, Do, Steps, unit


def copy_snapshots(source: Place, target: Place, parcel: Parcel, experiment_id: int) -> int:
    """Copy the snapshots of one experiment that the target does not have, and let it be run; how many were."""
    table = target.table
    there = {head["state_id"] for head in target.store.read(snapshots.heads(table, experiment_id))}
    missing = [head for head in parcel.heads if head["state_id"] not in there]
    numbers = target.store.read(_numbers(table, parcel, experiment_id)) if missing else {}
    copied = 0
    for head in missing:
        head = {**head, "attempt": numbers.get(head["attempt"], head["attempt"])}
        for number in range(head["parts"]):
            part = snapshots.part(source.table, parcel.experiment.id, state_id=head["state_id"], number=number)
            data = source.store.read(part)
            if data is None:
                break  # replaced by a newer one meanwhile
            target.store.run(_put_part(table, experiment_id, head, number, data))
        else:
            copied += target.store.run(_put_head(table, experiment_id, head))
    target.store.run(_open(table, parcel, experiment_id))
    return copied


@unit
def _numbers(table: Table, parcel: Parcel, experiment_id: int) -> Steps[dict[int, int]]:
    """What the attempts of the source are called in the target."""
    numbers = (yield from numbers_of_attempts(table, [experiment_id]))[experiment_id]
    attempts = [dict(zip(RECEIPT, row, strict=True)) for row in parcel.attempts]
    return {facts["attempt"]: numbers[facts["token"]] for facts in attempts if facts["token"] in numbers}


@unit
def _open(table: Table, parcel: Parcel, experiment_id: int) -> Steps[None]:
    """Let an experiment be run that has waited for its snapshots; when it waited in the source, as it did there."""
    experiment = parcel.experiment
    waits = experiment.values["status"] == Status.WAITING
    if waits or experiment.values["status"] in (Status.CREATED, Status.RUNNING):
        now = (Status.WAITING.value, moment(table, experiment.not_before)) if waits else (Status.CREATED.value, None)
        yield Commit(
            [
                Do(
                    f"UPDATE {table.main} {table.dialect.primary} SET status = ?, pyexpd_not_before = ?"
                    f" WHERE ID = ? AND status = 'waiting' AND pyexpd_attempt = ? AND COALESCE(pyexpd_tries, '') = ?",
                    # Not one that waits here after a failure.
                    (*now, experiment_id, experiment.attempt, experiment.tries or ""),
                )
            ]
        )


@unit
def _put_part(table: Table, experiment_id: int, head: Mapping[str, Any], number: int, data: bytes) -> Steps[None]:
    row = (experiment_id, head["state_id"], number, head["attempt"], data)
    yield Commit([snapshots.put_parts(table, [row])])


@unit
def _put_head(table: Table, experiment_id: int, head: Mapping[str, Any]) -> Steps[int]:
    """Make a snapshot of parts that are there, in its place among those of the experiment; 0 when it cannot be done."""
    locked = yield Do(
        f"SELECT status FROM {table.main} {table.dialect.primary} WHERE ID = ? {table.dialect.for_update}",
        (experiment_id,),
    )
    parts = yield Do(
        f"SELECT COUNT(*) FROM {table.snapshot_parts} WHERE experiment_id = ? AND state_id = ?",
        (experiment_id, head["state_id"]),
    )
    if not locked.rows or locked.rows[0][0] == Status.RUNNING or parts.rows[0][0] < head["parts"]:
        return 0
    found = yield Do(
        f"SELECT sequence, {table.dialect.epoch('created')} FROM {table.snapshots} WHERE experiment_id = ?"
        f" ORDER BY sequence",
        (experiment_id,),
    )
    # Only the clocks can say which of two databases was further.
    later = [row[0] for row in found.rows if float(row[1]) > float(head["created"])]
    earlier = [row[0] for row in found.rows if row[0] not in later]
    sequence = max([head["sequence"], *(number + 1 for number in earlier)])
    if later and sequence >= min(later):  # by way of numbers that nobody has: each has to be the only one at any time
        shift = f"UPDATE {table.snapshots} SET sequence = -(sequence + ?) WHERE experiment_id = ? AND sequence >= ?"
        yield Do(shift, (sequence + 1 - min(later), experiment_id, min(later)))
        yield Do(
            f"UPDATE {table.snapshots} SET sequence = -sequence WHERE experiment_id = ? AND sequence < 0",
            (experiment_id,),
        )
    row = (
        experiment_id, sequence, head["attempt"], head["label"], moment(table, seconds(head["created"])),
        head["size_bytes"], head["parts"], head["state_id"],
    )  # fmt: skip
    yield Commit([snapshots.put_heads(table, [row])])
    return 1
