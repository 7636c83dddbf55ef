"""What `Daemon.on_event` is told of: noticed here, from what happens in the daemon and what the table then says."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.notices import Notices
from pyexp_daemon.daemon.orders import BY_COMMAND
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import CHARGED, Attempt, Daemon
from pyexp_daemon.store import occasions

if TYPE_CHECKING:
    from pyexp_daemon.daemon.supervisor import Supervisor

log = get_logger()

LOOK_S = 1.0

MOST_ASKED = 1000
"""Experiments asked for in one statement."""

_LONGEST_ERROR = 500


class News:
    """Watches one daemon. `run` and `notices.run` are services."""

    def __init__(self, daemon: Supervisor) -> None:
        self._daemon = daemon
        self._failed: dict[int, Attempt] = {}
        self._has_ended = False
        self._told_pause = False
        self._looking = anyio.Lock()
        self.notices = Notices(
            lambda: daemon.config.daemon.on_event,
            about={
                "table": daemon.table.name,
                "daemon": daemon.options.name,
                "host": daemon.membership.host.name,
            },
            folder=daemon.config.project,
        )

    def ended(self, attempt: Attempt) -> None:
        """The end of an attempt that ran here is stored."""
        self._has_ended = True
        if attempt.outcome in CHARGED:
            self._failed[attempt.claim.experiment_id] = attempt

    def dead(self, row: Daemon) -> None:
        """We declared another daemon dead."""
        self.notices.tell("lost", daemon=row.name, host=row.host, pid=row.pid, slots=row.slots)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await anyio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look once; also the last thing before the end, when nothing runs here any more."""
        if self._daemon.config.daemon.on_event is None:
            self._failed.clear()
            return
        self._look_at_pause()
        try:
            async with self._looking:  # the last look waits for one that has begun, else it would be cut off half-way
                await self._look_at_failures()
                await self._look_at_end()
        except exceptions.ConnectionLost:
            pass  # whoever needs the database waits for it and says so; this is looked at again
        except exceptions.DatabaseError as error:
            self._failed, self._has_ended = {}, False
            log.error("notice.lost", error=str(error))

    def _look_at_pause(self) -> None:
        daemon = self._daemon
        by_itself = daemon.paused is not None and not daemon.control.is_paused_by(BY_COMMAND)
        is_paused = by_itself and (daemon.health.is_broken or not daemon.health.is_suspected)
        if is_paused and not self._told_pause:
            self.notices.tell("paused", reason=daemon.paused)
        self._told_pause = is_paused

    async def _look_at_failures(self) -> None:
        """Of the experiments that failed here, those that have no try left; not while the node is to blame."""
        if not self._failed or self._daemon.health.is_suspected:
            return
        asked = dict(itertools.islice(self._failed.items(), MOST_ASKED))
        self._failed = {number: attempt for number, attempt in self._failed.items() if number not in asked}
        try:
            attempts = {number: attempt.claim.attempt for number, attempt in asked.items()}
            final = await self._daemon.link.read(occasions.failed_for_good(self._daemon.table, attempts))
        except exceptions.DatabaseError:
            self._failed = asked | self._failed
            raise
        for number in final:
            attempt = asked[number]
            error = (attempt.error or "").strip().rpartition("\n")[2][:_LONGEST_ERROR]
            self.notices.tell("failing", experiment_id=number, outcome=attempt.outcome.value, error=error)

    async def _look_at_end(self) -> None:
        """Whether that was the last of the table. Of all daemons that see it, one tells."""
        if not self._has_ended or not self._daemon.pool.is_idle or self._daemon.completer.waiting:
            return
        self._has_ended = False
        try:
            counts = await self._daemon.link.read(occasions.all_finished(self._daemon.table))
            if counts is None:
                return
            is_first = await self._daemon.link.run(occasions.be_first(self._daemon.table), role="admin")
        except exceptions.DatabaseError:
            self._has_ended = True
            raise
        if is_first:
            self.notices.tell("finished", experiments=counts)
