"""The pause of a daemon whose disk is nearly full: one word of it, and an end that is not the next log line."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from pyexp_daemon.config.load import load_config
from pyexp_daemon.daemon import disk
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.daemon.disk import DiskWatch, Room, folders_of, room_in
from tests.unit.config.factories import write_config

GIB = 2**30


class Disks:
    """What is free on two disks, in GiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = {"state": 10.0, "logs": 10.0}
        self.least = GIB
        self.control = Control()
        monkeypatch.setattr(disk, "room_in", lambda folder: Room(folder, int(self.free[folder.name] * GIB)))
        self.watch = DiskWatch(self.control, [Path("state"), Path("logs")], lambda: self.least)

    async def look(self) -> tuple[bool, list[str]]:
        """Whether the daemon is paused after a look, and what was said."""
        with structlog.testing.capture_logs() as said:
            await self.watch.run_once()
        return self.control.paused is not None, [event["event"] for event in said]


@pytest.fixture
async def disks(monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(monkeypatch)


async def test_the_fullest_disk_decides_and_it_is_said_once(disks: Disks) -> None:
    assert await disks.look() == (False, [])
    disks.free["logs"] = 0.9
    assert await disks.look() == (True, ["disk.low"])
    assert "922 MiB free in logs, 1024 MiB wanted" in (disks.control.paused or "")
    assert await disks.look() == (True, [])


async def test_the_pause_ends_with_a_tenth_more(disks: Disks) -> None:
    disks.free["state"] = 0.9
    await disks.look()
    disks.free["state"] = 1.05
    assert await disks.look() == (True, [])
    disks.free["state"] = 1.2
    assert await disks.look() == (False, ["disk.enough"])


async def test_a_reload_holds_from_the_next_look_on_and_zero_is_never_too_little(disks: Disks) -> None:
    disks.free["state"] = 0
    await disks.look()
    disks.least = 0
    assert await disks.look() == (False, ["disk.enough"])
    assert await disks.look() == (False, [])


async def test_a_person_who_resumes_is_overruled_by_the_disk(disks: Disks) -> None:
    disks.free["state"] = 0.5
    await disks.look()
    disks.control.resume()
    assert await disks.look() == (True, ["disk.low"])


async def test_other_pauses_are_left_alone(disks: Disks) -> None:
    disks.control.pause("node", "broken node")
    disks.free["state"] = 0.5
    await disks.look()
    disks.free["state"] = 5
    assert await disks.look() == (True, ["disk.enough"])
    assert disks.control.paused == "broken node"


def test_a_folder_that_is_not_there_yet_counts_as_the_one_above(tmp_path: Path) -> None:
    there, missing = room_in(tmp_path), room_in(tmp_path / "a" / "b")
    assert 0 < missing.free_bytes < 2**60
    assert missing.free_bytes == pytest.approx(there.free_bytes, rel=0.1)
    assert missing.folder == tmp_path / "a" / "b"


def test_the_disks_that_matter(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, extra=f"Daemon: {{state: {tmp_path}/state, logs: {tmp_path}/logs}}"))
    assert folders_of(config)[:2] == [tmp_path / "state", tmp_path / "logs" / config.database.table.name]
