"""How what a daemon holds comes to an end: waited for, handed back, stopped, written down."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from pyexp_daemon.daemon.claiming import Claiming
from pyexp_daemon.daemon.completer import Completer
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Outcome
from pyexp_daemon.worker.pool import Pool

log = get_logger()


class Ending:
    """Ends what one daemon holds."""

    def __init__(
        self,
        pool: Pool,
        completer: Completer,
        claiming: Claiming,
        control: Control,
        *,
        say: Callable[[str], None],
    ) -> None:
        self._pool = pool
        self._completer = completer
        self._claiming = claiming
        self._control = control
        self._say = say

    async def stop_running(self, outcome: Outcome, reason: str) -> None:
        """Stop what runs; returns when its processes are gone, shortly before the attempts are reported."""
        async with anyio.create_task_group() as stopping:
            for claim in self._pool.running:
                stopping.start_soon(self._pool.stop, claim, outcome, reason)

    async def hand_back_everything(self, reason: str) -> None:
        """Stop what runs and hand back all that is held, uncharged; returns when that is stored."""
        while not self._pool.is_idle:
            await self._claiming.hand_back_queued()
            await self.stop_running(Outcome.RELEASED, reason)
            with anyio.move_on_after(1):
                await self._pool.wait_idle()
        await self._completer.flush()

    async def let_save(self, grace_s: float) -> None:
        """Hand back what has not begun, and give what looks at `should_stop` so long to save and end by itself."""
        await self._claiming.hand_back_queued()
        self._pool.ask_to_stop()
        with anyio.move_on_after(grace_s):
            while self._pool.listeners:
                await self._pool.wait_change()

    async def wait_for_running(self) -> None:
        """Let what runs come to its end, as long as the drain allows."""
        self._pool.ask_to_stop()
        await self._claiming.hand_back_queued()
        said: float | None = -1.0
        while (running := len(self._pool.running)) and not self._control.skip_wait:
            end = self._control.deadline_at
            left = 1.0 if end is None else min(1.0, end - anyio.current_time())
            if left <= 0:
                return
            if self._control.deadline_s != said:
                said = self._control.deadline_s
                log.info("daemon.draining", running=running, deadline_s=said)
                self._say(_announcement(running, said))
            await self._control.sleep(left)


def _announcement(running: int, deadline_s: float | None) -> str:
    what = f"{running} running experiment{'s' if running > 1 else ''}"
    if deadline_s is None:
        return f"draining: waiting for {what} as long as it takes; Ctrl-C (or TERM) sets a deadline"
    return (
        f"stopping: waiting at most {deadline_s:g} s for {what}; a second Ctrl-C (or TERM) stops and hands back at once"
    )
