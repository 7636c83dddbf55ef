"""`pyexpd export` as people use it: every format, and tables for a paper, alike from both databases."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest

from tests.e2e.project import Project
from tests.helpers import FIXTURES

Make = Callable[..., Project]

pytestmark = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)

DATASETS = ["100%_a&b", "[0.1]* #1", "{iris}"]
KERNELS = ["rbf", "lin_ear"]
RESULTS: dict[tuple[int, int], list[float | None]] = {
    # data set, kernel: f1 of seeds 0, 1, 2; None is not done
    (0, 0): [0.95, 0.96, 0.949],
    (0, 1): [0.9, 0.91, 0.92],
    (1, 0): [0.5, 0.7002, 0.9],
    (1, 1): [0.8, 0.7, 0.6],
    (2, 0): [None, None, None],
    (2, 1): [0.25, None, None],
}


@pytest.fixture
def project(make_project: Make) -> Project:
    """Eighteen experiments, of which thirteen are done and one has failed with a result; written as by hand."""
    project = make_project(
        rows=18,
        keyfields={
            "dataset": {"type": "VARCHAR(32)", "values": DATASETS},
            "kernel": {"type": "VARCHAR(32)", "values": KERNELS},
            "seed": {"type": "INT", "values": [0, 1, 2]},
        },
        resultfields={"f1": "DOUBLE", "exact": "NUMERIC(6,4)", "spelt": "VARCHAR(32)", "note": "VARCHAR(32)"},
    )
    project.fill()
    for (dataset, kernel), values in RESULTS.items():
        for seed, value in enumerate(values):
            if value is not None:
                project.database.query(
                    "UPDATE exp SET status = 'done', f1 = ?, exact = ?, spelt = ?, note = 'good'"
                    " WHERE dataset = ? AND kernel = ? AND seed = ?",
                    (value, value, f"{value}", DATASETS[dataset], KERNELS[kernel], seed),
                )
    project.database.query(
        "UPDATE exp SET status = 'error', f1 = 0.999 WHERE dataset = ? AND kernel = ? AND seed = 2",
        (DATASETS[2], KERNELS[1]),
    )
    return project


def export(project: Project, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = project.pyexpd("export", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_latex_for_a_paper_is_as_it_was_checked(project: Project) -> None:
    golden = (FIXTURES / "export" / "project.tex").read_text(encoding="utf-8")
    options = ("--value", "f1", "--agg", "mean ± std", "--best", "max", "--format", "latex")
    done = export(project, "--pivot", "dataset x kernel", *options)
    assert done.stdout == golden
    assert done.stderr.splitlines()[1:] == [
        "pyexpd: 13 experiments, 1 to 3 in a cell, 1 of 6 cells missing; left out: 5 not done"
    ]
    assert export(project, "--pivot", "dataset", "x", "kernel", *options).stdout == golden
    (project.folder / "table.tex").write_text("old")
    written = export(project, "--pivot", "DATASET x kernel", "--value", "f1", "--best", "max", "-o", "table.tex")
    assert written.stdout == ""
    assert (project.folder / "table.tex").read_text(encoding="utf-8") == golden
    assert [path.name for path in project.folder.glob(".table*")] == []


@pytest.mark.parametrize("value", ["exact", "spelt"])
def test_numbers_are_numbers_whatever_their_column(project: Project, value: str) -> None:
    document, expected = (
        json.loads(export(project, "--pivot", "dataset x kernel", "--value", name, "--format", "json").stdout)
        for name in (value, "f1")
    )
    assert len(document["cells"]) == len(expected["cells"]) == 6
    for cell, other in zip(document["cells"], expected["cells"], strict=True):
        assert cell["number"] == pytest.approx(other["number"])
        assert (cell["row"], cell["column"], cell["n"]) == (other["row"], other["column"], other["n"])


def test_selectors_say_what_counts(project: Project) -> None:
    def counts(*more: str) -> list[int]:
        pivot = ("--pivot", "dataset x kernel", "--value", "f1", "--agg", "count", "--format", "csv")
        lines = csv.reader(io.StringIO(export(project, *more, *pivot).stdout))
        return [int(cell or 0) for line in list(lines)[1:] for cell in line[1:]]

    assert counts() == [3, 3, 3, 3, 0, 1]
    assert counts("1-6") == [1, 1, 1, 1, 0, 1]
    assert counts("1,7", "2") == [2, 1]
    assert counts("--status", "done,error") == [3, 3, 3, 3, 0, 2]
    assert counts("--status", "error") == [1]
    assert counts("--where", "status != done") == [0, 1]
    assert counts("--where", "seed > 0", "--where", "kernel = rbf") == [2, 2, 0]


def test_several_fields_and_values(project: Project) -> None:
    done = export(project, "--pivot", "dataset,seed x kernel", "--value", "f1", "--value", "exact")
    heads = [head.strip() for head in done.stdout.splitlines()[0].strip("|").split("|")]
    assert heads == ["dataset", "seed", "f1 / rbf", "f1 / lin_ear", "exact / rbf", "exact / lin_ear"]
    assert done.stdout.splitlines()[2].split("|")[2:5] == [" 0    ", "    0.950 ", "        0.900 "]


def test_parquet_has_the_declared_types(project: Project) -> None:
    done = export(project, "-o", "out.parquet")
    assert done.stderr.splitlines()[1:] == ["pyexpd: 18 experiments written to out.parquet"]
    schema = pyarrow.parquet.read_schema(project.folder / "out.parquet")
    types = {field.name: str(field.type) for field in schema}
    assert (types["ID"], types["dataset"], types["exact"], types["start_date"], types["note"]) == (
        "int64",
        "string",
        "double",
        "timestamp[us]",
        "string",
    )
    table = pandas.read_parquet(project.folder / "out.parquet")
    assert table["exact"].sum() == pytest.approx(sum(value or 0 for values in RESULTS.values() for value in values))
    assert set(table["dataset"]) == set(DATASETS)
    assert table["creation_date"].notna().all()
    none = export(project, "13-15", "--format", "parquet", "-o", "none.dat")
    assert none.stderr.splitlines()[1:] == ["pyexpd: 3 experiments written to none.dat"]
    assert str(pyarrow.parquet.read_schema(project.folder / "none.dat").field("f1").type) == "double"


def test_rows_as_markdown_and_latex(project: Project) -> None:
    lines = export(project, "1", "--format", "md").stdout.splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:5]] == ["1", r"100%\_a&b", "rbf", "0"]
    export(project, "1-2", "-o", "rows.tex")
    lines = (project.folder / "rows.tex").read_text().splitlines()
    assert lines[2:4] + lines[-2:] == [r"\toprule", lines[3], r"\bottomrule", r"\end{tabular}"]
    assert lines[5].startswith(r"$1$ & 100\%\_a\&b & rbf & $0$ & ")


def test_text_that_is_no_number_is_named(project: Project) -> None:
    done = export(project, "--pivot", "dataset x kernel", "--value", "note", code=64)
    assert (done.stdout, done.stderr) == ("", "pyexpd: experiment 1: note is 'good', which is no number\n")


def test_the_same_table_from_python(project: Project) -> None:
    code = (
        "from pyexp_daemon.experimenter import PyExperimenter\n"
        "from pyexp_daemon.export.pivot import pivot\n"
        "experimenter = PyExperimenter('pyexpd.yml', 'database_credentials.yml', use_codecarbon=False)\n"
        "table = pivot(experimenter.get_table(), 'dataset x kernel', value='f1', best='max')\n"
        "print(table.to_latex(), end='')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project.folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (FIXTURES / "export" / "project.tex").read_text(encoding="utf-8")


def test_without_the_extra_it_is_one_line(project: Project, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "pyarrow"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not here')\n")
    done = project.pyexpd("export", "-o", "out.parquet", PYTHONPATH=str(hidden.parent))
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == "pyexpd: pyarrow is not installed\n  pip install 'pyexp-daemon[export]'\n"
    assert list(project.folder.glob("*out*")) == []
    pivot = ("--pivot", "dataset x kernel", "--value", "f1")
    assert project.pyexpd("export", *pivot, PYTHONPATH=str(hidden.parent)).returncode == 0
