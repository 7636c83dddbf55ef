"""From rows to files: one function per format, each row written as it comes."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from pyexp_daemon import exceptions
from pyexp_daemon.export.latex import write_latex
from pyexp_daemon.export.markdown import write_markdown
from pyexp_daemon.export.parquet import write_parquet
from pyexp_daemon.export.values import as_json, as_text

Rows = Iterable[Mapping[str, Any]]


def write_csv(file: IO[str], columns: Collection[str], rows: Rows) -> int:
    """Write a header and one line per row, as RFC 4180 has it but with plain newlines; how many rows there were."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow([as_text(row[column]) for column in columns])
        count += 1
    return count


def write_json(file: IO[str], columns: Collection[str], rows: Rows) -> int:
    """Write one array with an object per row, each on a line of its own; how many rows there were."""
    file.write("[")
    count = 0
    for row in rows:
        text = json.dumps({column: as_json(row[column]) for column in columns}, ensure_ascii=False)
        file.write(f"{',' if count else ''}\n{text}")
        count += 1
    file.write("\n]\n" if count else "]\n")
    return count


WRITERS: Mapping[str, Callable[[IO[Any], Mapping[str, str], Rows], int]] = {
    "csv": write_csv,
    "json": write_json,
    "latex": write_latex,
    "md": write_markdown,
    "parquet": write_parquet,
}
"""The formats; `parquet` alone writes bytes."""


def format_of(path: Path) -> str | None:
    """The format that the ending of a name stands for."""
    ending = path.suffix.removeprefix(".").lower()
    return "latex" if ending == "tex" else ending if ending in WRITERS else None


def write(path: Path, columns: Mapping[str, str], rows: Rows, *, kind: str | None = None) -> int:
    """Write rows to a file that appears, in the place of an older one, when it is complete; how many there were.

    Args:
        columns: name and SQL type of each.
        kind: one of WRITERS; None goes by the ending of the name (.csv .json .md .parquet .tex), anything else is csv.

    Raises:
        UsageError: it cannot be written there; or for Parquet, pyarrow is missing or a value is not of its type.
    """
    kind = kind or format_of(path) or "csv"
    with replacing_bytes(path) if kind == "parquet" else replacing(path) as file:
        return WRITERS[kind](file, columns, rows)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """The same as `replacing_bytes`, for text."""
    with replacing_bytes(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        yield text


@contextmanager
def replacing_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when the block ends, and leaves nothing when it fails.

    Raises:
        UsageError: it cannot be written there.
    """
    if path.is_symlink():
        path = path.resolve()  # what a link points to is replaced, not the link
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _refused(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
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
