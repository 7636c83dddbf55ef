"""A node that was judged broken, and what counts afterwards."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import anyio

from pyexp_daemon.daemon.control import Control
from pyexp_daemon.daemon.health import MOST_FAILURES, NodeHealth
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.model import Attempt, Claim, Outcome
from tests.bench import Bench
from tests.helpers import wait_until_async


def failure(number: int) -> Attempt:
    claim = Claim(experiment_id=number, attempt=1, token="0" * 32, start_date="", keyfields={})
    return Attempt(claim=claim, outcome=Outcome.ERROR, started=time.time(), ended=time.time())


async def nothing() -> None:
    return


async def test_after_a_person_said_go_on_it_takes_a_whole_streak_to_suspect_the_node_again(bench: Bench) -> None:
    control = Control()
    health = NodeHealth(
        Link(bench.store),
        bench.table,
        control,
        cast("Any", SimpleNamespace(ids={1})),
        canary_s=lambda: 60.0,
        running_for=dict,
        flush=nothing,
        queues=lambda: ["default"],
    )
    for number in range(MOST_FAILURES):
        assert not health.is_suspected
        health.ended(failure(number))
    assert health.is_suspected
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(health._sit_out)
            await wait_until_async(lambda: health.is_broken)
            control.resume()
    assert not health.is_broken
    health.ended(failure(99))
    assert not health.is_suspected
