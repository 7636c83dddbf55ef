"""The spool: what waits for the database, in append-only files of one process that outlive it.

What touches the disk blocks, and is called in threads, one at a time: `write`, `withdraw`, `look_ahead`, `left`,
`tidy`, `close`. What a write or a look ahead is to change is given back by it, and holds with `accept` and `take`: one
that comes too late has changed nothing. These, `note`, `stored` and the counts are for the loop, at any time.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.errands import goes_on
from pyexp_daemon.daemon.hosts import LockFile
from pyexp_daemon.daemon.records import (
    Corrupt,
    Entry,
    Note,
    Notes,
    Place,
    Rebound,
    Spoilt,
    decode,
    encode,
    is_entry,
)
from pyexp_daemon.failpoint import failpoint
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Outcome, Report

log = get_logger()

SEGMENT_BYTES = 4 * 2**20
"""A file that is longer is continued in another one."""

RETAINED_S = 3600.0
"""How long what is stored is kept, for a database that comes back without it: from a backup, or a lagging replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A group of records on disk."""

    begin: Place
    backlog_at: Place
    """Where the first entry begins that is not on its way."""
    flying: int
    flying_bytes: int
    backlog: int
    backlog_bytes: int
    notes: int
    mark: Place


@dataclass(slots=True)
class Ahead:
    """Entries that were read back."""

    cursor: Place | None
    """Where to go on; None at the end of the backlog."""
    taken: int = 0
    taken_bytes: int = 0
    skipped: int = 0
    skipped_bytes: int = 0


class Spool:
    """The records of one process. Its folder and the lock in it are made with the first of them.

    The entries are stored in their order: first those that were on their way to the database when they were spooled,
    then, from a cursor on, the backlog that `read` gives back.
    """

    def __init__(self, base: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """
        Args:
            base: the folder of all spools of this table on this host.
        """
        self.base = base
        self.folder: Path | None = None
        self.known = Notes()
        """What was noted before this process had the spool."""
        self._segment_bytes = segment_bytes
        self._lock: LockFile | None = None
        self._descriptor: int | None = None
        self._end = Place(0, 0)
        self._cursor: Place | None = None
        self._stored = self._marked = Place(0, 0)
        self._notes: deque[Note] = deque()
        self._backlog = self._backlog_bytes = self._flying = self._flying_bytes = 0
        self._stored_at: dict[int, float] = {}  # by segment, as soon as all of it is stored
        self._appended_at = 0.0
        self._unreadable: set[Path] = set()

    @classmethod
    def adopt(cls, folder: Path) -> Self | None:
        """The spool a dead process left behind, everything not known to be stored as its backlog.

        None when its process lives, or another one has it in hand.

        Raises:
            OSError: it cannot be read.
        """
        try:
            lock = LockFile(folder / "lock", create=False)
        except (exceptions.AlreadyRunning, OSError):
            return None
        spool = cls(folder.parent)
        spool.folder, spool._lock = folder, lock
        try:
            spool._survey()
        except OSError:
            lock.release()
            raise
        return spool

    @property
    def is_open(self) -> bool:
        """Whether there is anything on disk."""
        return self.folder is not None

    @property
    def has_backlog(self) -> bool:
        """Whether there is anything to read back."""
        return self._cursor is not None

    @property
    def backlog(self) -> int:
        """Entries that have not been read back yet; at least 1 as long as there may be one."""
        return max(self._backlog, 1) if self.has_backlog else 0

    @property
    def count(self) -> int:
        """Entries that are not stored yet."""
        return self.backlog + self._flying

    @property
    def size_bytes(self) -> int:
        """Bytes of the entries that are not stored yet."""
        return self._backlog_bytes + self._flying_bytes

    @property
    def has_notes(self) -> bool:
        """Whether something was noted that is not on disk yet."""
        return bool(self._notes)

    def note(self, note: Note) -> None:
        """Write this down with whatever is appended next; from any thread."""
        self._notes.append(note)

    def append(self, entries: Sequence[Entry], *, flying: int = 0) -> None:
        """Make entries durable, and what was noted before them; they are when this returns.

        Args:
            flying: how many of them, the first ones, are on their way to the database already.

        Raises:
            OSError: none of the entries counts as appended.
        """
        self.accept(self.write(entries, flying=flying))

    def write(self, entries: Sequence[Entry], *, flying: int = 0) -> Written:
        """The first half of `append`: everything on disk, and nothing counted yet.

        Raises:
            OSError: nothing was written.
        """
        body = [encode(entry) for entry in entries]
        notes, mark = list(self._notes), self._stored
        records = [*notes, mark] if mark != self._marked else notes
        head = b"".join(encode(record) for record in records)
        begin = self._write([head, *body])
        failpoint("spool.synced")
        first, rest = body[:flying], body[flying:]
        flying_bytes = sum(map(len, first))
        return Written(
            begin=begin,
            backlog_at=Place(begin.segment, begin.offset + len(head) + flying_bytes),
            flying=len(first),
            flying_bytes=flying_bytes,
            backlog=len(rest),
            backlog_bytes=sum(map(len, rest)),
            notes=len(notes),
            mark=mark,
        )

    def accept(self, written: Written) -> None:
        """What was written counts from now on."""
        for _ in range(written.notes):
            self._notes.popleft()
        self._marked = written.mark
        self._flying += written.flying
        self._flying_bytes += written.flying_bytes
        if written.backlog and self._cursor is None:
            self._cursor = written.backlog_at
        self._backlog += written.backlog
        self._backlog_bytes += written.backlog_bytes

    def withdraw(self, written: Written) -> None:
        """Cut off what was written last: it came too late, and is elsewhere by now."""
        self._cut(written.begin)

    def read(self, fits: Callable[[Entry, int], bool]) -> int:
        """Offer the backlog, oldest first, until an entry does not fit; how many were taken on their way.

        What cannot be read is said and passed over.

        Args:
            fits: takes an entry and its size in bytes; False when it has to wait.

        Raises:
            OSError: nothing of it can be read now.
        """
        ahead = self.look_ahead(fits)
        self.take(ahead)
        return ahead.taken

    def look_ahead(self, fits: Callable[[Entry, int], bool]) -> Ahead:
        """The first half of `read`: nothing is counted as taken yet."""
        ahead = Ahead(self._cursor)
        for place, after, line in self._lines(self._cursor or self._end):
            try:
                record = decode(line)
            except Corrupt as error:
                self._say_corrupt(place, line, error)
                if is_entry(line):
                    ahead.skipped += 1
                    ahead.skipped_bytes += len(line)
                continue
            if not isinstance(record, Entry):
                continue
            if not fits(record, len(line)):
                ahead.cursor = place
                return ahead
            ahead.cursor = after
            ahead.taken += 1
            ahead.taken_bytes += len(line)
        ahead.cursor = None
        return ahead

    def take(self, ahead: Ahead) -> None:
        """What was read back is on its way."""
        self._cursor = ahead.cursor
        self._flying += ahead.taken
        self._flying_bytes += ahead.taken_bytes
        self._backlog -= ahead.taken + ahead.skipped
        self._backlog_bytes -= ahead.taken_bytes + ahead.skipped_bytes
        if ahead.cursor is None:
            if self._backlog > 0:
                log.error("spool.unreadable", folder=str(self.folder), count=self._backlog)
            self._backlog = self._backlog_bytes = 0

    def stored(self) -> None:
        """Everything that was on its way to the database has arrived."""
        self._flying = self._flying_bytes = 0
        before, self._stored = self._stored, self._cursor or self._end
        for number in range(before.segment, self._stored.segment):
            self._stored_at[number] = time.time()

    def left(self) -> dict[int, bool]:
        """The experiments of which something waits here, and whether it is worth storing: more than a handing back.

        Raises:
            OSError: nothing of it can be read now.
        """
        found: dict[int, bool] = {}
        for _, _, line in self._lines(self._stored):
            with suppress(Corrupt):
                record = decode(line)
                if isinstance(record, Entry):
                    number = record.report.claim.experiment_id
                    found[number] = found.get(number, False) or is_result(record.report)
        return found

    def tidy(self, now: float | None = None) -> None:
        """Delete the files whose entries are all stored, an hour after they were.

        Args:
            now: seconds since the epoch.

        Raises:
            OSError: the folder cannot be read now.
        """
        now = time.time() if now is None else now
        if not self.count and self._end.offset and now - self._appended_at > RETAINED_S:
            self._close_segment()
            self.stored()
        for number, path in self._segments():
            if now - self._stored_at.get(number, now) > RETAINED_S:
                with suppress(OSError):  # it stays until the folder goes
                    path.unlink()
                del self._stored_at[number]

    def close(self) -> None:
        """Let go of it: nothing was lost, and nothing is left to do for others if everything is stored."""
        if self.folder is None or self._lock is None:
            return
        with suppress(OSError):
            if self._notes or self._stored != self._marked:
                self.append([])
            if not self.count:
                (self.folder / DONE).touch(mode=0o600)
        self._close_segment()
        self._let_go()

    def _survey(self) -> None:
        """Read what a former owner noted, and count what it left."""
        segments = self._segments()
        for _, _, line in self._lines(Place(0, 0)):
            if not is_entry(line):
                with suppress(Corrupt):
                    record = decode(line)
                    if isinstance(record, Place):
                        self._stored = self._marked = max(self._stored, record)
                    elif isinstance(record, Rebound | Spoilt):
                        self.known.add(record)
        # Never at the end of a file that may be torn.
        self._end = Place(segments[-1][0] + 1 if segments else 0, 0)
        for _, _, line in self._lines(self._stored):
            if is_entry(line):
                self._backlog += 1
                self._backlog_bytes += len(line)
        self._cursor = self._stored if self._backlog else None

    def _write(self, parts: Sequence[bytes]) -> Place:
        """Write and sync lines; where they begin."""
        data = b"".join(parts)
        if self._descriptor is None or self._end.offset >= self._segment_bytes or not self._is_there():
            self._begin_segment()
        assert self._descriptor is not None
        begin = self._end
        try:
            _write_all(self._descriptor, data)
            os.fdatasync(self._descriptor)
        except OSError:
            self._cut(begin)
            raise
        self._end = Place(begin.segment, begin.offset + len(data))
        self._appended_at = time.time()
        return begin

    def _cut(self, begin: Place) -> None:
        """Nothing from here on may stay; if it does, and is torn, it is at the end of its file."""
        with suppress(OSError):
            assert self._descriptor is not None
            if begin.offset:
                os.ftruncate(self._descriptor, begin.offset)
            else:  # a disk that stays full for hours must not fill up with empty files
                self._path(begin.segment).unlink()
        self._close_segment()

    def _is_there(self) -> bool:
        """Whether what is written can still be found: somebody may have removed it under our hands."""
        assert self._descriptor is not None
        assert self._lock is not None
        return os.fstat(self._descriptor).st_nlink > 0 and self._lock.is_there

    def _begin_segment(self) -> None:
        self._close_segment()
        if self.folder is None or not self.folder.exists():
            self._make_folder()
        assert self.folder is not None
        if self._lock is None or not self._lock.is_there:
            self._lock_again(self.folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        while True:
            try:
                self._descriptor = os.open(self._path(self._end.segment), flags, 0o600)
                break
            except FileExistsError:  # of an attempt that failed, and yet made it
                self._end = Place(self._end.segment + 1, 0)
        try:
            _sync_folder(self.folder)
        except OSError:
            self._cut(self._end)
            raise

    def _close_segment(self) -> None:
        """Go on in another file with the next record."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            self._end = Place(self._end.segment + 1, 0)
            with suppress(OSError):  # what matters was synced before
                os.close(descriptor)

    def _make_folder(self) -> None:
        # Renamed when it is locked: nobody may see it unlocked and take its owner for dead.
        self.base.mkdir(parents=True, exist_ok=True)
        name = secrets.token_hex(8)
        fresh, folder = self.base / f".{name}", self.base / name
        fresh.mkdir(mode=0o700)
        try:
            lock = LockFile(fresh / "lock")
            try:
                fresh.rename(folder)
                _sync_folder(self.base)
            except OSError:
                lock.release()
                raise
        except OSError:
            for path in (fresh, folder):
                shutil.rmtree(path, ignore_errors=True)
            raise
        self._let_go()
        self._lock, self.folder = lock, folder

    def _lock_again(self, folder: Path) -> None:
        """The lock was removed: without one nobody would ever take what is left here for a dead process's."""
        self._let_go()
        try:
            self._lock = LockFile(folder / "lock")
        except exceptions.AlreadyRunning as error:
            raise OSError(errno.EBUSY, str(error), str(folder)) from error

    def _let_go(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            with suppress(OSError):
                lock.release()

    def _path(self, segment: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{segment:08d}{_SEGMENT}"

    def _lines(self, start: Place) -> Iterator[tuple[Place, Place, bytes]]:
        return lines(self._segments(), start, said=self._unreadable)

    def _segments(self) -> list[tuple[int, Path]]:
        return segments_of(self.folder) if self.folder is not None else []

    def _say_corrupt(self, place: Place, line: bytes, error: Corrupt) -> None:
        path = str(self._path(place.segment))
        if line.endswith(b"\n"):
            log.warning("spool.corrupt", file=path, offset=place.offset, size_bytes=len(line), error=str(error))
        else:
            log.warning("spool.torn", file=path, offset=place.offset, size_bytes=len(line))


_SEGMENT = ".records"
DONE = "done"
"""The file that says, by its date too, that everything was stored."""


def is_result(report: Report) -> bool:
    """Whether storing it changes anything but who may run the experiment."""
    ended = report.end is not None and report.end.outcome is not Outcome.RELEASED
    return ended or bool(report.results or report.logs or report.parts)


def segments_of(folder: Path) -> list[tuple[int, Path]]:
    """The files of a spool with their numbers, in order.

    Raises:
        OSError: it cannot be looked into.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    return [
        (int(number), folder / name)
        for name in names
        for number, dot, rest in [name.partition(".")]
        if dot + rest == _SEGMENT and number.isdecimal()
    ]


def lines(
    segments: Sequence[tuple[int, Path]], start: Place, *, said: set[Path]
) -> Iterator[tuple[Place, Place, bytes]]:
    """Every line from a place on: where it begins, where the next one does, and its bytes.

    A file that cannot be read, or not to its end, is said and passed over.

    Args:
        said: of which files that was said already.
    """
    for number, path in segments:
        if number < start.segment:
            continue
        goes_on()
        try:
            with path.open("rb") as file:
                offset = start.offset if number == start.segment else 0
                file.seek(offset)
                for line in file:
                    yield Place(number, offset), Place(number, offset + len(line)), line
                    offset += len(line)
        except FileNotFoundError:
            continue
        except OSError as error:
            say_unreadable(path, error, said)


def say_unreadable(path: Path, error: OSError, said: set[Path]) -> None:
    """Say it once of each file or folder."""
    if path not in said:
        said.add(path)
        log.error("spool.not_read", path=str(path), error=str(error))


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
