"""The result processor over a recorder that is a list."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.result_processor import LogRow, ResultProcessor, storable


class Notebook:
    """A recorder that only writes down."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.rows: list[LogRow] = []
        self.progress: list[tuple[float | None, str | None]] = []

    def send_results(self, results: dict[str, Any]) -> None:
        self.results.append(results)

    def send_logs(self, rows: list[LogRow]) -> None:
        self.rows += rows

    def send_progress(self, fraction: float | None, description: str | None) -> None:
        self.progress.append((fraction, description))

    def should_stop(self) -> bool:
        return True


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
def processor(notebook: Notebook, tmp_path: Path) -> ResultProcessor:
    return ResultProcessor(
        notebook,
        experiment_id=3,
        attempt=1,
        resultfields=("score",),
        logtables={"epochs": ("epoch",)},
        workdir=str(tmp_path / "deep" / "3"),
    )


def test_log_rows_wait_for_results_and_go_first(processor: ResultProcessor, notebook: Notebook) -> None:
    processor.process_logs({"epochs": {"epoch": 1}})
    processor.progress(1, "done")
    assert notebook.rows == []
    processor.process_results({"score": np.float32(0.5)})

    assert [columns for _, _, columns in notebook.rows] == [{"epoch": 1}]
    assert notebook.progress == [(1.0, "done")]
    assert notebook.results == [{"score": 0.5}]
    assert processor.should_stop
    assert processor.workdir.is_dir()


def test_a_closed_processor_refuses(processor: ResultProcessor, notebook: Notebook) -> None:
    processor.process_logs({"epochs": {"epoch": 1}})
    processor.close()
    assert len(notebook.rows) == 1

    with pytest.raises(exceptions.UsageError, match="experiment 3 is over"):
        processor.process_results({"score": 1})


def test_unknown_names_are_refused_with_the_known_ones(processor: ResultProcessor) -> None:
    with pytest.raises(exceptions.InvalidResultFieldError, match="scores") as caught:
        processor.process_results({"scores": 1})
    assert caught.value.hint == "result fields are: score"
    with pytest.raises(exceptions.MissingLogTableError, match="epoch"):
        processor.process_logs({"epoch": {}})
    with pytest.raises(exceptions.InvalidLogFieldError, match="loss"):
        processor.process_logs({"epochs": {"loss": 1}})


def test_storable_values_are_plain() -> None:
    class Stamp(datetime.datetime):
        """As pandas has it."""

    now = datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)
    stored = storable(
        {"a": np.int8(1), "b": bytearray(b"x"), "c": Stamp(2026, 1, 2, 3, tzinfo=datetime.UTC), "d": "\udc80"},
        place="field",
    )

    assert stored == {"a": 1, "b": b"x", "c": now, "d": "\\udc80"}
    assert [type(value) for value in stored.values()] == [int, bytes, datetime.datetime, str]


@pytest.mark.parametrize("value", [set(), object(), [1], {}, (1,), np.zeros(2), 1j, np.longdouble(1)])
def test_other_values_are_refused_by_name_and_type(value: object) -> None:
    with pytest.raises(TypeError, match=f"field a cannot hold a value of type {type(value).__name__}"):
        storable({"a": value}, place="field")
