"""LaTeX: values as text of a document, and tables for the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import IO, Any

from pyexp_daemon.export.values import as_text, is_number

END = "\\bottomrule\n\\end{tabular}\n"
MIDRULE = "\\midrule\n"

_BLANKS = re.compile(r"[\x00-\x20\x7f]+")
_ESCAPES = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # At the beginning of a line, \\ and \midrule would take these for their own arguments.
        "[": "{[}",
        "*": "{*}",
    }
)


def escape(text: str) -> str:
    """A text as LaTeX prints it, on one line."""
    return _BLANKS.sub(" ", text).translate(_ESCAPES)


def cell(value: Any) -> str:
    """A value as one cell: numbers in math mode, so that a minus is one; NULL is empty."""
    if not is_number(value):
        return escape(as_text(value))
    mantissa, _, exponent = as_text(value).lower().partition("e")
    return rf"${mantissa} \cdot 10^{{{int(exponent)}}}$" if exponent else f"${mantissa}$"


def begin(alignment: str) -> str:
    """The beginning of a table, with one letter for each column."""
    return f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{alignment}}}\n\\toprule\n"


def line(cells: Iterable[str]) -> str:
    """One row of a table."""
    return f"{' & '.join(cells)} \\\\\n"


def write_latex(file: IO[str], columns: Collection[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a booktabs table with one line per row; how many rows there were."""
    file.write(begin("l" * len(columns)) + line(map(escape, columns)) + MIDRULE)
    count = 0
    for row in rows:
        file.write(line(cell(row[column]) for column in columns))
        count += 1
    file.write(END)
    return count
