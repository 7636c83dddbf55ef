"""The page of figures, and the parts into which samples of a daemon fall."""

from __future__ import annotations

from typing import Any

from benchmarks.__main__ import BENCHMARKS, machine
from benchmarks.hotspots import ELSEWHERE, part_of, shared
from benchmarks.page import SECTIONS, page

FIGURES: dict[str, Any] = {
    "peers": [
        {
            "what": "Huey, with results",
            "version": "3.5.4",
            "workload": "noop",
            "database": "sqlite",
            "per_second": {"median": 1540.0, "min": 1400.0, "max": 1600.0, "all": [1400.0, 1540.0, 1600.0]},
            "start_s": 0.3,
            "skipped": None,
            "failures": ["repeat 2: database is locked"],
        },
        {
            "what": "Ray tasks",
            "version": "",
            "workload": "noop",
            "database": "sqlite",
            "per_second": None,
            "start_s": None,
            "skipped": "pip install failed",
            "failures": [],
        },
    ],
    "probes": [],
    "bars": [
        {"what": "no-op / Huey", "least": 1.3, "ratio": {"median": 1.4, "min": 1.2, "max": 1.5}, "reached": True},
        {"what": "no-op / slot", "least": 0.35, "ratio": {"median": 0.3, "min": 0.2, "max": 0.32}, "reached": False},
        {"what": "no-op / Ray", "least": 2.0, "ratio": None, "reached": None},
    ],
    "hotspots": [{"what": "noop, sqlite", "percent": {"slots": 60.5, "completing": 39.5}}],
    "latency": [{"what": "run to first", "median_s": 0.5, "longest_s": 0.75}],
}


def test_every_benchmark_has_its_place_on_the_page() -> None:
    assert set(SECTIONS) == set(BENCHMARKS)


def test_the_page_has_what_was_measured_and_names_what_was_not() -> None:
    written = page(FIGURES | {"machine": machine()})
    assert "| Huey, with results | 3.5.4 | noop | sqlite | 1,540 | 1,400 | 1,600 |" in written
    assert "| Ray tasks |  | noop | sqlite | - | - | - |" in written
    assert (
        "* Huey, with results (noop): repeat 2: database is locked\n* Ray tasks (noop): pip install failed" in written
    )
    assert "| no-op / Huey | ≥ 1.3 | 1.4 | 1.2 | 1.5 |" in written
    assert "| no-op / slot | ≥ 0.35 | **0.3** | 0.2 | 0.32 |" in written
    assert "| no-op / Ray | ≥ 2 | **-** | - | - |" in written
    assert "|  | slots | completing |\n| --- | --- | --- |\n| noop, sqlite | 60.5 | 39.5 |" in written
    assert "| run to first | 0.5 | 0.75 |" in written
    assert "## Not measured yet" in written
    assert "Filling" in written.rpartition("## Not measured yet")[2]
    assert "Latency" not in written.rpartition("## Not measured yet")[2]


def test_the_page_says_how_far_the_function_that_stores_is_from_its_limit() -> None:
    def rated(what: str, workload: str, database: str, median: float) -> dict[str, Any]:
        rates = {"median": median, "min": median, "max": median}
        row = {"what": what, "workload": workload, "database": database, "per_second": rates, "version": ""}
        return row | {"skipped": None, "failures": []}

    ours = [rated("pyexp_daemon", "noop", "sqlite", 4000.0), rated("pyexp_daemon", "realistic", "sqlite", 1000.0)]
    probes = [rated("one-row commit", "realistic", "sqlite", 5000.0), rated("bare slot call", "realistic", "", 10000.0)]
    written = page({"machine": machine(), "peers": ours, "probes": probes, "bars": []})
    assert "On SQLite the realistic function does 0.25 of the no-op's 4,000/s." in written
    assert "2,222/s in all, or 0.56." in written
    assert "On MariaDB" not in written


def test_a_sample_belongs_to_the_innermost_function_of_ours() -> None:
    assert part_of(["run (pyexp_daemon/cli/run.py:1)", "select (selectors.py:2)"]) == "event loop"
    assert part_of(["a (x/pyexp_daemon/worker/slot.py:1)", "b (x/pyexp_daemon/daemon/completer.py:3)"]) == "completing"
    assert part_of(["a (pyexp_daemon/worker/channel.py:1)"]) == "messages of children"
    assert part_of(["wait (threading.py:3)"]) == ELSEWHERE


def test_shares_add_up() -> None:
    samples = ["a (pyexp_daemon/store/sqlite.py:1);b (x.py:1) 3", "c (pyexp_daemon/worker/slot.py:4) 1"]
    assert list(shared(samples)) == [("database: statements and driver", 75.0), ("slots", 25.0)]
