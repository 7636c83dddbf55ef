"""A daemon whose claims are slow begins where the last one ended, and misses nothing for longer than a moment."""

from __future__ import annotations

import pytest

from pyexp_daemon.daemon import low_water
from tests.bench import Bench
from tests.integration.daemon.test_membership import daemon


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
        monkeypatch.setattr(low_water, "RECHECK_S", 0.0)
        monkeypatch.setattr(low_water, "RARELY", 0)
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
