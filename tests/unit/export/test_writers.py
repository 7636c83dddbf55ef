"""Rows as LaTeX, Markdown and Parquet; which format a file gets; what is said without the libraries of the extra."""

from __future__ import annotations

import csv
import datetime
import io
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.export import latex, markdown, parquet
from pyexp_daemon.export.files import WRITERS, format_of, replacing_bytes, write
from pyexp_daemon.export.frames import frame
from tests.helpers import FIXTURES

TYPES = {"ID": "INTEGER", "name_of": "VARCHAR(32)", "lr": "DOUBLE", "y": "NUMERIC(10,2)"}
ROWS: list[dict[str, Any]] = [
    {"ID": 1, "name_of": "50% of_all & #1", "lr": 0.1, "y": Decimal("-2.50")},
    {"ID": 2, "name_of": "a|b\n*c*", "lr": 1e-05, "y": None},
    {"ID": 3, "name_of": None, "lr": -3.0, "y": 4},
]


def test_latex_is_as_it_was_checked() -> None:
    file = io.StringIO()
    assert latex.write_latex(file, TYPES, ROWS) == 3
    assert file.getvalue() == (FIXTURES / "export" / "list.tex").read_text(encoding="utf-8")


def test_markdown_has_one_line_for_each_row() -> None:
    file = io.StringIO()
    assert markdown.write_markdown(file, TYPES, ROWS) == 3
    assert file.getvalue().splitlines() == [
        "| ID | name_of | lr | y |",
        "| --- | --- | --- | --- |",
        "| 1 | 50% of_all & #1 | 0.1 | -2.50 |",
        r"| 2 | a\|b<br>\*c\* | 1e-05 |  |",
        "| 3 |  | -3.0 | 4 |",
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("__init__.py", r"\_\_init\_\_.py"),
        ("test_f1", "test_f1"),
        (r"C:\x", r"C:\\x"),
        ("`a` <b> [c](d) ~e~", r"\`a\` \<b> \[c\](d) \~e\~"),
        ("a &amp; &#35; b&c", r"a \&amp; \&#35; b&c"),
        ("a\r\nb\rc", "a<br>b<br>c"),
    ],
)
def test_signs_that_markdown_takes_for_its_own(text: str, escaped: str) -> None:
    assert markdown.escape(text) == escaped


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (-1, "$-1$"),
        (0.5, "$0.5$"),
        (1e-05, r"$1 \cdot 10^{-5}$"),
        (-2.5e30, r"$-2.5 \cdot 10^{30}$"),
        (True, "True"),
        (None, ""),
        ("a\tb\n\x00c", "a b c"),
        (r"\begin{x}", r"\textbackslash{}begin\{x\}"),
        ("a<b>c", r"a\textless{}b\textgreater{}c"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
    ],
)
def test_values_in_latex(value: Any, cell: str) -> None:
    assert latex.cell(value) == cell


EVERYTHING: dict[str, tuple[str, list[Any], str, Any]] = {
    # column: its type, values as SQLite and as MySQL give them, type and value in the file
    "i": ("INT", [5, 5], "int64", 5),
    "u": ("BIGINT UNSIGNED", [2**64 - 1, 2**64 - 1], "uint64", 2**64 - 1),
    "b": ("BOOLEAN", [1, True], "bool", True),
    "d": ("NUMERIC(30,2)", [2.5, Decimal("2.50")], "double", 2.5),
    "n": ("NUMERIC", [2**60, Decimal(2**60)], "double", float(2**60)),
    "f": ("DOUBLE", [1, 1.0], "double", 1.0),
    "s": ("VARCHAR(9)", ["ä", "ä"], "string", "ä"),
    "j": ("JSON", ['{"a": [1]}', {"a": [1]}], "string", '{"a": [1]}'),
    "at": (
        "DATETIME",
        ["2026-01-02 03:04:05", datetime.datetime(2026, 1, 2, 3, 4, 5)],  # noqa: DTZ001
        "timestamp[us]",
        datetime.datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001
    ),
    "day": ("DATE", ["2026-01-02", datetime.date(2026, 1, 2)], "date32[day]", datetime.date(2026, 1, 2)),
    "span": ("TIME", ["25:00:00", datetime.timedelta(hours=25)], "string", "25:00:00"),
    "raw": ("BLOB", [b"\xff\x00", bytearray(b"\xff\x00")], "binary", b"\xff\x00"),
    "other": ("GEOMETRY", ["x", b"x"], "string", "x"),
}


