"""Exports: what a value looks like in a file, and that a file is there whole or not at all."""

from __future__ import annotations

import csv
import datetime
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.export.files import replacing, write_csv, write_json
from pyexp_daemon.export.values import as_json, as_text


@pytest.mark.parametrize(
    ("value", "text", "in_json"),
    [
        (None, "", None),
        (1.5, "1.5", 1.5),
        (0.1, "0.1", 0.1),
        ("a,b", "a,b", "a,b"),
        (Decimal("2.50"), "2.50", 2.5),
        (Decimal(12345678901234567890), "12345678901234567890", 12345678901234567890),
        (b"text", "text", "text"),
        (b"\xff\x00", "ff00", "ff00"),
        (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02 03:04:05", "2026-01-02 03:04:05"),  # noqa: DTZ001
        (datetime.date(2026, 1, 2), "2026-01-02", "2026-01-02"),
        (datetime.timedelta(hours=25, seconds=1), "25:00:01", "25:00:01"),
        (-datetime.timedelta(hours=1, milliseconds=500), "-1:00:00.5", "-1:00:00.5"),
    ],
)
def test_values(value: Any, text: str, in_json: Any) -> None:
    assert as_text(value) == text
    assert as_json(value) == in_json


ROWS: list[dict[str, Any]] = [{"a": 1, "b": 'say "hi",\nthere'}, {"a": None, "b": "ä"}]


def test_csv_survives_quotes_and_newlines() -> None:
    file = io.StringIO(newline="")
    assert write_csv(file, ["a", "b"], ROWS) == 2
    assert list(csv.reader(io.StringIO(file.getvalue()))) == [["a", "b"], ["1", 'say "hi",\nthere'], ["", "ä"]]


def test_json_is_one_array() -> None:
    file = io.StringIO()
    assert write_json(file, ["a", "b"], ROWS) == 2
    assert json.loads(file.getvalue()) == ROWS
    assert len(file.getvalue().splitlines()) == 4
    empty = io.StringIO()
    assert write_json(empty, ["a"], []) == 0
    assert empty.getvalue() == "[]\n"


def write_half(path: Path) -> None:
    with replacing(path) as file:
        write_csv(file, ["a"], [ROWS[0], {}])


def test_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path)
    assert [found.name for found in tmp_path.iterdir()] == ["out.csv"]
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o044


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(exceptions.UsageError, match="cannot be written"), replacing(tmp_path / "no" / "out.csv"):
        pass
