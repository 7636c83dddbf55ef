"""Tables in an SQLite file, for peers that have a place for results but none for log rows, or for neither."""

from __future__ import annotations

import sqlite3
from typing import Any


class Logbook:
    """Every write is one durable commit: WAL, synchronous FULL."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE IF NOT EXISTS results (x INTEGER PRIMARY KEY, a REAL, b REAL, c TEXT)",
            "CREATE TABLE IF NOT EXISTS logs (x INTEGER, loss REAL)",
        ):
            self._connection.execute(statement)

    def write(self, results: list[tuple[int, dict[str, Any] | None]], logs: list[tuple[int, float]]) -> None:
        """Add rows, together."""
        rows = [(x, *(found or dict.fromkeys("abc")).values()) for x, found in results]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?)", rows)
        self._connection.executemany("INSERT INTO logs VALUES (?, ?)", logs)
        self._connection.execute("COMMIT")
