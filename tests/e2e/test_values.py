"""Values that are easily lost: stored, matched and read back alike on every database, or refused at the fill."""

from __future__ import annotations

import csv
import datetime
import json
import logging
import math
import subprocess
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.experimenter import PyExperimenter
from tests.e2e.project import PYEXPD
from tests.e2e.study import Study

Make = Callable[..., Study]

TYPES = {
    "number": "DOUBLE",
    "whole": "BIGINT",
    "exact": "NUMERIC(10,2)",
    "text": "VARCHAR(100)",
    "moment": "DATETIME",
    "day": "DATE",
    "flag": "BOOL",
}
RECEIVED: list[tuple[str, Any, str]] = [
    # keyfield, value as filled in, repr of what the function receives
    ("number", -0.0, "0.0"),
    ("number", 1e16, "1e+16"),
    ("number", 0.1 + 0.2, "0.30000000000000004"),
    ("number", 1e-300, "1e-300"),
    ("number", 5, "5.0"),
    ("whole", 2**62, "4611686018427387904"),
    ("whole", -1, "-1"),
    ("exact", 2.5, "2.5"),
    ("exact", Decimal("1.10"), "1.1"),
    ("text", "🎲 näh", "'🎲 näh'"),
    ("text", 'it\'s "so" \\ %s ?; --', "'it\\'s \"so\" \\\\ %s ?; --'"),
    ("text", "", "''"),
    ("text", "1", "'1'"),
    ("moment", "2024-02-29 12:30:00", "datetime.datetime(2024, 2, 29, 12, 30)"),
    ("moment", datetime.datetime(2024, 2, 29, 12, 30, 1), "datetime.datetime(2024, 2, 29, 12, 30, 1)"),  # noqa: DTZ001 as users write them
    ("day", "2024-02-29", "datetime.date(2024, 2, 29)"),
    ("day", datetime.date(2024, 3, 1), "datetime.date(2024, 3, 1)"),
    ("flag", True, "True"),
    ("flag", False, "False"),
    ("number", None, "None"),
]
REFUSED: list[tuple[str, Any]] = [
    ("number", math.nan),
    ("number", math.inf),
    ("number", "many"),
    ("whole", 1.5),
    ("whole", 2**63),
    ("text", "x" * 101),
    ("text", "a lone \udc80"),
    ("moment", "yesterday"),
    ("moment", "2023-02-29 00:00:00"),
    ("flag", 2),
]
NOTHING = dict.fromkeys(TYPES)


def rows() -> list[dict[str, Any]]:
    return [{**NOTHING, name: value} for name, value, _ in RECEIVED]


@pytest.fixture
def experimenter(make_study: Make, monkeypatch: pytest.MonkeyPatch) -> PyExperimenter:
    study = make_study(
        keyfields={name: {"type": kind} for name, kind in TYPES.items()},
        resultfields={"received": "LONGTEXT", **{f"r_{name}": kind for name, kind in TYPES.items()}},
    )
    monkeypatch.chdir(study.folder)
    logging.getLogger("tests.values")
    return PyExperimenter("pyexpd.yml", use_codecarbon=False, logger_name="tests.values")


def keep(keyfields: dict[str, Any]) -> dict[str, Any]:
    """The experiment: it stores what it gets."""
    given = {name: value for name, value in keyfields.items() if value is not None}
    return {"received": repr(list(given.values())), **{f"r_{name}": value for name, value in given.items()}}


