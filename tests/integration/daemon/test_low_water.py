"""A daemon whose claims are slow, or one of a crowd, does not begin at the head, and misses nothing for long."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from pyexp_daemon.daemon import low_water
from pyexp_daemon.daemon.claimer import Claimer, Prefetch
from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.model import Incarnation
from pyexp_daemon.store import open_store
from tests.bench import Bench
from tests.integration.daemon.test_membership import daemon

Make = Callable[..., Bench]


def look_at_the_head_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_water, "RECHECK_S", 0.0)
    monkeypatch.setattr(low_water, "RARELY", 0)
    monkeypatch.setattr(low_water, "MOST_HEADS_PER_S", float("inf"))


@pytest.mark.parametrize("database", ["sqlite", "mariadb", "mysql9"], indirect=True)
async def test_a_row_of_a_smaller_order_is_found_when_the_head_is_looked_at_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_water, "SLOW_S", 0.0)
    monkeypatch.setattr(low_water, "RECHECK_S", 3600.0)
    async with daemon(bench) as parts:
        seen = [claim.experiment_id for claim in await parts.claimer.claim(2)]
        bench.execute("UPDATE exp SET pyexpd_order = -1 WHERE ID = 5")
        seen += [claim.experiment_id for claim in await parts.claimer.claim(1)]
        look_at_the_head_now(monkeypatch)
        seen += [claim.experiment_id for claim in await parts.claimer.claim(1)]
    assert seen == ([1, 2, 3, 5] if bench.database.server else [1, 2, 5, 3])


async def test_nothing_that_waits_is_missed_when_the_mark_is_behind_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle daemon would sleep beside experiments that were handed back below its mark."""
    monkeypatch.setattr(low_water, "SLOW_S", 0.0)
    monkeypatch.setattr(low_water, "RECHECK_S", 3600.0)
    async with daemon(bench) as parts:
        claims = await parts.claimer.claim(1000)
        await parts.completer.release(claims[:1])
        await parts.completer.flush()
        again = await parts.claimer.claim(1000)
    assert [claim.experiment_id for claim in again] == [claims[0].experiment_id]


CROWD = Fleet(size=64)
on_servers = pytest.mark.parametrize("database", ["mariadb", "mysql9"], indirect=True)


def one_of_many(bench: Bench, me: Incarnation, *, store: Any = None) -> Claimer:
    link = Link(store or bench.store)
    claimer = Claimer(
        link, bench.table, Ledger(), Prefetch(1), queues=("default",), name="d", machine="m", fleet=CROWD
    )  # fmt: skip
    claimer.me = me
    return claimer


async def claimed(claimer: Claimer, wanted: int) -> list[int]:
    return [claim.experiment_id for claim in await claimer.claim(wanted)]


@on_servers
async def test_a_crowd_takes_every_experiment_once_and_leaves_none(make_bench: Make) -> None:
    bench = make_bench(rows=600)
    bench.execute("UPDATE exp SET pyexpd_order = 1 WHERE ID > 400")
    me = bench.register()
    seen: list[int] = []

    async def claim_all(claimer: Claimer) -> None:
        while claims := await claimed(claimer, 7):
            seen.extend(claims)

    stores = [open_store(bench.config, is_crowded=lambda: True) for _ in range(8)]
    with anyio.fail_after(90):
        async with anyio.create_task_group() as tasks:
            for store in stores:
                tasks.start_soon(claim_all, one_of_many(bench, me, store=store))
    for store in stores:
        await store.close()
    assert sorted(seen) == list(range(1, 601))
    assert max(seen[:112]) > 128  # they do not all claim at the head, …
    assert min(seen.index(number) for number in range(401, 601)) > 300  # … but smaller orders come first


@on_servers
async def test_one_of_a_crowd_goes_on_at_its_place_until_nothing_is_left_there(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(rows=30)
    places = iter([26, 15])
    monkeypatch.setattr(random, "randint", lambda lowest, highest: next(places))
    monkeypatch.setattr(low_water, "RECHECK_S", 3600.0)
    one = one_of_many(bench, bench.register())
    assert await claimed(one, 2) == [1, 2]
    assert await claimed(one, 2) == [26, 27]
    assert await claimed(one, 2) == [28, 29]
    assert await claimed(one, 2) == [30]
    assert await claimed(one, 2) == [3, 4]
    assert await claimed(one, 2) == [15, 16]


@on_servers
async def test_a_crowd_does_not_go_on_to_a_larger_order_while_any_is_left(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(rows=12)
    bench.execute("UPDATE exp SET pyexpd_order = 1 WHERE ID > 6")
    monkeypatch.setattr(random, "randint", lambda lowest, highest: highest - 1)
    monkeypatch.setattr(low_water, "RECHECK_S", 3600.0)
    one = one_of_many(bench, bench.register())
    assert [await claimed(one, 2) for _ in range(6)] == [[1, 2], [5, 6], [3, 4], [11, 12], [7, 8], [9, 10]]


@on_servers
async def test_a_crowd_finds_experiments_of_a_smaller_order_when_one_looks_at_the_head(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(rows=30)
    monkeypatch.setattr(random, "randint", lambda lowest, highest: highest - 7)
    monkeypatch.setattr(low_water, "RECHECK_S", 3600.0)
    one = one_of_many(bench, bench.register())
    assert [await claimed(one, 2) for _ in range(2)] == [[1, 2], [23, 24]]
    bench.execute("UPDATE exp SET pyexpd_order = -1 WHERE ID BETWEEN 10 AND 20")
    assert await claimed(one, 2) == [25, 26]
    look_at_the_head_now(monkeypatch)
    assert await claimed(one, 2) == [10, 11]
    monkeypatch.setattr(low_water, "RECHECK_S", 3600.0)
    assert await claimed(one, 2) == [13, 14]


@on_servers
async def test_a_crowd_claims_what_was_handed_back_behind_it(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle daemon would sleep beside it."""
    bench = make_bench(rows=10)
    monkeypatch.setattr(random, "randint", lambda lowest, highest: highest)
    monkeypatch.setattr(low_water, "RECHECK_S", 3600.0)
    one = one_of_many(bench, bench.register())
    assert [await claimed(one, wanted) for wanted in (9, 9)] == [[*range(1, 10)], [10]]
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 4")
    assert [await claimed(one, 9) for _ in range(2)] == [[4], []]


async def test_on_sqlite_a_crowd_claims_in_order(bench: Bench) -> None:
    one = one_of_many(bench, bench.register())
    seen = [number for _ in range(5) for number in await claimed(one, 1)]
    if bench.database.server is None:
        assert seen == [1, 2, 3, 4, 5]
    else:
        assert sorted(seen) == [1, 2, 3, 4, 5]
