"""Pivot tables: what is aggregated, which cells are best, and what the table looks like in each format."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.export.pivot import parse_agg, parse_layout, pivot
from pyexp_daemon.export.pivot_table import Pivot
from tests.helpers import FIXTURES, cannot_run

Row = dict[str, Any]

HARD = "100%_a&b"
HARDER = r"{#1} ~$x^2$ \n"


def experiments(*cells: tuple[str, str, list[Any]], status: str = "done") -> Iterator[Row]:
    """Experiments of a data set and a kernel with these values of f1, one per seed."""
    number = 0
    for dataset, kernel, values in cells:
        for seed, value in enumerate(values):
            number += 1
            yield {
                "ID": number,
                "dataset": dataset,
                "kernel": kernel,
                "seed": seed,
                "status": status,
                "f1": value,
                "error": None,
            }


def for_a_paper() -> Iterator[Row]:
    """Signs that LaTeX takes for its own, a missing cell, a single value, a tie, and a row that is not finished."""
    yield from experiments(
        (HARD, "rbf", [0.95, 0.96, 0.949]),
        (HARD, "linear_1", [0.9, 0.91, 0.92]),
        (HARD, "poly", [0.5]),
        (HARDER, "rbf", [0.70004, 0.7]),
        (HARDER, "linear_1", [0.7, 0.69996]),
        ("[0.1]*", "poly", [-0.00004, -0.00001]),
    )
    yield from experiments(("not done", "poly", [0.99]), status="error")


def table(layout: str = "dataset x kernel", **options: Any) -> Pivot:
    return pivot(for_a_paper(), layout, **{"value": "f1", **options})


def several_levels() -> Pivot:
    rows = [
        {"data_set": data, "size": size, "kernel": kernel, "C": c, "f1": (size + c) / 200, "loss": Decimal("1.50")}
        for data in ("iris", "wine")
        for size in (100, 20)
        for kernel in ("rbf", "poly")
        for c in (1.0, 1e-05)
    ]
    return pivot(rows, "data_set,size x kernel,C", value=["f1", "loss"], agg="mean", best="min", digits=2)


@pytest.mark.parametrize(
    ("made", "golden"),
    [(table(best="max"), "paper.tex"), (several_levels(), "levels.tex")],
    ids=["paper", "levels"],
)
def test_latex_is_as_it_was_checked(made: Pivot, golden: str) -> None:
    assert made.to_latex() == (FIXTURES / "export" / golden).read_text(encoding="utf-8")


@pytest.mark.parametrize("golden", ["paper.tex", "levels.tex", "list.tex", "project.tex"])
def test_latex_compiles(golden: str, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        cannot_run("pdflatex", "it is not installed")
    text = (FIXTURES / "export" / golden).read_text(encoding="utf-8")
    (tmp_path / "a.tex").write_text(
        f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{text}\\end{{document}}\n"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout
    assert not re.search(r"^(! |LaTeX Warning|Missing)", done.stdout, re.MULTILINE), done.stdout


def test_seeds_are_aggregated() -> None:
    made = table()
    assert (made.rows[0], made.columns) == ((HARD,), (("f1", "rbf"), ("f1", "linear_1"), ("f1", "poly")))
    cell = made.cells[0][0]
    values = [0.95, 0.96, 0.949]
    assert cell.number == statistics.fmean(values)
    assert cell.std == statistics.stdev(values)
    assert (cell.n, cell.is_best) == (3, False)
    assert made.cells[0][2].std is None
    assert (made.cells[1][2].number, made.cells[1][2].n) == (None, 0)


@pytest.mark.parametrize(
    ("agg", "number", "std", "shown"),
    [
        ("mean ± std", 3.0, 2.0, "3.0 ± 2.0"),
        ("Mean +- STD", 3.0, 2.0, "3.0 ± 2.0"),
        ("mean+/-std", 3.0, 2.0, "3.0 ± 2.0"),
        ("mean", 3.0, None, "3.0"),
        ("median", 3.0, None, "3.0"),
        ("min", 1.0, None, "1.0"),
        ("max", 5.0, None, "5.0"),
        ("sum", 9.0, None, "9.0"),
        ("std", 2.0, None, "2.0"),
        ("count", 3, None, "3"),
    ],
)
def test_aggregates(agg: str, number: float, std: float | None, shown: str) -> None:
    made = pivot(experiments(("iris", "rbf", [5, 1, 3])), "dataset", value="f1", agg=agg, digits=1)
    (cell,) = made.cells[0]
    assert (cell.number, cell.std, cell.n) == (number, std, 3)
    assert made.to_markdown().splitlines()[-1].split("|")[2].strip() == shown


def test_one_value_has_no_deviation() -> None:
    rows = list(experiments(("iris", "rbf", [5]), ("iris", "poly", [1, 2])))
    assert pivot(rows, "dataset x kernel", value="f1", digits=0).to_csv().splitlines()[1] == "iris,5,2 ± 1"
    alone = pivot(rows, "dataset x kernel", value="f1", agg="std", best="min").cells[0][0]
    assert (alone.number, alone.n, alone.is_best) == (None, 1, False)


@pytest.mark.parametrize(
    ("options", "best"),
    [
        ({"best": "max"}, [[True, False, False], [True, True, False]]),
        ({"best": "min"}, [[False, False, True], [True, True, False]]),
        ({"best": "max", "digits": 5}, [[True, False, False], [True, False, False]]),
        ({"best": "max", "best_of": "columns"}, [[True, True, True], [False, False, False]]),
        ({}, [[False, False, False], [False, False, False]]),
    ],
)
def test_best_are_all_that_are_shown_alike(options: dict[str, Any], best: list[list[bool]]) -> None:
    assert [[cell.is_best for cell in row] for row in table(**options).cells[:2]] == best


def test_best_of_rows_alone_is_the_best_of_the_column() -> None:
    rows = list(experiments(("iris", "rbf", [1, 3]), ("wine", "rbf", [2, 2]), ("digits", "rbf", [1])))
    made = pivot(rows, "dataset", value="f1", best="max")
    assert [row[0].is_best for row in made.cells] == [True, True, False]
    made = pivot(rows, "kernel x dataset", value="f1", best="min", best_of="rows")
    assert [cell.is_best for cell in made.cells[0]] == [False, False, True]


def test_each_of_several_values_has_its_own_best() -> None:
    rows = [{"k": k, "f1": f1, "loss": loss} for k, f1, loss in (("a", 0.9, 3), ("b", 0.8, 4))]
    made = pivot([{**row, "d": "iris"} for row in rows], "d x k", value=["f1", "loss"], best="max")
    assert made.columns == (("f1", "a"), ("f1", "b"), ("loss", "a"), ("loss", "b"))
    assert [cell.is_best for cell in made.cells[0]] == [True, False, False, True]


def test_rows_and_columns_have_an_order() -> None:
    """Numbers by size, texts as they appear, NULL at the end."""
    sizes = [100, None, 9, 20.5]
    rows = [{"size": size, "name": name, "y": 1} for name in ("b", "a") for size in sizes]
    made = pivot(rows, "size x name", value="y")
    assert [label[0] for label in made.rows] == [9, 20.5, 100, None]
    assert [label[1] for label in made.columns] == ["b", "a"]
    assert made.to_markdown().splitlines()[-1].startswith("| NULL |")


def test_what_does_not_count_is_said_and_has_its_place() -> None:
    values = [0.5, None, float("nan"), "0.7", Decimal("0.6"), float("inf")]
    rows = [*experiments(("iris", "rbf", values)), *experiments(("wine", "rbf", [1, 2]), status="running")]
    made = pivot(rows, "dataset x kernel", value="f1", digits=2)
    assert made.cells[0][0].number == pytest.approx(0.6)
    assert made.rows == (("iris",), ("wine",))
    assert (made.experiments, made.not_done, made.without_value) == (3, 2, {"f1": 3})
    assert made.summary == "3 experiments, 3 in a cell, 1 of 2 cells missing; left out: 2 not done, 3 without f1"
    assert pivot(rows, "dataset", value="f1", only_done=False).cells[1][0].number == 1.5
    assert pivot(experiments(("a", "b", [1]), ("c", "d", [1, 2])), "dataset", value="f1").summary == (
        "3 experiments, 1 to 2 in a cell"
    )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("dataset x kernel", (["dataset"], ["kernel"])),
        ("dataset", (["dataset"], [])),
        ("dataset , size × kernel,C", (["dataset", "size"], ["kernel", "C"])),
        ("x", (["x"], [])),
        ("x x y", (["x"], ["y"])),
        ("max x x", (["max"], ["x"])),
        ("x,y x z", (["x", "y"], ["z"])),
    ],
)
def test_layouts(text: str, names: tuple[list[str], list[str]]) -> None:
    assert parse_layout(text) == names


@pytest.mark.parametrize("text", ["", "a b", "a x", "x b", "a x b x c", "a, x b", "a,,b x c", "a by b", "a x b c"])
def test_what_is_no_layout(text: str) -> None:
    with pytest.raises(exceptions.UsageError, match="what the rows and columns are") as refused:
        parse_layout(text)
    assert "dataset x kernel" in (refused.value.hint or "")


def row(**values: Any) -> list[Row]:
    return [{"ID": 7, "dataset": "iris", "kernel": "rbf", "f1": 0.5, "status": "done", **values}]


@pytest.mark.parametrize(
    ("rows", "layout", "options", "message", "hint"),
    [
        (row(), "datset x kernel", {}, "there is no field 'datset'", "did you mean 'dataset'?"),
        (row(), "dataset x kernel", {"value": "zzz"}, "there is no field 'zzz'", "fields: ID, dataset, kernel, f1"),
        (row(), "dataset x Dataset", {}, "'dataset' is named twice", "other fields"),
        (row(), "dataset x f1", {}, "'f1' is named twice", "other fields"),
        (row(), "dataset", {"agg": "maen"}, "there is no aggregate 'maen'", "did you mean 'mean'?"),
        (row(), "dataset", {"agg": "p99"}, "there is no aggregate 'p99'", "one of mean ± std, mean, median"),
        (row(), "dataset", {"digits": 16}, "16 digits cannot be shown", "0 to 15"),
        (row(f1="good"), "dataset", {}, "experiment 7: f1 is 'good', which is no number", None),
        (row(f1=b"1"), "dataset", {}, "experiment 7: f1 is b'1', which is no number", None),
        ([{"a": 1, "f1": []}], "a", {}, "f1 is [], which is no number", None),
        (row(f1=1e308) * 2, "dataset", {}, "1e+308 is too large to calculate the mean ± std of", None),
        ([], "dataset", {}, "there is nothing to aggregate: no experiments are selected", None),
        (row(f1=None) + row(status="created"), "kernel", {}, "aggregate: 1 not done, 1 without f1", "--sta"),
    ],
)
def test_mistakes(rows: list[Row], layout: str, options: dict[str, Any], message: str, hint: str | None) -> None:
    with pytest.raises(exceptions.UsageError) as refused:
        pivot(rows, layout, **{"value": "f1", **options})
    assert message in str(refused.value)
    assert (hint or "") in (refused.value.hint or "")


def test_names_are_found_whatever_their_capitals() -> None:
    made = pivot(row(), "DATASET x Kernel", value="F1")
    assert (made.row_fields, made.column_fields, made.values) == (("dataset",), ("kernel",), ("f1",))


def test_markdown_is_one_line_a_row_and_aligned() -> None:
    made = pivot(
        experiments(("a|b\nc", "rbf", [1, 2]), ("d", "po_ly", [3])), "dataset x kernel", value="f1", best="max"
    )
    assert str(made).splitlines() == [
        "| dataset   |               rbf |     po_ly |",
        "| --------- | ----------------: | --------: |",
        "| a\\|b<br>c | **1.500 ± 0.707** |        -- |",
        "| d         |                -- | **3.000** |",
    ]


def test_csv_has_numbers_in_full() -> None:
    lines = list(csv.reader(io.StringIO(several_levels().to_csv())))
    assert lines[0][:4] == ["data_set", "size", "f1 / rbf / 1e-05", "f1 / rbf / 1.0"]
    assert lines[1][:3] == ["iris", "20", "0.10000005"]
    lines = list(csv.reader(io.StringIO(table(agg="mean").to_csv())))
    assert lines[1] == [HARD, str(statistics.fmean([0.95, 0.96, 0.949])), "0.91", "0.5"]
    assert lines[2][3] == ""


def test_json_says_everything() -> None:
    document = json.loads(table(best="max").to_json())
    cells = document.pop("cells")
    assert document == {
        "row_fields": ["dataset"],
        "column_fields": ["kernel"],
        "values": ["f1"],
        "agg": "mean ± std",
        "best": "max",
        "digits": 3,
        "experiments": 13,
        "not_done": 1,
        "without_value": {"f1": 0},
    }
    assert len(cells) == 4 * 3
    assert cells[2] == {
        "row": [HARD],
        "column": ["poly"],
        "value": "f1",
        "number": 0.5,
        "std": None,
        "n": 1,
        "is_best": False,
    }


def test_frame_is_numeric_and_labelled() -> None:
    frame = several_levels().to_frame()
    assert frame.loc[("wine", 20), ("loss", "poly", 1.0)] == 1.5
    assert list(frame.index.names) == ["data_set", "size"]
    assert list(frame.columns.names) == [None, "kernel", "C"]
    assert set(frame.dtypes) == {pandas.Series([0.5]).dtype}
    frame = table(agg="mean").to_frame()
    assert frame.columns.name == "kernel"
    assert pandas.isna(frame.loc[HARDER, "poly"])
    assert table().to_frame().loc[HARD, "linear_1"] == "0.910 ± 0.010"


def test_a_frame_is_pivoted_like_the_rows_it_was_made_of() -> None:
    rows = list(for_a_paper())
    rows[0]["f1"] = None
    assert pivot(pandas.DataFrame(rows), "dataset x kernel", value="f1") == pivot(rows, "dataset x kernel", value="f1")


class _Cells(HTMLParser):
    """The texts of each row, those in <strong> with a star before them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.spans: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self.spans.append(int(dict(attributes).get("colspan") or 1))
        if tag == "strong":
            self.rows[-1][-1] += "*"

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


def test_notebooks_show_it_as_a_table() -> None:
    rows = experiments(("<b>&", "rbf", [1, 2]), ("wine", "poly", [3]))
    made = pivot(rows, "dataset x kernel", value="f1", best="max")
    assert _Cells(made._repr_html_()).rows == [
        ["dataset", "rbf", "poly"],
        ["<b>&", "*1.500 ± 0.707", "–"],
        ["wine", "–", "*3.000"],
    ]
    levels = _Cells(several_levels()._repr_html_())
    assert levels.rows[0] == ["", "", "f1", "loss"]
    assert levels.spans[:4] == [1, 1, 4, 4]
    assert [len(row) for row in levels.rows] == [4, 6, 10, 10, 10, 10, 10]


def test_aggregates_are_found_by_any_spelling() -> None:
    assert {parse_agg(text) for text in ("mean ± std", " mean±std", "mean +- std", "MEAN  +/-  std")} == {"mean ± std"}