def test_parquet_has_the_types_of_the_columns_on_every_database(tmp_path: Path) -> None:
    types = {name: column[0] for name, column in EVERYTHING.items()}
    rows = [{name: column[1][database] for name, column in EVERYTHING.items()} for database in (0, 1)]
    assert write(tmp_path / "a.parquet", types, [*rows, dict.fromkeys(types)]) == 3
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {n: c[2] for n, c in EVERYTHING.items()}
    expected = {name: column[3] for name, column in EVERYTHING.items()}
    assert table.to_pylist() == [expected, expected, dict.fromkeys(types)]


def test_parquet_is_written_in_groups_that_do_not_change_its_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP", 100)
    taken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for number in range(250):
            taken += 1
            yield {"ID": number, "y": None if number < 200 else 0.5}

    with (tmp_path / "a.parquet").open("wb") as file:
        assert parquet.write_parquet(file, {"ID": "INTEGER", "y": "DOUBLE"}, rows()) == taken == 250
    written = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet")
    assert written.num_row_groups == 3
    assert written.read()["y"].to_pylist() == [None] * 200 + [0.5] * 50
    assert write(tmp_path / "empty.parquet", {"ID": "INTEGER", "y": "DOUBLE"}, []) == 0
    assert str(pyarrow.parquet.read_schema(tmp_path / "empty.parquet").field("y").type) == "double"


@pytest.mark.parametrize(
    ("sql_type", "value", "shown"),
    [
        ("DOUBLE", "abc", "'abc'"),
        ("INT", 1.5, "1.5"),
        ("INT", 2**70, str(2**70)),
        ("DATETIME", "soon", "'soon'"),
        ("BOOL", 2, "2"),
    ],
)
def test_a_value_that_parquet_cannot_hold_is_named(sql_type: str, value: Any, shown: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"old")
    rows = [{"ID": 6, "y": None}, {"ID": 7, "y": value}]
    with pytest.raises(exceptions.UsageError, match=f"^experiment 7: y is {shown}, which is no {sql_type}$"):
        write(path, {"ID": "INTEGER", "y": sql_type}, rows)
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", "csv"),
        ("a.json", "json"),
        ("a.md", "md"),
        ("A.TEX", "latex"),
        ("a.parquet", "parquet"),
        ("a.txt", None),
        ("csv", None),
        ("a.latex", "latex"),
    ],
)
def test_formats_by_name(name: str, kind: str | None) -> None:
    assert format_of(Path(name)) == kind


def test_every_format_is_written_from_python(tmp_path: Path) -> None:
    for kind in WRITERS:
        assert write(tmp_path / kind, TYPES, ROWS, kind=kind) == 3
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "csv").read_text())))) == 3
    assert [row["y"] for row in json.loads((tmp_path / "json").read_text())] == [-2.5, None, 4]
    assert (tmp_path / "latex").read_text() == (FIXTURES / "export" / "list.tex").read_text()
    assert (tmp_path / "md").read_text().startswith("| ID |")
    assert pandas.read_parquet(tmp_path / "parquet")["y"].tolist()[::2] == [-2.5, 4.0]
    write(tmp_path / "unknown.dat", TYPES, ROWS)
    assert (tmp_path / "unknown.dat").read_text() == (tmp_path / "csv").read_text()


def write_half(path: Path) -> None:
    with replacing_bytes(path) as file:
        file.write(b"half")
        raise ZeroDivisionError


def test_bytes_replace_a_file_as_text_does(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("pyarrow", lambda folder: write(folder / "a.parquet", TYPES, ROWS)),
        ("pandas", lambda _: frame(["a"], [(1,)])),
    ],
)
def test_a_library_that_is_missing_is_one_line_with_a_hint(
    missing: str, call: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(exceptions.UsageError, match=f"^{missing} is not installed$") as refused:
        call(tmp_path)
    assert refused.value.hint == "pip install 'pyexp-daemon[export]'"
    assert list(tmp_path.iterdir()) == []


def test_frames_are_those_of_read_sql(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute("CREATE TABLE t (a INT, b DOUBLE, c VARCHAR(9), d DATETIME)")
        connection.executemany(
            "INSERT INTO t VALUES (?, ?, ?, ?)", [(1, None, "x", "2026-01-02 03:04:05"), (None, 0.5, None, None)]
        )
        expected = pandas.read_sql("SELECT * FROM t", connection)
        rows = connection.execute("SELECT * FROM t").fetchall()
    pandas.testing.assert_frame_equal(frame(["a", "b", "c", "d"], rows), expected)
    exact = frame(["a", "b"], [(Decimal("1.5"), 1), (Decimal(2), 2)])
    assert [str(kind) for kind in exact.dtypes] == ["float64", "int64"]
