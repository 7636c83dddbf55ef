"""What must hold whatever happened, checked from the outside: in the database, and in the journal of what really ran.

The experiment function notes in an append-only file when it starts and ends (`start|end experiment attempt pid time`),
and writes as results which attempt and process it was; so neither a wrong row nor a wrong receipt can vouch for itself.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyexp_daemon.model import CHARGED, Status
from tests.databases import Database

RESULTFIELDS = {"y": "DOUBLE", "by_attempt": "INT", "by_pid": "INT"}
"""What a table needs to be checked; the keyfield `x` is an integer, `y` is twice that."""

FUNCTION = '''
import os, time


def note(custom, word, rp):
    line = f"{word} {rp.experiment_id} {rp.attempt} {os.getpid()} {time.monotonic()}\\n"
    descriptor = os.open(custom["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def result(keyfields, rp):
    return {"y": keyfields["x"] * 2.0, "by_attempt": rp.attempt, "by_pid": os.getpid()}


def careful(keyfields, rp, custom):
    """Sleeps for `seconds`, then tells who it was."""
    note(custom, "start", rp)
    time.sleep(custom.get("seconds", 0))
    note(custom, "end", rp)
    return result(keyfields, rp)
'''
"""The function `careful`, and the parts of others like it."""

_ENDED = frozenset({Status.DONE, Status.ERROR, Status.PAUSED, Status.CANCELLED})
_NOT_ACCEPTED = frozenset({"lost", "superseded"})
_MAY_RUN_AGAIN = frozenset({"error", "timeout", "stalled", "crash", "lost", "released", "superseded"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One experiment as its table shows it."""

    id: int
    x: int
    status: str
    attempt: int
    tries: Mapping[str, int]
    daemon: int | None
    token: str | None
    cancel: int
    y: float | None
    by_attempt: int | None
    by_pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """How one attempt ended, as the attempts table shows it."""

    experiment: int
    attempt: int
    token: str
    pid: int | None
    outcome: str


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of the function, as its own journal shows it; `ended` is None when it never came to its end."""

    experiment: int
    attempt: int
    pid: int
    started: float
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Everything the verdict rests on."""

    rows: Mapping[int, Row]
    receipts: Mapping[int, Sequence[Receipt]]
    runs: Mapping[int, Sequence[Run]]
    living: Collection[int]
    """The numbers of the daemon rows that are live or draining."""

    def outcomes(self, experiment: int, attempt: int) -> set[str]:
        """What the receipts say of an attempt."""
        return {receipt.outcome for receipt in self.receipts.get(experiment, ()) if receipt.attempt == attempt}


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What people did, and what was promised, so that only what must not be counts as a violation."""

    experiments: Collection[int]
    """The numbers of all experiments there must be."""
    edited: Collection[int] = field(default_factory=frozenset)
    """Those that a person reset, edited or cancelled: they may run again, and their tries are not what they were."""
    finished: bool = True
    """Nothing is left to do."""
    may_overlap: bool = True
    """A run that lost its lease may overlap the next one; not with `on_lease_lost: kill`."""
    tries: Mapping[str, int] = field(default_factory=lambda: {"stalled": 2, "crash": 3, "lost": 20})
    """How many attempts may end so before the experiment becomes an error; 1 for what is not named."""


def read(database: Database, journal: Path, *, table: str = "exp") -> Records:
    """The records of a table whose function keeps that journal."""
    columns = "ID, x, status, pyexpd_attempt, pyexpd_tries, pyexpd_daemon, pyexpd_token, pyexpd_cancel"
    found = database.query(f"SELECT {columns}, y, by_attempt, by_pid FROM {table}")
    receipts: dict[int, list[Receipt]] = defaultdict(list)
    for experiment, attempt, token, pid, outcome in database.query(
        f"SELECT experiment_id, attempt, token, pid, outcome FROM {table}__pyexpd_attempts"
    ):
        receipts[experiment].append(
            Receipt(experiment=experiment, attempt=attempt, token=token, pid=pid, outcome=outcome)
        )
    living = database.query(f"SELECT id FROM {table}__pyexpd_daemons WHERE state IN ('live', 'draining')")
    return Records(
        rows={row[0]: _row(*row) for row in found},
        receipts=receipts,
        runs=read_journal(journal),
        living={number for (number,) in living},
    )


def _row(
    number: int,
    x: int,
    status: str,
    attempt: int,
    tries: str | None,
    daemon: int | None,
    token: str | None,
    cancel: int,
    y: float | None,
    by_attempt: int | None,
    by_pid: int | None,
) -> Row:
    return Row(
        id=number,
        x=x,
        status=status,
        attempt=attempt,
        tries=json.loads(tries) if tries else {},
        daemon=daemon,
        token=token,
        cancel=cancel,
        y=y,
        by_attempt=by_attempt,
        by_pid=by_pid,
    )


def read_journal(journal: Path) -> dict[int, list[Run]]:
    """Every run of every experiment, by its start."""
    runs: dict[int, list[Run]] = defaultdict(list)
    running: dict[tuple[int, int, int], Run] = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        word, experiment, attempt, pid, moment = line.split()
        key = int(experiment), int(attempt), int(pid)
        if word == "start":
            run = Run(experiment=key[0], attempt=key[1], pid=key[2], started=float(moment))
            runs[run.experiment].append(run)
            running[key] = run
        else:
            running.pop(key).ended = float(moment)
    return {experiment: sorted(found, key=lambda run: run.started) for experiment, found in runs.items()}


def violations(records: Records, circumstances: Circumstances) -> list[str]:
    """What does not hold, one line each with the invariant it breaks; [] when everything does."""
    found = [f"I1: experiment {number} is gone" for number in set(circumstances.experiments) - set(records.rows)]
    found += [f"I1: experiment {number} is new" for number in set(records.rows) - set(circumstances.experiments)]
    for number, row in sorted(records.rows.items()):
        by_person = number in circumstances.edited
        found += [
            f"{text} (experiment {number}, {row.status}, attempt {row.attempt})"
            for text in (
                *_status(row, records, circumstances),
                *_result(row, records),
                *_receipts(row, records, by_person=by_person),
                *_attempts(row, records, by_person=by_person),
                *_overlaps(records.runs.get(number, ()), records, circumstances, by_person=by_person),
                *(() if by_person else _budget(row, records, circumstances)),
            )
        ]
    return found


def check(database: Database, journal: Path, circumstances: Circumstances) -> Records:
    """The records, after everything in them was found to hold.

    Raises:
        AssertionError: with the violations, at most twenty.
    """
    records = read(database, journal)
    found = violations(records, circumstances)
    assert not found, "\n".join([f"{len(found)} violations", *found[:20]])
    return records


def _status(row: Row, records: Records, circumstances: Circumstances) -> Iterable[str]:
    if row.status not in set(Status):
        yield f"I1: unknown status {row.status!r}"
    if circumstances.finished and row.status not in _ENDED:
        yield "I1: it did not come to its end"
    if row.status == Status.RUNNING and row.token is None:
        yield "I3: running without a token"
    elif row.status == Status.RUNNING and row.daemon not in records.living:
        yield f"I3: running under daemon {row.daemon}, which is dead"
    if row.status != Status.RUNNING and circumstances.finished and (row.token or row.daemon or row.cancel):
        yield "I3: a token, a daemon or a wish to cancel was left behind"


def _result(row: Row, records: Records) -> Iterable[str]:
    """What is stored is the whole result of the one attempt that holds the row, and that attempt really ran."""
    if row.status != Status.DONE:
        return
    if row.y != 2.0 * row.x:
        yield f"I2: y is {row.y}, not {2.0 * row.x}"
    if row.by_attempt != row.attempt:
        yield f"I2: the result is of attempt {row.by_attempt}: a late write was accepted"
    accepted = [r for r in records.receipts.get(row.id, ()) if r.attempt == row.attempt and r.outcome == "done"]
    if len(accepted) != 1:
        yield f"I2: {len(accepted)} receipts say that this attempt is done"
    elif accepted[0].pid != row.by_pid:
        yield f"I2: the receipt is of process {accepted[0].pid}, the result of {row.by_pid}"
    ran = records.runs.get(row.id, ())
    if not any((run.attempt, run.pid) == (row.by_attempt, row.by_pid) and run.ended is not None for run in ran):
        yield "I2: nobody computed the result"


def _receipts(row: Row, records: Records, *, by_person: bool) -> Iterable[str]:
    receipts = records.receipts.get(row.id, ())
    for attempt, count in Counter(r.attempt for r in receipts if r.outcome not in _NOT_ACCEPTED).items():
        if count > 1:
            yield f"I2: attempt {attempt} was accepted {count} times"
    if not by_person and sum(r.outcome == "done" for r in receipts) > 1:
        yield "I2: it was done more than once"
    if any(r.attempt > row.attempt for r in receipts):
        yield "I2: a receipt is of an attempt that was never claimed"
    if not by_person and row.status == Status.DONE and not any(r.outcome == "done" for r in receipts):
        yield "I2: done without a receipt"


def _attempts(row: Row, records: Records, *, by_person: bool) -> Iterable[str]:
    """Every run is an attempt of its own and has its receipt; what was done is not run again."""
    runs = records.runs.get(row.id, ())
    for attempt, count in Counter(run.attempt for run in runs).items():
        if count > 1:
            yield f"I2: attempt {attempt} ran {count} times"
        if attempt > row.attempt:
            yield f"I2: attempt {attempt} ran and was never claimed"
    if by_person:
        return
    is_held = row.status == Status.RUNNING
    newest = max((run.attempt for run in runs), default=0)  # one that was lost may begin, late, after its successor
    for run in runs:
        outcomes = records.outcomes(row.id, run.attempt)
        if not outcomes and not (is_held and run.attempt == row.attempt):
            yield f"I1: attempt {run.attempt} ran and has no receipt"
        if run.attempt < newest and not outcomes & _MAY_RUN_AGAIN:
            yield f"I2: it ran again after attempt {run.attempt}, which was {', '.join(sorted(outcomes)) or 'held'}"


def _overlaps(runs: Sequence[Run], records: Records, circumstances: Circumstances, *, by_person: bool) -> Iterable[str]:
    for place, earlier in enumerate(runs):
        for later in runs[place + 1 :]:
            if earlier.ended is None or later.started >= earlier.ended:
                continue
            overtaken = min(earlier.attempt, later.attempt)
            lost = records.outcomes(earlier.experiment, overtaken) & _NOT_ACCEPTED
            if not (circumstances.may_overlap and (lost or by_person)):
                yield f"I8: attempts {earlier.attempt} and {later.attempt} ran at the same time"


def _budget(row: Row, records: Records, circumstances: Circumstances) -> Iterable[str]:
    # Who is superseded was taken for lost before, and charged so: the receipt says what came last.
    outcomes = ("lost" if r.outcome == "superseded" else r.outcome for r in records.receipts.get(row.id, ()))
    charged = Counter(outcome for outcome in outcomes if outcome in set(CHARGED))
    if dict(charged) != dict(row.tries):
        yield f"I6: charged {dict(row.tries)}, but its attempts ended so: {dict(charged)}"
    spent = [outcome for outcome, count in row.tries.items() if count >= circumstances.tries.get(outcome, 1)]
    if row.status == Status.ERROR and not spent:
        yield f"I6: an error, although its tries are not spent: {dict(row.tries)}"
    if row.status in (Status.CREATED, Status.WAITING) and spent:
        yield f"I6: not an error, although its tries are spent: {dict(row.tries)}"
