"""Figures of one thing from several repeats: medians with spread, ratios of figures taken side by side, a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Series:
    """What was measured, once per repeat: None for a repeat that failed.

    Args:
        what: the system or the limit.
        workload: what its experiments did; for a limit, those beside which it was taken.
        database: where they are stored; empty where nothing is.
        skipped: why there is no figure at all.
    """

    what: str
    workload: str
    database: str
    figures: list[float | None] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    version: str = ""
    skipped: str | None = None
    failures: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Everything about it, as JSON has it; rates are per second, `start_s` is the median."""
        return {
            "what": self.what,
            "version": self.version,
            "workload": self.workload,
            "database": self.database,
            "per_second": spread([figure for figure in self.figures if figure is not None]),
            "start_s": round(statistics.median(self.starts), 3) if self.starts else None,
            "skipped": self.skipped,
            "failures": self.failures,
        }


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How much of one series another is meant to reach, repeat by repeat."""

    what: str
    least: float
    ours: Series
    theirs: Series

    def row(self) -> dict[str, Any]:
        """The ratios of all repeats in which both have a figure, and whether their median reaches the bar."""
        found = spread(ratios(self.ours.figures, self.theirs.figures))
        return {
            "what": self.what,
            "least": self.least,
            "ratio": found,
            "reached": None if found is None else found["median"] >= self.least,
        }


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Ours over theirs. Taken minutes apart they would compare the machine with itself."""
    return [mine / other for mine, other in zip(ours, theirs, strict=False) if mine is not None and other is not None]


def spread(figures: Sequence[float]) -> dict[str, Any] | None:
    """Median, least and most of figures, and all of them in their order; None when there is none."""
    if not figures:
        return None
    median, least, most = statistics.median(figures), min(figures), max(figures)
    return {
        "median": brief(median),
        "min": brief(least),
        "max": brief(most),
        "all": [brief(figure) for figure in figures],
    }


def brief(figure: float) -> float:
    """As exact as it can be meant: three digits, and all before the point."""
    return float(f"{figure:.3g}") if abs(figure) < 1000 else float(round(figure))


def text(figure: float | None) -> str:
    """A figure for people."""
    return "-" if figure is None else f"{figure:,.0f}" if abs(figure) >= 100 else f"{brief(figure):g}"


def columns(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines with aligned columns, the first `left` of them to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
