"""Turns on a MySQL or MariaDB server: of a crowd of daemons only so many change something at a time.

Named locks of the server, taken and given back within one packet, so that nobody holds one while it is not at work.
They are politeness and protect nothing: whoever does not get one in time goes on without.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

TURNS = 4
"""More sessions that change the same indexes at once keep each other waiting for pages; that they wait, spin and are
woken costs the server more than the changes do. Fewer do not keep it busy."""

PATIENCE_S = 1
"""How long one is waited for; MySQL counts whole seconds."""


class Turns:
    """The turns at one database.

    Args:
        is_crowded: whether they are needed now.
    """

    def __init__(self, database: str, *, is_crowded: Callable[[], bool]) -> None:
        mark = hashlib.sha256(database.encode()).hexdigest()[:16]  # names belong to the whole server, and are short
        self.names = [f"pyexpd_turn_{mark}_{number}" for number in range(TURNS)]
        self._is_crowded = is_crowded
        self._refused = False

    def draw(self) -> str | None:
        """The name of one; None when whoever asks need not wait for any."""
        return random.choice(self.names) if self._is_crowded() and not self._refused else None

    def is_refusal(self, error: BaseException) -> bool:
        """Whether the server has no such locks, as a Galera cluster may: then it is not asked for one again."""
        refused = len(error.args) > 1 and error.args[0] in (1105, 1235) and "GET_LOCK" in str(error.args[1])
        self._refused |= refused
        return refused


def take(name: str) -> str:
    """The statement that waits for a turn."""
    return f"DO GET_LOCK('{name}', {PATIENCE_S})"


def give_back(name: str) -> str:
    """The statement that ends it."""
    return f"DO RELEASE_LOCK('{name}')"


GIVE_BACK_ALL = "DO RELEASE_ALL_LOCKS()"
"""The same, where it is not known whether one was had."""
