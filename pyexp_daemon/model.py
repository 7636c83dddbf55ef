"""The data the parts of the system hand to each other: plain, frozen, without behaviour that needs a database."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """What the column `status` of an experiment may say."""

    CREATED = "created"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    ERROR = "error"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How one attempt ended: the receipt in the attempts table."""

    DONE = "done"
    ERROR = "error"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    CRASH = "crash"
    LOST = "lost"
    RELEASED = "released"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    PAUSED = "paused"


CHARGED = (Outcome.ERROR, Outcome.TIMEOUT, Outcome.STALLED, Outcome.CRASH, Outcome.LOST)
"""The outcomes that use up a try of their own budget; all others are free."""

TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.CREATED: frozenset({Status.RUNNING, Status.CANCELLED}),
    Status.WAITING: frozenset({Status.CREATED, Status.CANCELLED}),
    Status.RUNNING: frozenset(Status) - {Status.RUNNING},
    Status.DONE: frozenset({Status.CREATED}),
    Status.ERROR: frozenset({Status.CREATED, Status.CANCELLED}),
    Status.PAUSED: frozenset({Status.CREATED, Status.CANCELLED}),
    Status.CANCELLED: frozenset({Status.CREATED}),
}
"""The arrows of the state diagram in docs/protocol.md: from a status to those it may become."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """One start of one daemon: its row in the daemons table. `uuid` is random, 32 hex digits."""

    id: int
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to run one experiment: valid while the row still carries `token` and `start_date`."""

    experiment_id: int
    attempt: int
    token: str
    start_date: str
    keyfields: Mapping[str, Any]
    order: int = 0

    @property
    def key(self) -> tuple[int, str]:
        """Experiment and token: a daemon may hold one experiment twice, when it was reset while it ran here."""
        return self.experiment_id, self.token


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One finished run of one experiment, ready to be written.

    `started` and `ended` are seconds since the epoch (UTC). `results` holds result fields not yet written;
    `error` is the text for people (a traceback for an exception), `log_tail` the last output of the run.
    `emissions` has what codecarbon measured, by the columns of `<table>_codecarbon`; None: nothing.
    """

    claim: Claim
    outcome: Outcome
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    error: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: int | None = None
    code_version: str | None = None
    log_tail: str | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    emissions: Mapping[str, Any] | None = None


def make_token() -> str:
    """A fresh 16-byte random token as 32 hex digits, for a lease or an incarnation."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """One row for a logtable.

    `seq` counts those of an attempt from 1, so that a repeated write stores it once; None: it is never repeated.
    """

    logtable: str
    seq: int | None
    time: float
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """A part of a snapshot's state; `state_id` names the state (32 hex digits), `part` its place from 0."""

    state_id: str
    part: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotHead:
    """What makes a snapshot of a state whose parts are all stored.

    `created` is seconds since the epoch, `parts` how many there are, `keep` how many snapshots of the label may stay.
    """

    state_id: str
    label: str | None
    created: float
    size_bytes: int
    parts: int
    keep: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is to be written for one held experiment: results, log rows, snapshots while it runs, and its end."""

    claim: Claim
    results: Mapping[str, Any] = field(default_factory=dict)
    logs: tuple[LogRow, ...] = ()
    parts: tuple[SnapshotPart, ...] = ()
    snapshots: tuple[SnapshotHead, ...] = ()
    end: Attempt | None = None


class Verdict(StrEnum):
    """What the database said to a report."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    """An earlier write of the same report was committed although its reply was lost; nothing was written again."""
    SUPERSEDED = "superseded"
    """The attempt no longer holds the experiment; the row was not touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often an experiment may end badly, by outcome, and how long it waits before the next attempt (seconds)."""

    tries: Mapping[str, int]
    first_s: float
    longest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One incarnation of a daemon as its row in the daemons table shows it. Times are seconds since the epoch, UTC."""

    id: int
    incarnation: str
    name: str
    host: str
    host_id: str
    boot_id: str
    pid: int
    pid_start: str
    version: str
    slots: int
    state: str
    beat: int
    lease_s: float
    started: float
    beat_at: float
    lock_inode: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it said of itself with its last beat, see `daemon/facts.py`; empty before that, and of older versions."""

    @property
    def me(self) -> Incarnation:
        return Incarnation(id=self.id, uuid=self.incarnation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something a daemon was asked to do through the database. Times are seconds since the epoch, UTC."""

    token: str
    name: str
    asked_by: str
    asked: float
    answered: float | None = None
    answer: str | None = None
