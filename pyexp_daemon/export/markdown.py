"""Markdown: values as text of a document, and tables as GitHub has them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import IO, Any

from pyexp_daemon.export.values import as_text

_SIGNS = re.compile(r"[\\|`*~<\[\]]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")  # an _ inside a word means nothing
_NEWLINES = re.compile(r"\r\n?|\n")


def escape(text: str) -> str:
    """A text as Markdown prints it, on one line."""
    return _NEWLINES.sub("<br>", _SIGNS.sub(r"\\\g<0>", text))


def line(cells: Iterable[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |\n"


def write_markdown(file: IO[str], columns: Collection[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a table with one line per row; how many rows there were."""
    file.write(line(map(escape, columns)) + line("---" for _ in columns))
    count = 0
    for row in rows:
        file.write(line(escape(as_text(row[column])) for column in columns))
        count += 1
    return count
