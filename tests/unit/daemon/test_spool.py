"""The spool's files: in order, durable, usable after any crash, and gone an hour after they are not needed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pyexp_daemon.daemon import spools
from pyexp_daemon.daemon.records import Entry, Rebound, Spoilt
from pyexp_daemon.daemon.spool import RETAINED_S, Spool
from pyexp_daemon.model import Attempt, Claim, Outcome, Report


def entry(number: int, *, token: str = "t", end: bool = False, whole: bool = True, text: str = "") -> Entry:
    claim = Claim(experiment_id=number, attempt=1, token=token, start_date="now", keyfields={})
    attempt = Attempt(claim=claim, outcome=Outcome.DONE, started=1.0, ended=3.0) if end else None
    results = {} if end else {"y": number, "note": text}
    return Entry(report=Report(claim=claim, results=results, end=attempt), daemon=9, whole=whole)


def read(spool: Spool, most: int = 1000) -> list[int]:
    """What `read` gives, at most so many at once."""
    taken: list[Entry] = []

    def fits(found: Entry, size_bytes: int) -> bool:
        if len(taken) == most:
            return False
        taken.append(found)
        return True

    assert spool.read(fits) == len(taken)
    return [found.report.claim.experiment_id for found in taken]


def adopt(spool: Spool) -> Spool:
    """The spool as another process finds it after this one was killed."""
    assert spool.folder is not None
    assert spool._lock is not None
    spool._lock.release()
    found = Spool.adopt(spool.folder)
    assert found is not None
    return found


def segments(spool: Spool) -> list[Path]:
    assert spool.folder is not None
    return sorted(spool.folder.glob("*.records"))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def test_nothing_is_made_until_there_is_something_to_keep(spool: Spool) -> None:
    assert not spool.base.exists()
    assert not spool.is_open
    spool.stored()
    spool.tidy()
    spool.close()
    assert not spool.base.exists()


def test_only_its_owner_can_read_it(spool: Spool) -> None:
    spool.append([entry(1)])
    assert spool.folder is not None
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(segments(spool)[0].stat().st_mode) == 0o600


def test_every_group_is_synced_once(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fdatasync

    def counted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    spool.append([entry(number) for number in range(50)])
    spool.append([entry(50)])
    assert len(synced) == 2
    assert synced[-1] == segments(spool)[0].stat().st_size


def test_the_backlog_comes_back_in_order_in_pieces_across_files(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=500)
    for number in range(0, 40, 2):
        spool.append([entry(number), entry(number + 1)])
    assert len(segments(spool)) > 5
    assert (spool.backlog, spool.count) == (40, 40)
    found: list[int] = []
    while spool.has_backlog:
        found += read(spool, most=3)
        spool.append([entry(1000 + len(found))]) if len(found) == 6 else None
    assert found == [*range(40), 1006]
    assert (spool.backlog, spool.count) == (0, 41)
    spool.stored()
    assert (spool.count, spool.size_bytes) == (0, 0)


def test_what_flies_is_not_given_back_and_yet_counted(spool: Spool) -> None:
    spool.append([entry(1), entry(2), entry(3)], flying=2)
    assert (spool.backlog, spool.count) == (1, 3)
    assert spool.size_bytes > 100
    assert read(spool) == [3]


def test_a_dead_owner_leaves_everything_that_is_not_known_to_be_stored(spool: Spool) -> None:
    spool.append([entry(1), entry(2)], flying=2)
    spool.stored()
    spool.append([entry(3), entry(4)], flying=1)  # says, on its way, that 1 and 2 are stored
    assert read(adopt(spool)) == [3, 4]


def test_a_living_owner_keeps_its_spool(spool: Spool) -> None:
    spool.append([entry(1)])
    assert spool.folder is not None
    assert Spool.adopt(spool.folder) is None
    assert spools.left_behind(spool.base, own=None, said=set()) == [spool.folder]
    assert spools.left_behind(spool.base, own=spool.folder, said=set()) == []


def test_a_torn_tail_is_said_and_ignored(spool: Spool) -> None:
    spool.append([entry(1), entry(2)])
    (path,) = segments(spool)
    os.truncate(path, path.stat().st_size - 5)
    with capture_logs() as said:
        assert read(adopt(spool)) == [1]
    assert [(each["event"], each["log_level"]) for each in said] == [("spool.torn", "warning")]


@pytest.mark.parametrize("at", [0, 3, 12, 60])
def test_a_corrupt_line_is_named_and_the_rest_is_used(spool: Spool, at: int) -> None:
    spool.append([entry(1), entry(2), entry(3)])
    (path,) = segments(spool)
    content = bytearray(path.read_bytes())
    second = content.index(b"\n") + 1
    content[second + at] ^= 1
    path.write_bytes(content)
    with capture_logs() as said:
        found = adopt(spool)
        assert read(found) == [1, 3]
    assert said[0]["event"] == "spool.corrupt"
    assert said[0]["file"] == str(path)
    assert said[0]["offset"] == second
    assert not found.has_backlog
    assert found.backlog == 0


def test_a_dead_spool_is_continued_in_a_new_file(spool: Spool) -> None:
    spool.append([entry(1)])
    (path,) = segments(spool)
    os.truncate(path, path.stat().st_size - 1)
    found = adopt(spool)
    found.append([entry(2)])
    assert len(segments(found)) == 2
    assert read(found) == [2]


def test_notes_outlive_the_process(spool: Spool) -> None:
    spool.append([entry(1, token="a")])
    spool.note(Rebound(1, "a", "b"))
    spool.note(Spoilt(1, 1, "why"))
    spool.append([])
    assert spool.has_notes is False
    found = adopt(spool)
    assert found.known.token((1, "a")) == "b"
    assert found.known.spoilt == {(1, 1): "why"}
    assert read(found) == [1]


def test_a_full_disk_appends_nothing_and_loses_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.append([entry(1)])
    spool.note(Spoilt(1, 1, "why"))
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 40:
            return write(descriptor, data[:40])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            spool.append([entry(2)])
    assert spool.count == 1
    spool.append([entry(3)])
    found = adopt(spool)
    with capture_logs() as said:
        assert read(found) == [1, 3]
    assert said == []  # the torn line was cut off
    assert found.known.spoilt == {(1, 1): "why"}


def test_files_go_an_hour_after_all_of_them_is_stored(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=300)
    for number in range(10):
        spool.append([entry(number)])
    assert read(spool, most=6) == list(range(6))
    spool.stored()
    before = segments(spool)
    spool.tidy(time.time() + RETAINED_S - 5)
    assert segments(spool) == before
    spool.tidy(time.time() + RETAINED_S + 5)
    assert 0 < len(segments(spool)) < len(before)
    assert read(spool) == [6, 7, 8, 9]
    spool.stored()
    for hours in (2, 4):
        spool.tidy(time.time() + hours * RETAINED_S)
    assert segments(spool) == []
    spool.append([entry(11)])
    assert read(spool) == [11]


def test_a_spool_that_is_all_stored_is_kept_for_an_hour_and_removed_by_a_later_daemon(spool: Spool) -> None:
    spool.append([entry(1)], flying=1)
    spool.stored()
    folder = spool.folder
    assert folder is not None
    spool.close()
    assert spools.left_behind(spool.base, own=None, said=set()) == []
    spools.remove_old(spool.base, time.time() + RETAINED_S - 60)
    assert folder.exists()
    spools.remove_old(spool.base, time.time() + RETAINED_S + 60)
    assert not folder.exists()


def test_a_spool_with_something_left_is_never_removed(spool: Spool) -> None:
    spool.append([entry(1)])
    spool.close()
    spools.remove_old(spool.base, time.time() + 100 * RETAINED_S)
    assert spools.left_behind(spool.base, own=None, said=set()) == [spool.folder]


def test_a_folder_that_vanishes_is_said_and_made_again(spool: Spool) -> None:
    spool.append([entry(1)])
    folder = spool.folder
    assert folder is not None
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with capture_logs() as said:
        assert read(spool) == []
    assert [each["event"] for each in said] == ["spool.unreadable"]
    spool._close_segment()
    spool.append([entry(2)])
    assert read(spool) == [2]


def test_what_is_left_counts_experiments_with_something_worth_storing(spool: Spool) -> None:
    claim = Claim(experiment_id=5, attempt=1, token="t", start_date="now", keyfields={})
    released = Entry(report=Report(claim=claim, end=Attempt(claim=claim, outcome=Outcome.RELEASED)), daemon=9)
    spool.append([entry(1), entry(1, end=True), entry(2), released])
    assert spool.left() == {1: True, 2: True, 5: False}
    read(spool, most=2)
    spool.stored()
    assert spool.left() == {2: True, 5: False}


def test_ended_attempts_are_found_under_any_token_they_had(spool: Spool) -> None:
    spool.append([entry(1, token="a"), entry(1, token="a", end=True), entry(2, token="c"), entry(3, end=True)])
    spool.note(Rebound(1, "a", "b"))
    spool.append([entry(4, token="d", end=True, whole=False)])
    for token in ("a", "b"):
        found = spools.search(spool.base, [(1, token), (2, "c"), (4, "d")], said=set())
        assert list(found) == [(1, token)]
        assert [each.report.claim.token for each in found[1, token]] == [token, token]
        assert [each.report.end is not None for each in found[1, token]] == [False, True]
    assert spools.search(spool.base, [(1, "x")], said=set()) == {}


@pytest.mark.parametrize("removable", [True, False])
def test_a_disk_that_was_full_for_long_is_used_again_and_not_full_of_empty_files(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, removable: bool
) -> None:
    """The first write into a file fails again and again."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        if not removable:
            patched.setattr(Path, "unlink", full)
        for _ in range(4):
            with pytest.raises(OSError, match="No space"):
                spool.append([entry(1)])
    assert len(segments(spool)) == (0 if removable else 4)
    spool.append([entry(2)])
    spool.append([entry(3)])
    assert read(adopt(spool)) == [2, 3]


