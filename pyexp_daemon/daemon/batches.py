"""Reports on their way to the database, and which of them may be written together."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import anyio

from pyexp_daemon.model import Outcome, Report

DEAR_S = 1.0
"""What took longer to compute is on local disk before anything else happens to it."""

TOGETHER = 128
"""The most experiments in one transaction."""


@dataclass(slots=True)
class Item:
    """A report on its way, and the one who waits for it to be stored, if anybody does.

    Args:
        arrived: monotonic time at which it was brought.
        is_dear: losing it would cost more than a second of computing.
        is_spooled: it is on local disk.
        daemon: the number of the daemon row under which a dead process made it; 0 for our own.
    """

    report: Report
    stored: anyio.Event | None = None
    error: Exception | None = None
    arrived: float = 0.0
    size_bytes: int = 0
    is_dear: bool = False
    is_spooled: bool = False
    is_settled: bool = False
    daemon: int = 0

    @property
    def attempt(self) -> tuple[int, int]:
        """Experiment and attempt: they stay the same when an experiment is taken back under a new token."""
        return self.report.claim.experiment_id, self.report.claim.attempt

    @property
    def is_awaited(self) -> bool:
        return self.stored is not None and not self.stored.is_set()

    @property
    def is_safe(self) -> bool:
        """Whether there is nothing the spool could do for it."""
        return self.is_settled or (self.is_spooled and not self.is_awaited)

    def release(self, error: Exception | None = None) -> None:
        """Let the one who waits for it go on."""
        if self.is_awaited:
            assert self.stored is not None
            self.error = error
            self.stored.set()

    def settle(self, error: Exception | None = None) -> None:
        """Nothing is left to be done about it."""
        self.is_settled = True
        self.release(error)


@dataclass(slots=True)
class Batch:
    """Reports in their order that fit into one transaction: within a packet, and of one token per experiment."""

    limit_bytes: int
    items: list[Item] = field(default_factory=list)
    _tokens: dict[int, str] = field(default_factory=dict)
    _size_bytes: int = 0

    def add(self, item: Item) -> bool:
        """Take an item; False when it has to wait for the next batch. The first one always fits."""
        claim = item.report.claim
        if self.items:
            full = self._size_bytes + item.size_bytes > self.limit_bytes or len(self._tokens) > TOGETHER
            other_token = self._tokens.get(claim.experiment_id, claim.token) != claim.token
            if full or other_token or item.daemon != self.items[0].daemon:
                return False
        self._tokens[claim.experiment_id] = claim.token
        self._size_bytes += item.size_bytes
        self.items.append(item)
        return True


def size_of(report: Report) -> int:
    """About how many bytes a report needs in a statement."""
    size = (
        512 + sum(_bytes(value) for value in report.results.values()) + sum(_bytes(part.data) for part in report.parts)
    )
    for row in report.logs:
        size += 256 + sum(_bytes(value) for value in row.columns.values())
    if report.end is not None:
        size += sum(_bytes(value) for value in (*report.end.results.values(), report.end.error, report.end.log_tail))
    return size


def is_dear(report: Report, *, age_s: float) -> bool:
    """Whether a report is a result that took long to compute.

    Args:
        age_s: for how long it was computed, if it is no end.
    """
    end = report.end
    if end is None:
        return bool(report.results) and age_s >= DEAR_S
    if end.outcome in (Outcome.RELEASED, Outcome.SUPERSEDED) or end.started is None or end.ended is None:
        return False
    return end.ended - end.started >= DEAR_S


def _bytes(value: Any) -> int:
    if isinstance(value, str | bytes):
        return 2 * len(value)
    return len(json.dumps(value, default=str)) if isinstance(value, dict | list) else 32
