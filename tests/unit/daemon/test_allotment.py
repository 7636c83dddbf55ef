"""The end of an allocation, and how a daemon hears that it has moved: by fakes of squeue on PATH."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from pyexp_daemon.daemon.allocation import Allocation
from pyexp_daemon.daemon.allotment import Allotment
from pyexp_daemon.daemon.control import Control
from tests.helpers import wait_until_async

Squeue = Callable[[str], None]


@pytest.fixture
def times_asked(tmp_path: Path) -> Callable[[], int]:
    """How often squeue was asked."""
    (tmp_path / "asked").touch()
    return lambda: len((tmp_path / "asked").read_text().splitlines())


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """Changes what squeue does, a line of shell; this is the job 9."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "9")

    def does(line: str) -> None:
        new = tmp_path / "new"
        new.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\n{line}\n")
        new.chmod(0o755)
        new.rename(tmp_path / "squeue")

    return does


class Bench:
    """An allotment of a daemon, with what it was told."""

    def __init__(self, *, left_s: float | None, idle: bool = False, needed_s: float | None = None) -> None:
        self.control = Control()
        self.moves: list[float | None] = []
        ends = None if left_s is None else time.time() + left_s
        self.allotment = Allotment(
            Allocation(system="slurm", ends=ends),
            self.control,
            drain_s=lambda: 1.0,
            last_s=lambda: 1.0,
            needed_s=lambda: needed_s,
            is_idle=lambda: idle,
            moved=self.moves.append,
            say=lambda text: None,
            ask_again_s=0.05,
        )


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[list[Any]]:
    """While it runs; what it says."""
    with capture_logs() as said, anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.allotment.run)
            yield said
            tasks.cancel_scope.cancel()


async def test_an_extension_is_heard_of_and_a_shorter_limit_drains(squeue: Squeue) -> None:
    bench = Bench(left_s=1000, needed_s=2000)
    squeue("echo 9 2:00:00")
    assert not bench.allotment.may_begin()
    async with running(bench) as said:
        await wait_until_async(lambda: bench.moves)
        assert bench.allotment.may_begin()
        assert bench.moves == [pytest.approx(time.time() + 7200, abs=5)]
        squeue("echo 9 UNLIMITED")
        await wait_until_async(lambda: len(bench.moves) == 2)
        assert (bench.moves[1], bench.allotment.ends, bench.allotment.may_begin()) == (None, None, True)
        assert not bench.control.draining
        squeue("echo 9 0:01")
        await wait_until_async(lambda: bench.control.draining)
    assert [event["event"] for event in said] == ["allocation.moved"] * 3 + ["allocation.ending"]
    assert bench.control.deadline_s is not None
    assert bench.control.deadline_s <= 1.0


async def test_an_end_that_nobody_knew_is_known_as_soon_as_squeue_answers(squeue: Squeue) -> None:
    bench = Bench(left_s=None)
    squeue("exit 1")
    async with running(bench):
        squeue("echo 9 1:00:00")
        await wait_until_async(lambda: bench.allotment.ends)


async def test_without_an_answer_the_end_stays_and_that_is_said_once(
    squeue: Squeue, times_asked: Callable[[], int]
) -> None:
    bench = Bench(left_s=1000)
    before = bench.allotment.ends
    squeue("echo the controller is away >&2; exit 1")
    async with running(bench) as said:
        await wait_until_async(lambda: times_asked() > 3)
        assert [(event["event"], event["error"]) for event in said] == [
            ("allocation.unknown", "the controller is away")
        ]
        squeue("echo 9 16:40")  # as before
        asked = times_asked()
        await wait_until_async(lambda: times_asked() > asked + 2)
    assert (bench.allotment.ends, bench.moves, len(said)) == (before, [], 1)


async def test_a_squeue_that_hangs_holds_up_nothing(squeue: Squeue, times_asked: Callable[[], int]) -> None:
    bench = Bench(left_s=3.0)
    squeue("exec sleep 4")
    async with running(bench):
        await wait_until_async(times_asked)
        began = time.monotonic()
        await wait_until_async(lambda: bench.control.draining)
        assert time.monotonic() - began < 3


async def test_it_is_asked_once_more_shortly_before_the_end(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension of the last minutes is not missed."""
    bench = Bench(left_s=36.0)  # 34 until it drains, 4 until it is asked
    monkeypatch.setattr(bench.allotment, "_ask_again_s", 300.0)
    squeue("echo 9 1:00:00")
    async with running(bench):
        await wait_until_async(lambda: bench.moves)


async def test_without_an_allocation_nobody_is_asked() -> None:
    control = Control()
    allotment = Allotment(
        None,
        control,
        drain_s=lambda: 1.0,
        last_s=lambda: 1.0,
        needed_s=lambda: None,
        is_idle=lambda: True,
        moved=lambda ends: None,
        say=lambda text: None,
        ask=lambda: pytest.fail("asked"),
        ask_again_s=0.0,
    )
    with anyio.fail_after(5):
        await allotment.run()
    assert (allotment.may_begin(), control.draining) == (True, False)
