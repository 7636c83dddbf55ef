"""The result processor over a recorder that is a list."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyexp_daemon import exceptions, result_processor
from pyexp_daemon.result_processor import LogRow, ResultProcessor, storable
from pyexp_daemon.snapshot import PART_BYTES
from tests.helpers import wait_until


class Notebook:
    """A recorder that only writes down."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.rows: list[LogRow] = []
        self.parts: list[tuple[int, int, dict[str, Any] | None]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.progress: list[tuple[float | None, str | None]] = []

    def send_results(self, results: dict[str, Any]) -> None:
        self.results.append(results)

    def send_snapshot(self, state_id: str, part: int, data: bytes, head: dict[str, Any] | None) -> None:
        self.parts.append((part, len(data), head))

    def look_up(self, what: str, arguments: dict[str, Any]) -> Any:
        self.asked.append((what, arguments))
        return []

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


def test_log_rows_that_are_refused_in_time_are_an_error_of_the_function(
    processor: ResultProcessor, notebook: Notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(rows: list[LogRow]) -> None:
        raise exceptions.RowRefused("epoch is too large")

    monkeypatch.setattr(result_processor, "BUFFER_S", 0.01)
    monkeypatch.setattr(notebook, "send_logs", refuse)
    processor.process_logs({"epochs": {"epoch": 10**30}})
    wait_until(lambda: processor._buffer._refusal is not None)
    monkeypatch.undo()
    with pytest.raises(exceptions.RowRefused, match="epoch is too large"):
        processor.process_logs({"epochs": {"epoch": 2}})
    processor.process_logs({"epochs": {"epoch": 3}})  # said once
    processor.close()
    assert [columns for _, _, columns in notebook.rows] == [{"epoch": 3}]


def test_a_snapshot_travels_in_parts_behind_the_log_rows(processor: ResultProcessor, notebook: Notebook) -> None:
    processor.process_logs({"epochs": {"epoch": 1}})
    processor.save_snapshot(b"x" * PART_BYTES, label="a", keep=2)
    assert len(notebook.rows) == 1
    (first, second) = notebook.parts
    assert first == (0, PART_BYTES, None)
    assert second[:2] == (1, second[1])
    head = second[2]
    assert head is not None
    assert {name: head[name] for name in ("label", "parts", "keep")} == {"label": "a", "parts": 2, "keep": 2}
    assert head["size_bytes"] == PART_BYTES + second[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "x" * 256}, "no label"),
        ({"label": "\udc80"}, "no label"),
        ({"keep": 0}, "keep is 0"),
        ({"keep": True}, "keep is True"),
        ({"keep": 1.0}, "keep is 1.0"),
    ],
)
def test_a_snapshot_that_cannot_be_kept_so_is_refused(
    processor: ResultProcessor, notebook: Notebook, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor.save_snapshot(1, **options)
    assert notebook.parts == []


def test_without_snapshots_and_results_of_others_there_are_none(processor: ResultProcessor, notebook: Notebook) -> None:
    assert processor.latest_snapshot("a") is None
    assert processor.snapshots() == []
    assert processor.results_where("other", x=np.int8(1)) == []
    assert notebook.asked == [
        ("snapshots", {"label": "a", "limit": 1}),
        ("snapshots", {"label": None, "limit": None}),
        ("results_where", {"table": "other", "keyfields": {"x": 1}, "after": 0}),
    ]
    processor.close()
    for call in (processor.latest_snapshot, processor.snapshots, processor.results_where):
        with pytest.raises(exceptions.UsageError, match="experiment 3 is over"):
            call()


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
