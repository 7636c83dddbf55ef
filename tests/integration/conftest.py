"""Experiment tables on SQLite, MariaDB and MySQL 9 in turn: one suite specifies them all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon.config.load import load_config
from tests.bench import Bench
from tests.databases import Database


@pytest.fixture
async def make_bench(database: Database, tmp_path: Path) -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*, create: bool = True, filled: bool = True, rows: int = 5, **described: Any) -> Bench:
        described.setdefault("keyfields", {"x": {"type": "INT", "values": list(range(rows))}})
        described.setdefault("resultfields", {"y": "DOUBLE", "note": "VARCHAR(20)"})
        described.setdefault("logtables", {"epochs": {"loss": "DOUBLE", "word": "VARCHAR(20)"}})
        bench = Bench(database, load_config(database.write_config(tmp_path / f"c{len(made)}", **described)))
        made.append(bench)
        if create:
            bench.create()
            if filled:
                bench.fill()
        return bench

    yield make
    for bench in made:
        bench.blocking.close()
        await bench.store.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """A table `exp` with five created experiments, IDs 1 to 5, x = 0 to 4."""
    return make_bench()
