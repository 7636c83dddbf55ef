"""From rows to a pivot table: which experiments share a cell, what their values come to, which cells are best."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pyexp_daemon import exceptions
from pyexp_daemon.config.mistakes import did_you_mean
from pyexp_daemon.export.pivot_table import Cell, Label, Pivot
from pyexp_daemon.export.values import as_number, as_text, is_number

if TYPE_CHECKING:
    import pandas

MEAN_AND_STD = "mean ± std"
AGGREGATES: Mapping[str, Callable[[list[float]], float | None]] = {
    MEAN_AND_STD: statistics.fmean,
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
    "sum": math.fsum,
    "std": lambda values: statistics.stdev(values) if len(values) > 1 else None,
    "count": len,
}
MOST_DIGITS = 15

Best = Literal["max", "min"]
BestOf = Literal["rows", "columns"]
Names = tuple[str, ...]


def pivot(
    rows: Iterable[Mapping[str, Any]] | pandas.DataFrame,
    layout: str,
    *,
    value: str | Sequence[str],
    agg: str = MEAN_AND_STD,
    best: Best | None = None,
    best_of: BestOf | None = None,
    digits: int = 3,
    only_done: bool = True,
    fields: Collection[str] | None = None,
) -> Pivot:
    """Aggregate values of experiments over all fields that the layout does not name, seeds for example.

    Rows and columns are those of all experiments, also of those that do not count. They are in order of appearance, and
    by size where a field is a number throughout.

    Args:
        rows: the experiments, or a DataFrame of them; those with a `status` other than done do not count.
        layout: `rows x columns`, each a field or several with commas between them; or rows alone.
        value: the field to aggregate, or several. NULL, NaN and infinities are no values.
        agg: one of AGGREGATES; std is the sample standard deviation, which a single value does not have.
        best: mark the largest or the smallest numbers; those that are shown alike are all the best.
        best_of: of each row or of each column; None is rows, or columns where the layout has rows alone.
        digits: how many are shown after the point; counts have none.
        only_done: False counts experiments of every status.
        fields: the fields of the rows; None takes them from the first row.

    Raises:
        UsageError: the layout, a name or an option is wrong, a value is no number, or there is nothing to aggregate.
    """
    remaining = iter(rows.to_dict("records") if hasattr(rows, "to_dict") else rows)
    begin = list(itertools.islice(remaining, 1))
    known = tuple(fields or itertools.chain(*begin))
    agg, (row_fields, column_fields) = parse_agg(agg), parse_layout(layout)
    values = [value] if isinstance(value, str) else value
    tally = _Tally(*(_fields(names, known) for names in (row_fields, column_fields, values)))
    if not 0 <= digits <= MOST_DIGITS:
        raise exceptions.UsageError(f"{digits} digits cannot be shown", hint=f"0 to {MOST_DIGITS}")
    for row in itertools.chain(begin, remaining):
        tally.add(row, counts=not only_done or row.get("status", "done") == "done")
    tally.check()
    digits = 0 if agg == "count" else digits
    labels, columns = _ordered(tally.rows), _ordered(tally.columns)
    cells = [[_cell(tally.numbers.get((row, column), []), agg) for column in columns] for row in labels]
    if best:
        of_columns = best_of == "columns" if best_of else not column_fields
        _mark_best(cells, columns, max if best == "max" else min, of_columns=of_columns, digits=digits)
    return Pivot(
        row_fields=tally.row_fields,
        column_fields=tally.column_fields,
        values=tally.values,
        agg=agg,
        best=best,
        digits=digits,
        rows=labels,
        columns=columns,
        cells=tuple(map(tuple, cells)),
        experiments=tally.counted,
        not_done=tally.not_done,
        without_value=tally.without_value,
    )


def parse_layout(text: str) -> tuple[list[str], list[str]]:
    """The names before and after the `x`; it may be a name, too.

    Raises:
        UsageError: it is not `rows x columns` or `rows`.
    """
    words = re.sub(r"\s*,\s*", ",", text.strip()).split()
    sides = [word.split(",") for word in words[::2]]
    if len(words) not in (1, 3) or words[1:2] not in ([], ["x"], ["×"]) or not all(itertools.chain(*sides)):
        raise exceptions.UsageError(
            f"{text!r} does not say what the rows and columns are",
            hint='write "dataset x kernel", "dataset,size x kernel", or "dataset" alone',
        )
    return sides[0], sides[1] if len(sides) == 2 else []


def parse_agg(text: str) -> str:
    """The aggregate that is meant, also by `mean +- std`.

    Raises:
        UsageError: there is none of that name.
    """
    plain = re.sub(r"\s*(±|\+/?-)\s*", " ± ", text.strip().lower())
    if plain not in AGGREGATES:
        raise exceptions.UsageError(
            f"there is no aggregate {text!r}",
            hint=did_you_mean(plain, AGGREGATES) or f"one of {', '.join(AGGREGATES)}",
        )
    return plain


class _Tally:
    """What has been seen of the experiments."""

    def __init__(self, row_fields: Names, column_fields: Names, values: Names) -> None:
        named = [*row_fields, *column_fields, *values]
        repeated = next((name for name in named if named.count(name) > 1), None)
        if repeated is not None:
            raise exceptions.UsageError(
                f"{repeated!r} is named twice", hint="rows, columns and values are other fields"
            )
        self.row_fields = row_fields
        self.column_fields = column_fields
        self.values = values
        self.rows: dict[Label, None] = {}
        self.columns: dict[Label, None] = {}
        self.numbers: defaultdict[tuple[Label, Label], list[float]] = defaultdict(list)
        self.seen = self.counted = self.not_done = 0
        self.without_value = dict.fromkeys(values, 0)

    def add(self, row: Mapping[str, Any], *, counts: bool) -> None:
        row_label, column_label = _label(row, self.row_fields), _label(row, self.column_fields)
        numbers = {name: _number(row, name) for name in self.values} if counts else {}
        self.rows[row_label] = None
        self.columns.update(((name, *column_label), None) for name in self.values)
        for name, number in numbers.items():
            if number is None:
                self.without_value[name] += 1
            else:
                self.numbers[row_label, (name, *column_label)].append(number)
        self.seen += 1
        self.not_done += not counts
        self.counted += any(number is not None for number in numbers.values())

    def check(self) -> None:
        """Refuse a table without a single value."""
        if not self.seen:
            raise exceptions.UsageError("there is nothing to aggregate: no experiments are selected")
        if not self.counted:
            without = ", ".join(f"{count} without {name}" for name, count in self.without_value.items())
            raise exceptions.UsageError(
                f"there is nothing to aggregate: {self.not_done} not done, {without}",
                hint="--status and --where say which experiments count",
            )


def _label(row: Mapping[str, Any], fields: Names) -> Label:
    return tuple(_hashable(row[name]) for name in fields)


def _hashable(value: Any) -> Any:
    if isinstance(value, list | dict):
        return as_text(value)
    return None if value != value else value  # pandas has NaN for NULL


def _number(row: Mapping[str, Any], name: str) -> float | None:
    try:
        return as_number(row[name])
    except ValueError:
        place = f"experiment {row['ID']}: {name}" if "ID" in row else name
        raise exceptions.UsageError(f"{place} is {row[name]!r}, which is no number") from None


def _fields(names: Iterable[str], known: Names) -> Names:
    """The fields of these names, whose capitals do not matter; any name when none are known."""
    spellings = {name.lower(): name for name in known}
    for name in names:
        if known and name.lower() not in spellings:
            hint = did_you_mean(name, known) or f"fields: {', '.join(known)}"
            raise exceptions.UsageError(f"there is no field {name!r}", hint=hint)
    return tuple(spellings.get(name.lower(), name) for name in names)


def _ordered(labels: Iterable[Label]) -> tuple[Label, ...]:
    """By every field in turn: numbers by size, anything else by appearance, NULL last."""
    ranks = []
    for values in zip(*labels, strict=True):
        found = [value for value in dict.fromkeys(values) if value is not None]
        if all(map(is_number, found)):
            found.sort()
        ranks.append({value: place for place, value in enumerate([*found, None])})
    return tuple(sorted(labels, key=lambda label: [rank[value] for rank, value in zip(ranks, label, strict=True)]))


def _cell(values: list[float], agg: str) -> Cell:
    if not values:
        return Cell(number=None, n=0)
    try:
        std = statistics.stdev(values) if agg == MEAN_AND_STD and len(values) > 1 else None
        return Cell(number=AGGREGATES[agg](values), std=std, n=len(values))
    except OverflowError:
        raise exceptions.UsageError(f"{max(values, key=abs)!r} is too large to calculate the {agg} of") from None


def _mark_best(
    cells: list[list[Cell]],
    columns: Sequence[Label],
    extreme: Callable[[Iterable[float]], float],
    *,
    of_columns: bool,
    digits: int,
) -> None:
    groups: defaultdict[object, dict[tuple[int, int], float]] = defaultdict(dict)
    for row, column in itertools.product(range(len(cells)), range(len(columns))):
        number = cells[row][column].number
        if number is not None:
            group = column if of_columns else (row, columns[column][0])
            groups[group][row, column] = float(f"{number:.{digits}f}")
    for shown in groups.values():
        most = extreme(shown.values())
        for (row, column), number in shown.items():
            if number == most:
                cells[row][column] = replace(cells[row][column], is_best=True)
