"""What a daemon has been told."""

from __future__ import annotations

import anyio
import pytest

from pyexp_daemon.daemon.control import Control


async def test_a_second_drain_skips_the_wait_but_a_key_held_down_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(anyio, "current_time", lambda: now)
    control = Control()
    control.drain(deadline_s=60)
    now += 0.5
    control.drain(deadline_s=60)
    assert (control.draining, control.skip_wait, control.deadline_s) == (True, False, 60)
    now += 1.0
    control.drain(deadline_s=60)
    assert control.skip_wait


async def test_a_wake_up_before_the_sleep_is_not_lost() -> None:
    control = Control()
    control.wake()
    with anyio.fail_after(30):
        await control.sleep(60)