def test_they_are_matched_received_and_read_back_alike(
    experimenter: PyExperimenter, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter.fill_table_with_rows(rows())
    with caplog.at_level(logging.INFO):
        experimenter.fill_table_with_rows(rows())
    assert "0 rows successfully added to database. 20 rows were skipped." in caplog.text
    experimenter.execute(keep, n_jobs=2)
    table = experimenter.get_table()
    assert list(table["status"]) == ["done"] * len(RECEIVED)
    wanted = [f"[{text}]" if text != "None" else "[]" for _, _, text in RECEIVED]
    assert list(table["received"]) == wanted
    for (name, value, _), (_, row) in zip(RECEIVED, table.iterrows(), strict=True):
        if value is not None:
            assert row[f"r_{name}"] == row[name], (name, value)  # as a result like as a keyfield
    experimenter.fill_table_with_rows(rows())  # also after it was read by the database
    assert len(experimenter.get_table()) == len(RECEIVED)


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda value: ascii(value)[:20])
def test_others_are_refused_when_they_are_filled_in(experimenter: PyExperimenter, name: str, value: object) -> None:
    experimenter.create_table()
    with pytest.raises(exceptions.ParameterCombinationError, match=f"row 1: keyfield {name}: "):
        experimenter.fill_table_with_rows([{**NOTHING, name: value}])
    assert experimenter.get_table().empty


def test_results_that_no_column_holds_are_null_with_a_remark(experimenter: PyExperimenter) -> None:
    experimenter.add_experiment_and_execute(
        {**NOTHING, "whole": 1},
        lambda keyfields: {"r_number": math.nan, "r_text": "a lone \udc80", "r_flag": True, "received": "x"},
    )
    ((number, text, flag, status),) = experimenter.get_table()[["r_number", "r_text", "r_flag", "status"]].to_numpy()
    assert number is None or math.isnan(number)
    assert (text, bool(flag), status) == ("a lone \\udc80", True, "done")
    connector = experimenter.db_connector
    connection = connector.connect()
    cursor = connector.cursor(connection)
    connector.execute(cursor, "SELECT error FROM exp__pyexpd_attempts")
    assert "stored as NULL, not a finite number: r_number" in json.dumps(connector.fetchall(cursor))
    connector.close_connection(connection)


RESULTS: list[tuple[str, str, Any, str]] = [
    # column type, result, what an export shows
    ("zero", "DOUBLE", -0.0, "0.0"),
    ("large", "DOUBLE", 1e16, "1e+16"),
    ("whole", "BIGINT", 2**62, "4611686018427387904"),
    ("exact", "NUMERIC(10,2)", Decimal("1.25"), "1.25"),
    ("digits", "VARCHAR(40)", Decimal("1E+2"), "100"),
    ("text", "VARCHAR(40)", "🎲", "🎲"),
    ("moment", "DATETIME", datetime.datetime(2024, 2, 29, 12, 30), "2024-02-29 12:30:00"),  # noqa: DTZ001
    ("day", "DATE", datetime.date(2024, 2, 29), "2024-02-29"),
    ("clock", "VARCHAR(40)", datetime.time(3, 4, 5), "03:04:05"),
    ("span", "VARCHAR(40)", datetime.timedelta(days=-1, hours=1), "-23:00:00"),
    ("flag", "BOOL", True, "1"),
]


def test_results_of_every_type_are_exported_alike(make_study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(
        resultfields={name: kind for name, kind, _, _ in RESULTS}, logtables={"steps": {"loss": "DOUBLE"}}
    )
    monkeypatch.chdir(study.folder)
    logging.getLogger("tests.values")
    experimenter = PyExperimenter("pyexpd.yml", use_codecarbon=False, logger_name="tests.values")
    results = {name: value for name, _, value, _ in RESULTS}

    def run(keyfields: dict[str, Any], result_processor: Any) -> dict[str, Any]:
        result_processor.process_logs({"steps": {"loss": Decimal("0.5")}})
        return results

    experimenter.fill_table_with_rows([{"x": 1}])
    experimenter.execute(run)
    exported = subprocess.run([PYEXPD, "export", "--format", "csv"], cwd=study.folder, capture_output=True, text=True)
    (row,) = csv.DictReader(exported.stdout.splitlines())
    assert (row["status"], row["error"]) == ("done", "")
    assert {name: row[name] for name in results} == {name: shown for name, _, _, shown in RESULTS}
    assert list(experimenter.get_logtable("steps")["loss"]) == [0.5]
