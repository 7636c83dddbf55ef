"""What codecarbon measures and the columns it goes to, and what is made of the section CodeCarbon."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import codecarbon
import pytest
from codecarbon.output_methods.emissions_data import EmissionsData

from pyexp_daemon.store import emissions as stored
from pyexp_daemon.worker import emissions
from pyexp_daemon.worker.emissions import COLUMNS, Emissions, by_column
from tests.helpers import FIXTURES, wait_until

OFFLINE = {"offline_mode": True, "country_iso_code": "DEU"}


def test_the_columns_are_those_of_pyexperimenter() -> None:
    """As its 1.4.2 made them, in this order."""
    dump = (FIXTURES / "pyexperimenter-1.4.2" / "sqlite.sql").read_text()
    (line,) = [line for line in dump.splitlines() if line.startswith("CREATE TABLE mixed_codecarbon")]
    described = [part.split() for part in line.partition("(")[2].split(", FOREIGN")[0].split(",")]
    made = {words[0]: words[1] for words in described[2:]}
    assert list(stored.COLUMNS.items()) == list(made.items())
    assert len(stored.COLUMNS) + len(["ID", "experiment_id"]) == 34


def test_fields_are_matched_by_name() -> None:
    fields = [field.name for field in dataclasses.fields(EmissionsData)]
    assert set(COLUMNS) <= set(fields)
    assert {*COLUMNS.values(), "offline_mode"} == set(stored.COLUMNS)
    measured = dict(reversed([(name, f"value of {name}") for name in fields]))
    row = by_column(measured)
    assert row["power_usage_efficiency"] == "value of pue"
    assert row["energy_consumed_kw"] == "value of energy_consumed"
    assert row == {column: f"value of {field}" for field, column in COLUMNS.items()}


def test_what_is_missing_or_empty_is_null() -> None:
    row = by_column({"region": "", "cpu_energy": 0.0, "water_consumed": 5})
    assert row.pop("cpu_energy_kw") == 0.0
    assert set(row.values()) == {None}


def test_every_experiment_gets_numbers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves neither a file nor a thread behind."""
    monkeypatch.chdir(tmp_path)
    before = set(threading.enumerate())
    measuring = Emissions(OFFLINE)
    rows = []
    for _ in range(3):
        measuring.start()
        time.sleep(0.06)  # codecarbon leaves out what is shorter
        rows.append(measuring.stop() or {})
    assert measuring.take_trouble() is None
    assert measuring.stop() is None
    assert len({row["run_id"] for row in rows}) == 3
    for row in rows:
        assert set(row) == set(stored.COLUMNS)
        assert (row["country_iso_code"], row["offline_mode"], row["codecarbon_version"]) == (
            "DEU",
            True,
            importlib.metadata.version("codecarbon"),
        )
        assert 0.05 < row["duration_seconds"] < 60
        assert row["energy_consumed_kw"] == pytest.approx(
            row["cpu_energy_kw"] + row["gpu_energy_kw"] + row["ram_energy_kw"]
        )
        assert row["emissions_kg"] > 0
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert list(tmp_path.iterdir()) == []


def test_timer_that_is_at_it_while_the_tracker_stops_does_not_go_on() -> None:
    before = set(threading.enumerate())
    measuring = Emissions({**OFFLINE, "measure_power_secs": 0.01})
    measuring.start()
    scheduler = measuring._tracker._scheduler
    calls: list[float] = []
    scheduler.function = lambda: calls.append(time.monotonic())
    wait_until(lambda: bool(calls))
    assert measuring.stop() is not None
    scheduler._run()  # as a timer that had fired just before
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_file_is_written_when_the_section_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To where the project is, wherever the function goes."""
    monkeypatch.chdir(tmp_path)
    measuring = Emissions({**OFFLINE, "save_to_file": True})
    measuring.start()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert measuring.stop() is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "emissions.csv"]


def test_settings_that_codecarbon_does_not_have_are_left_out() -> None:
    measuring = Emissions({**OFFLINE, "colour": "green", "region": "bavaria", "allow_multiple_runs": False})
    trouble = measuring.take_trouble()
    assert trouble == "left out, no settings of codecarbon with offline_mode: colour"
    measuring.start()
    row = measuring.stop()
    assert row is not None
    assert row["region"] == "bavaria"


def test_what_codecarbon_refuses_costs_nothing_but_the_figures() -> None:
    measuring = Emissions({**OFFLINE, "output_dir": "/nowhere/at/all"})
    trouble = measuring.take_trouble()
    assert trouble is not None
    assert "codecarbon cannot start: OSError: Folder '/nowhere/at/all' doesn't exist" in trouble
    measuring.start()
    assert measuring.stop() is None
    assert measuring.take_trouble() is None


@pytest.mark.parametrize("method", ["start", "stop"])
def test_codecarbon_that_raises_is_reported(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    measuring = Emissions(OFFLINE)

    def fail(tracker: Any) -> None:
        raise RuntimeError("no such counter")

    monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, method, fail)
    measuring.start()
    assert (measuring.stop() is None) or method == "start"
    assert "RuntimeError: no such counter" in (measuring.take_trouble() or "")


def test_codecarbon_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emissions, "_STOP_S", 0.05)
    measuring = Emissions(OFFLINE)
    measuring.start()
    released = threading.Event()
    monkeypatch.setattr(codecarbon.OfflineEmissionsTracker, "stop", lambda tracker: released.wait(30))
    assert measuring.stop() is None
    released.set()
    assert measuring.take_trouble() == "codecarbon cannot end: TimeoutError: no answer within 0.05 s"


def test_place_is_asked_once_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names may take a minute to be looked up where there is no network."""
    monkeypatch.setattr(emissions, "_PLACE_S", 2.0)
    answered, asked = threading.Event(), []

    def ask(tracker: Any) -> Any:
        asked.append(1)
        answered.wait(60)
        from codecarbon.external.geography import GeoMetadata

        return GeoMetadata(country_iso_code="FRA", country_name="France", latitude=48.85, longitude=2.35)

    monkeypatch.setattr(codecarbon.EmissionsTracker, "_get_geo_metadata", ask)
    measuring = Emissions({"measure_power_secs": 5})
    rows, took = [], []
    for _ in range(2):
        measuring.start()
        began = time.monotonic()
        rows.append(measuring.stop() or {})
        took.append(time.monotonic() - began)
    answered.set()
    wait_until(lambda: not measuring_threads())
    measuring.start()
    rows.append(measuring.stop() or {})
    assert [row["country_iso_code"] for row in rows] == [None, None, "FRA"]
    assert all(row["energy_consumed_kw"] >= 0 for row in rows)
    assert took[1] < 2.0
    assert (measuring.take_trouble() or "").count("nobody says in which country") == 1
    assert len(asked) == 1


def measuring_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_ask" in thread.name]


def test_country_that_codecarbon_makes_up_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says Canada when nobody answers."""
    import requests

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", refuse)
    measuring = Emissions({"project_name": "x"})
    measuring.start()
    time.sleep(0.06)
    row = measuring.stop()
    assert row is not None
    assert (row["country_iso_code"], row["country_name"], row["latitude"]) == (None, None, None)
    assert row["emissions_kg"] > 0
    assert "nobody says in which country" in (measuring.take_trouble() or "")


def test_nothing_is_imported_where_nothing_is_measured() -> None:
    code = (
        "import sys; from pyexp_daemon.worker.emissions import Emissions, is_available;"
        " e = Emissions(None); e.start(); assert e.stop() is None and e.take_trouble() is None;"
        " assert is_available() and 'codecarbon' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