def test_a_file_that_is_there_although_making_it_failed_is_left_alone(spool: Spool) -> None:
    spool.append([entry(1)])
    (first,) = segments(spool)
    first.with_name("00000001.records").touch()
    spool._close_segment()
    spool.append([entry(2)])
    assert len(segments(spool)) == 3
    assert read(adopt(spool)) == [1, 2]


@pytest.mark.parametrize("what", ["everything", "what is in it", "the lock"])
def test_what_is_removed_under_our_hands_is_not_written_to_any_more(spool: Spool, what: str) -> None:
    spool.append([entry(1)], flying=1)
    spool.stored()
    folder = spool.folder
    assert folder is not None
    match what:
        case "everything":
            shutil.rmtree(spool.base)
        case "what is in it":
            for path in folder.iterdir():
                path.unlink()
        case "the lock":
            (folder / "lock").unlink()
    spool.append([entry(2)])
    spool.append([entry(3)])
    assert spool.folder is not None
    assert Spool.adopt(spool.folder) is None  # it is seen to be held
    assert spools.left_behind(spool.base, own=None, said=set()) == [spool.folder]
    assert read(adopt(spool)) == [2, 3]


def test_a_file_that_cannot_be_read_is_said_once_and_passed_over(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=1)
    for number in range(1, 5):
        spool.append([entry(number)])
    path = segments(spool)[1]
    path.unlink()
    path.mkdir()
    with capture_logs() as said:
        assert spool.left() == {1: True, 3: True, 4: True}
        assert read(spool, most=2) == [1, 3]
        assert read(spool) == [4]
        assert spools.search(tmp_path, [(9, "t")], said={path}) == {}
    assert [each["event"] for each in said] == ["spool.not_read", "spool.unreadable"]
    assert said[0]["path"] == str(path)
    assert said[1]["count"] == 1
    assert not spool.has_backlog
    spool.stored()
    spool.tidy(time.time() + RETAINED_S + 5)
    assert path not in [each for each in segments(spool) if each.is_file()]


