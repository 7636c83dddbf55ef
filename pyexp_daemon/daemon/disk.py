"""A full disk loses results: with too little room left, the daemon claims nothing until there is more again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.log import get_logger

log = get_logger()

EVERY_S = 10.0
"""How often the disks are looked at."""

MORE = 1.1
"""So many times the least free space ends the pause, so that it does not come and go with every log line."""

_SOURCE = "disk"


@dataclass(frozen=True, slots=True)
class Room:
    """How much is free where."""

    folder: Path
    free_bytes: int


class DiskWatch:
    """Pauses the daemon while one of its disks is nearly full.

    Args:
        folders: on the disks that matter; one that does not exist yet counts as the nearest above it.
        least_bytes: asked for at every look, so that a reload holds from then on; with 0 nothing is too little.
    """

    def __init__(self, control: Control, folders: Sequence[Path], least_bytes: Callable[[], int]) -> None:
        self._control = control
        self._folders = folders
        self._least_bytes = least_bytes

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.run_once()
            await anyio.sleep(EVERY_S)

    async def run_once(self) -> None:
        """Look once, and pause or resume."""
        # In a thread, which is left behind: a network file system whose server is away does not answer.
        rooms = await anyio.to_thread.run_sync(
            lambda: [room_in(folder) for folder in self._folders], abandon_on_cancel=True
        )
        tightest = min(rooms, key=lambda room: room.free_bytes)
        least = self._least_bytes()
        if self._control.is_paused_by(_SOURCE):
            if tightest.free_bytes >= least * MORE:
                self._control.resume(_SOURCE)
                log.info("disk.enough", folder=str(tightest.folder), free_bytes=tightest.free_bytes)
        elif tightest.free_bytes < least:
            reason = (
                f"disk nearly full: {tightest.free_bytes / 2**20:.0f} MiB free in {tightest.folder},"
                f" {least / 2**20:.0f} MiB wanted (Daemon.least_disk)"
            )
            self._control.pause(_SOURCE, reason)
            log.error("disk.low", folder=str(tightest.folder), free_bytes=tightest.free_bytes, least_bytes=least)


def folders_of(config: Config) -> list[Path]:
    """Where a daemon of this configuration writes."""
    database = [config.database_path.parent] if config.database.provider == "sqlite" else []
    return [config.state, config.logs, *database]


def room_in(folder: Path) -> Room:
    """The space that this user may still fill on the disk of a folder; all there is when that cannot be told."""
    for existing in (folder, *folder.parents):
        try:
            found = os.statvfs(existing)
        except FileNotFoundError:
            continue
        except OSError:
            break
        return Room(folder, found.f_bavail * found.f_frsize)
    return Room(folder, 2**63)
