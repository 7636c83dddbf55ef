"""What this daemon holds: written by its loop, read by the heartbeat thread for the audit."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyexp_daemon.model import Claim

Held = tuple[int, str]
"""An experiment and the token under which it is held."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was held at one moment."""

    held: frozenset[Held]
    in_flight: frozenset[str]
    """tokens of claims that were sent and not answered yet"""

    @property
    def tokens(self) -> set[str]:
        return {token for _, token in self.held} | self.in_flight


class Ledger:
    """Claims from the moment they are sent until their end is recorded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By token too: a row that was reset by hand may be claimed again here while its old attempt still runs.
        self._held: dict[Held, Claim] = {}
        self._in_flight: set[str] = set()

    def sending(self, token: str) -> None:
        """A claim with this token goes out now; noted before its first byte."""
        with self._lock:
            self._in_flight.add(token)

    def answered(self, token: str, claims: Iterable[Claim] = ()) -> None:
        """The claim brought these, or is given up: then whatever it took is handed back by the audit."""
        with self._lock:
            self._held.update((claim.key, claim) for claim in claims)
            self._in_flight.discard(token)

    def let_go(self, claim: Claim) -> None:
        """The end of this claim is recorded, or it was taken from us."""
        with self._lock:
            self._held.pop(claim.key, None)

    def claims(self) -> list[Claim]:
        with self._lock:
            return list(self._held.values())

    def find(self, held: Held) -> Claim | None:
        """The claim of an experiment under a token, as long as we hold it."""
        with self._lock:
            return self._held.get(held)

    def rebind(self, old: Claim, new: Claim) -> bool:
        """An experiment was taken back under a new token; False when it was let go meanwhile."""
        with self._lock:
            if self._held.pop(old.key, None) is None:
                return False
            self._held[new.key] = new
            return True

    def snapshot(self) -> Snapshot:
        with self._lock:
            return Snapshot(frozenset(self._held), frozenset(self._in_flight))


@dataclass(frozen=True, slots=True)
class Audit:
    """What the database and the ledger do not agree on."""

    unknown: Sequence[Held]
    """rows the database says are ours, under tokens we know nothing of"""
    taken: Sequence[Held]
    """what we hold, and the database says are not ours any more"""
    cancelled: Sequence[Held]
    """what we hold and somebody asked to stop"""


def compare(before: Snapshot, rows: Sequence[tuple[int, str, bool]], after: Snapshot) -> Audit:
    """Compare the rows of a heartbeat with what was held before and after they were read.

    A row is unknown only when its token was known at neither time; it is taken only when it was held at both.
    """
    known = before.tokens | after.tokens
    stored = {(row[0], row[1]) for row in rows}
    return Audit(
        unknown=[(row[0], row[1]) for row in rows if row[1] not in known],
        taken=sorted((before.held & after.held) - stored),
        cancelled=[(row[0], row[1]) for row in rows if row[2] and (row[0], row[1]) in after.held],
    )
