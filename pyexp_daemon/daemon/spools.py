"""All spools of a table on this host: what dead processes left, what is known of attempts, what is needed no longer."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.hosts import LockFile
from pyexp_daemon.daemon.records import (
    Corrupt,
    Entry,
    Held,
    Note,
    Notes,
    Place,
    Rebound,
    Spoilt,
    decode,
    is_entry,
    under,
)
from pyexp_daemon.daemon.spool import DONE, RETAINED_S, lines, say_unreadable, segments_of


def left_behind(base: Path, *, own: Path | None, said: set[Path]) -> list[Path]:
    """The folders of other processes that may hold what is not stored yet.

    Those we may not look into, of another user say, are said and passed over.

    Args:
        said: of which folders that was said already.
    """
    found: list[Path] = []
    for folder in _folders(base):
        try:
            names = {path.name for path in folder.iterdir()} if folder != own else set[str]()
            if "lock" in names and DONE not in names:
                found.append(folder)
        except OSError as error:
            say_unreadable(folder, error, said)
    return found


def search(base: Path, wanted: Collection[Held], *, said: set[Path]) -> dict[Held, list[Entry]]:
    """All entries of attempts of this host that have ended, in their order, under the tokens that are asked for.

    Only of attempts of which the spool has everything: see `Entry.whole`. What cannot be read is said and passed over.

    Args:
        said: of which folders and files that was said already.
    """
    if not wanted:
        return {}
    found: dict[Held, list[Entry]] = {held: [] for held in wanted}
    for folder in _folders(base):
        try:
            segments = segments_of(folder)
        except OSError as error:
            say_unreadable(folder, error, said)
            continue
        notes = Notes()
        for note in _notes(segments, said):
            notes.add(note)
        pattern = re.compile("|".join(map(re.escape, sorted(notes.tokens(wanted)))).encode())
        alike = {(number, notes.token((number, token))): (number, token) for number, token in wanted}
        for _, _, line in lines(segments, Place(0, 0), said=said):
            if not is_entry(line) or not pattern.search(line):
                continue
            with suppress(Corrupt):
                record = decode(line)
                assert isinstance(record, Entry)
                number, token = record.report.claim.key
                held = alike.get((number, notes.token((number, token))))
                if held is not None:
                    found[held].append(replace(record, report=under(record.report, held[1])))
    return {
        held: entries for held, entries in found.items() if any(entry.report.end and entry.whole for entry in entries)
    }


def remove_old(base: Path, now: float | None = None) -> None:
    """Delete the spools of dead processes in which everything was stored an hour ago."""
    oldest = (time.time() if now is None else now) - RETAINED_S
    for folder in _folders(base, hidden=True):
        with suppress(OSError, exceptions.AlreadyRunning):
            is_fresh = folder.name.startswith(".")  # its process died while it made it
            if (folder if is_fresh else folder / DONE).stat().st_mtime < oldest:
                lock = LockFile(folder / "lock") if is_fresh else LockFile(folder / "lock", create=False)
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()


def _folders(base: Path, *, hidden: bool = False) -> list[Path]:
    try:
        with os.scandir(base) as found:
            return sorted(
                Path(each.path)
                for each in found
                if each.is_dir(follow_symlinks=False) and (hidden or not each.name.startswith("."))
            )
    except OSError:  # there are none, as far as we can see
        return []


def _notes(segments: Sequence[tuple[int, Path]], said: set[Path]) -> Iterator[Note]:
    for _, _, line in lines(segments, Place(0, 0), said=said):
        if not is_entry(line):
            with suppress(Corrupt):
                record = decode(line)
                if isinstance(record, Rebound | Spoilt):
                    yield record
