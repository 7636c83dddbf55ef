from __future__ import annotations

import pytest

from benchmarks.series import Bar, Series, brief, columns, ratios, spread, text


def series(*figures: float | None, starts: tuple[float, ...] = ()) -> Series:
    return Series(what="it", workload="noop", database="sqlite", figures=list(figures), starts=list(starts))


def test_a_row_has_median_and_spread_and_every_figure_in_its_order() -> None:
    row = series(300, 100, 200, starts=(1.0, 3.0)).row()

    assert row["per_second"] == {"median": 200, "min": 100, "max": 300, "all": [300, 100, 200]}
    assert row["start_s"] == 2.0
    assert (row["what"], row["workload"], row["database"], row["skipped"]) == ("it", "noop", "sqlite", None)


def test_what_was_never_measured_has_no_figure() -> None:
    assert series().row()["per_second"] is None
    assert series(None).row()["per_second"] is None
    assert series().row()["start_s"] is None


def test_ratios_pair_the_repeats_and_leave_out_those_that_failed() -> None:
    """
    A machine that was slow in the second repeat was slow for both.
    """
    assert ratios([100, 10, 100], [50, 5, None]) == [2, 2]


@pytest.mark.parametrize(
    ("ours", "theirs", "median", "reached"),
    [
        ([40, 30, 50], [100, 100, 100], 0.4, True),
        ([40, 30, 30], [100, 100, 100], 0.3, False),
    ],
)
def test_a_bar_is_reached_by_the_median_of_the_ratios(
    ours: list[float], theirs: list[float], median: float, reached: bool
) -> None:
    row = Bar(what="no-op", least=0.4, ours=series(*ours), theirs=series(*theirs)).row()

    assert row["ratio"]["median"] == median
    assert row["reached"] is reached


def test_a_bar_without_the_peer_is_neither_reached_nor_missed() -> None:
    row = Bar(what="no-op", least=0.4, ours=series(1, 2), theirs=series()).row()

    assert row["ratio"] is None
    assert row["reached"] is None


def test_figures_have_no_more_digits_than_they_mean() -> None:
    assert [brief(figure) for figure in (0.123456, 12.3456, 123.456, 12345.6)] == [0.123, 12.3, 123, 12346]
    assert [text(figure) for figure in (None, 0.123, 12.0, 12346.0)] == ["-", "0.123", "12", "12,346"]
    assert spread([]) is None


def test_columns_are_aligned_names_to_the_left_and_figures_to_the_right() -> None:
    assert columns([["", "per second"], ["Huey", "1"], ["us", "22"]], left=1) == [
        "      per second",
        "Huey           1",
        "us            22",
    ]
