"""A pivot table, and what it looks like: LaTeX, Markdown, CSV, JSON, HTML, a DataFrame."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyexp_daemon.export import frames, latex, markdown
from pyexp_daemon.export.values import as_json, as_text

if TYPE_CHECKING:
    import pandas

Label = tuple[Any, ...]
MISSING = "--"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the experiments of one row and one column come to."""

    number: float | None
    """The aggregate; None where there is none."""
    std: float | None = None
    """The sample standard deviation, if it is asked for beside the mean and there are two values or more."""
    n: int
    """How many values it is made of."""
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Pivot:
    """Values of experiments, aggregated by some of their fields; a table in a notebook, and Markdown as `str`."""

    row_fields: tuple[str, ...]
    column_fields: tuple[str, ...]
    values: tuple[str, ...]
    """The fields that are aggregated."""
    agg: str
    best: str | None
    digits: int
    """How many digits are shown after the point."""
    rows: tuple[Label, ...]
    """Of each row the values of `row_fields`."""
    columns: tuple[Label, ...]
    """Of each column the aggregated field, then the values of `column_fields`."""
    cells: tuple[tuple[Cell, ...], ...]
    """Row by row."""
    experiments: int
    """How many experiments are in it."""
    not_done: int
    """How many were left out because they are not done."""
    without_value: Mapping[str, int]
    """How many had NULL, or a number that is not finite, by aggregated field."""

    @property
    def summary(self) -> str:
        """How many experiments are in it, and what is not, in one line."""
        sizes = [cell.n for row in self.cells for cell in row]
        least, most = min(filter(None, sizes)), max(sizes)
        text = f"{self.experiments} experiment{'' if self.experiments == 1 else 's'}"
        text += f", {least if least == most else f'{least} to {most}'} in a cell"
        if missing := sizes.count(0):
            text += f", {missing} of {len(sizes)} cells missing"
        left_out = {"not done": self.not_done, **{f"without {field}": n for field, n in self.without_value.items()}}
        shown = ", ".join(f"{count} {why}" for why, count in left_out.items() if count)
        return f"{text}; left out: {shown}" if shown else text

    def to_latex(self) -> str:
        r"""A table for the package booktabs: the best `$\mathbf{0.953 \pm 0.012}$`, a missing cell `--`."""
        labels = len(self.row_fields)
        lines = [latex.begin("l" * labels + ("c" if self._has_std else "r") * len(self.columns))]
        for level in range(len(self._headings[0]) - 1):
            spans = self._spans(level)
            heads = (rf"\multicolumn{{{width}}}{{c}}{{{latex.cell(_shown(label))}}}" for label, width in spans)
            ends = list(itertools.accumulate((width for _, width in spans), initial=labels))
            rules = (rf"\cmidrule(lr){{{start + 1}-{end}}}" for start, end in itertools.pairwise(ends))
            lines += [latex.line([*[""] * labels, *heads]), " ".join(rules), "\n"]
        lines.append(latex.line(map(latex.cell, (*self.row_fields, *(_shown(head[-1]) for head in self._headings)))))
        lines.append(latex.MIDRULE)
        above: Label = ()
        for row, cells in zip(self.rows, self.cells, strict=True):
            own = (  # what is as in the row above is not said again
                "" if row[: place + 1] == above[: place + 1] else latex.cell(_shown(value))
                for place, value in enumerate(row)
            )
            lines.append(latex.line([*own, *map(self._latex_cell, cells)]))
            above = row
        return "".join([*lines, latex.END])

    def to_markdown(self) -> str:
        """A table with the best in bold and a missing cell as `--`, aligned so that it can be read as it is."""
        lines = [
            [markdown.escape(text) for text in (*self.row_fields, *self._heading_texts)],
            *(
                [*(markdown.escape(as_text(_shown(value))) for value in row), *map(self._markdown_cell, cells)]
                for row, cells in zip(self.rows, self.cells, strict=True)
            ),
        ]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        labels = len(self.row_fields)
        rule = ["-" * width if place < labels else f"{'-' * (width - 1)}:" for place, width in enumerate(widths)]
        lines.insert(1, rule)
        return "".join(
            markdown.line(
                text.ljust(width) if place < labels else text.rjust(width)
                for place, (text, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )

    __str__ = to_markdown

    def to_csv(self) -> str:
        """A header and one line per row: numbers in full, mean and deviation as shown, a missing cell empty."""
        file = io.StringIO(newline="")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*self.row_fields, *self._heading_texts])
        for row, cells in zip(self.rows, self.cells, strict=True):
            writer.writerow([*map(as_text, row), *(as_text(self._plain(cell)) for cell in cells)])
        return file.getvalue()

    def to_json(self) -> str:
        """One document: the fields, what was asked for, and the cells with their labels, numbers in full."""
        cells = [
            {"row": [*map(as_json, row)], "column": [*map(as_json, column[1:])], "value": column[0], **asdict(cell)}
            for row, cells in zip(self.rows, self.cells, strict=True)
            for column, cell in zip(self.columns, cells, strict=True)
        ]
        own = {name: value for name, value in vars(self).items() if name not in ("rows", "columns", "cells")}
        return json.dumps({**own, "cells": cells}, ensure_ascii=False, indent=2) + "\n"

    def to_frame(self) -> pandas.DataFrame:
        """A DataFrame indexed by `row_fields`: numbers in full, or mean and deviation as text.

        Raises:
            UsageError: pandas is not installed.
        """
        pandas = frames.library()
        names = (*([None] if len(self.values) > 1 or not self.column_fields else []), *self.column_fields)

        def index(labels: tuple[Label, ...], names: tuple[str | None, ...]) -> Any:
            if len(names) == 1:
                return pandas.Index([label[0] for label in labels], name=names[0])
            return pandas.MultiIndex.from_tuples(labels, names=names)

        return pandas.DataFrame(
            [[self._plain(cell) for cell in cells] for cells in self.cells],
            index=index(self.rows, self.row_fields),
            columns=index(self._headings, names),
            dtype=None if self._has_std else float,
        )

    def _repr_html_(self) -> str:
        """The table as notebooks show it."""
        levels = len(self._headings[0])
        lines = []
        for level in range(levels):
            own = self.row_fields if level == levels - 1 else [""] * len(self.row_fields)
            heads = "".join(
                f'<th colspan="{width}">{_html(as_text(_shown(label)))}</th>' for label, width in self._spans(level)
            )
            lines.append("".join(f"<th>{_html(name)}</th>" for name in own) + heads)
        head = "".join(f"<tr>{line}</tr>\n" for line in lines)
        body = "".join(
            f"<tr>{''.join(f'<th>{_html(as_text(_shown(value)))}</th>' for value in row)}"
            f"{''.join(map(self._html_cell, cells))}</tr>\n"
            for row, cells in zip(self.rows, self.cells, strict=True)
        )
        caption = _html(f"{self.agg} of {', '.join(self.values)}: {self.summary}")
        return (
            f'<table class="dataframe">\n<caption>{caption}</caption>\n'
            f"<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>\n"
        )

    @property
    def _has_std(self) -> bool:
        return "±" in self.agg

    @property
    def _headings(self) -> tuple[Label, ...]:
        """What stands above each column; the name of the aggregated field where it says something."""
        if self.column_fields and len(self.values) == 1:
            return tuple(column[1:] for column in self.columns)
        return self.columns

    @property
    def _heading_texts(self) -> list[str]:
        """The same in one line."""
        return [" / ".join(as_text(_shown(label)) for label in heading) for heading in self._headings]

    def _spans(self, level: int) -> list[tuple[Any, int]]:
        """The headings of one level, each with the number of its columns."""
        groups = itertools.groupby(self._headings, key=lambda heading: heading[: level + 1])
        return [(heading[level], len(list(columns))) for heading, columns in groups]

    def _plain(self, cell: Cell) -> float | str | None:
        return self._text(cell) if self._has_std and cell.number is not None else cell.number

    def _text(self, cell: Cell, *, sign: str = "±") -> str:
        """The cell as it is shown, without emphasis."""
        numbers = [f"{number:z.{self.digits}f}" for number in (cell.number, cell.std) if number is not None]
        return f" {sign} ".join(numbers) or MISSING

    def _latex_cell(self, cell: Cell) -> str:
        if cell.number is None:
            return MISSING
        text = self._text(cell, sign=r"\pm")
        return rf"$\mathbf{{{text}}}$" if cell.is_best else f"${text}$"

    def _markdown_cell(self, cell: Cell) -> str:
        return f"**{self._text(cell)}**" if cell.is_best else self._text(cell)

    def _html_cell(self, cell: Cell) -> str:
        text = "–" if cell.number is None else self._text(cell)
        return f"<td>{f'<strong>{text}</strong>' if cell.is_best else text}</td>"


def _shown(label: Any) -> Any:
    return "NULL" if label is None else label


def _html(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
