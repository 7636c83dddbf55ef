"""Work on a disk that may hang: waited for a moment, left behind, and without effect when it comes back."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial

import anyio
import anyio.to_thread
import pytest

from pyexp_daemon.daemon import errands as module
from pyexp_daemon.daemon.errands import DiskHangs, Errands, briefly, goes_on
from tests.helpers import wait_until_async

PATIENCE_S = 1.0
"""Short, and yet longer than a loaded machine takes to start a thread."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", PATIENCE_S)


async def test_what_answers_gives_its_result_or_its_error() -> None:
    errands = Errands()
    undone: list[int] = []
    assert await errands.run(lambda: 7, undo=undone.append) == 7
    with pytest.raises(ZeroDivisionError):
        await errands.run(lambda: 1 // 0)
    assert undone == []
    assert not errands.hang


async def test_what_hangs_is_left_behind_alone_and_undone_when_it_comes_back() -> None:
    errands, back = Errands(), threading.Event()
    done: list[str] = []
    with pytest.raises(DiskHangs):
        await errands.run(lambda: back.wait(10), undo=lambda _: done.append("undone"))
    began = time.monotonic()
    with pytest.raises(DiskHangs):
        await errands.run(lambda: done.append("meanwhile"))
    assert time.monotonic() - began < PATIENCE_S
    errands.later(lambda: done.append("later"))
    assert done == []
    back.set()
    await wait_until_async(lambda: not errands.hang)
    assert done == ["undone", "later"]
    await errands.run(lambda: done.append("again"))
    assert done[-1] == "again"


async def test_what_was_given_up_before_it_began_never_begins_and_keeps_nothing_waiting() -> None:
    """A process that was stopped finds that it has waited for too long, for a thread that has not even begun."""
    errands, busy = Errands(), threading.Event()
    done: list[str] = []
    threads = anyio.to_thread.current_default_thread_limiter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, partial(busy.wait, 10))
        await anyio.sleep(0.05)
        total, threads.total_tokens = threads.total_tokens, 1
        try:
            with pytest.raises(DiskHangs):
                await errands.run(lambda: done.append("late"))
        finally:
            threads.total_tokens = total
            busy.set()
    assert not errands.hang
    await errands.run(lambda: done.append("next"))
    assert done == ["next"]


async def test_who_is_cancelled_waits_for_the_disk_but_not_for_ever() -> None:
    back = threading.Event()
    for wait_s, hangs in ((0.03, False), (20.0, True)):
        errands = Errands()
        with anyio.move_on_after(0.01):
            with suppress(DiskHangs):
                await errands.run(partial(back.wait, wait_s))
        assert errands.hang is hangs
    back.set()


async def test_long_work_that_goes_on_is_not_given_up() -> None:
    def work() -> str:
        for _ in range(8):
            time.sleep(0.2 * PATIENCE_S)
            goes_on()
        return "done"

    assert await Errands().run(work) == "done"


async def test_without_a_thread_to_be_had_it_fails_as_the_disk_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    errands = Errands()
    with monkeypatch.context() as patched:
        patched.setattr(anyio.to_thread, "run_sync", refused)
        with pytest.raises(OSError, match="can't start new thread"):
            await errands.run(lambda: 1)
    assert not errands.hang
    assert await errands.run(lambda: 1) == 1


def test_outside_a_loop_nobody_waits_for_ever_either() -> None:
    back = threading.Event()
    began = time.monotonic()
    briefly(lambda: back.wait(30))
    assert time.monotonic() - began < 20
    back.set()
