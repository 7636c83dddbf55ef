"""From rows to files: one function per format, each row written as it comes."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pyexp_daemon import exceptions
from pyexp_daemon.export.values import as_json, as_text

Rows = Iterable[Mapping[str, Any]]
Writer = Callable[[TextIO, Sequence[str], Rows], int]


def write_csv(file: TextIO, columns: Sequence[str], rows: Rows) -> int:
    """Write a header and one line per row, as RFC 4180 has it but with plain newlines; how many rows there were."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow([as_text(row[column]) for column in columns])
        count += 1
    return count


def write_json(file: TextIO, columns: Sequence[str], rows: Rows) -> int:
    """Write one array with an object per row, each on a line of its own; how many rows there were."""
    file.write("[")
    count = 0
    for row in rows:
        text = json.dumps({column: as_json(row[column]) for column in columns}, ensure_ascii=False)
        file.write(f"{',' if count else ''}\n{text}")
        count += 1
    file.write("\n]\n" if count else "]\n")
    return count


WRITERS: Mapping[str, Writer] = {"csv": write_csv, "json": write_json}


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A new file that takes the place of `path` when the block ends, and leaves nothing when it fails.

    Raises:
        UsageError: it cannot be written there.
    """
    if path.is_symlink():
        path = path.resolve()  # what a link points to is replaced, not the link
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="") as device:
            yield device
        return
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", text=True)
    except OSError as error:
        raise _refused(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _refused(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _refused(path: Path, error: OSError) -> exceptions.UsageError:
    return exceptions.UsageError(f"{path} cannot be written: {error.strerror}")


def _umask() -> int:
    """What the user takes away from the permissions of new files; temporary ones are private to begin with."""
    current = os.umask(0o077)
    os.umask(current)
    return current