def test_a_corrupt_line_before_one_that_has_to_wait_counts_once(spool: Spool) -> None:
    spool.append([entry(1), entry(2), entry(3)])
    (path,) = segments(spool)
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 20] ^= 1
    path.write_bytes(content)
    with capture_logs() as said:
        assert read(spool, most=1) == [1]
        assert spool.backlog == 1
        assert read(spool) == [3]
    assert [each["event"] for each in said] == ["spool.corrupt"]


def test_a_write_that_is_withdrawn_never_was(spool: Spool) -> None:
    spool.append([entry(1)])
    spool.note(Spoilt(1, 1, "why"))
    spool.withdraw(spool.write([entry(2)]))
    assert (spool.count, spool.has_notes) == (1, True)
    spool.append([entry(3)])
    found = adopt(spool)
    with capture_logs() as said:
        assert read(found) == [1, 3]
    assert said == []
    assert found.known.spoilt == {(1, 1): "why"}


def test_folders_of_others_that_are_closed_to_us_are_said_once_and_passed_over(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append([entry(1)])
    other = spool.base / "0"
    other.mkdir()
    look = Path.iterdir

    def closed(folder: Path) -> Iterator[Path]:
        if folder == other:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return look(folder)

    monkeypatch.setattr(Path, "iterdir", closed)
    said: set[Path] = set()
    with capture_logs() as events:
        for _ in range(3):
            assert spools.left_behind(spool.base, own=None, said=said) == [spool.folder]
            assert spools.search(spool.base, [(2, "t")], said=said) == {}
    assert [(each["event"], each["path"]) for each in events] == [("spool.not_read", str(other))]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_there_is_no_spool_and_nothing_is_left_of_the_tries(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    opened = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", none)
        for _ in range(3):
            with pytest.raises(OSError, match=os.strerror(number)):
                spool.append([entry(1)])
    assert list(spool.base.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == opened
    spool.append([entry(1)])
    assert read(spool) == [1]
