"""The table `<table>_codecarbon`: what attempts cost in energy and emissions. PyExperimenter's, column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyexp_daemon.model import Report
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.raw import columns_of
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Do, Steps, marks
from pyexp_daemon.store.values import storable

_TEXT, _NUMBER, _TIME, _FLAG = "VARCHAR(255)", "DOUBLE", "DATETIME", "BOOL"

COLUMNS: Mapping[str, str] = {
    "codecarbon_timestamp": _TIME,
    "project_name": _TEXT,
    "run_id": _TEXT,
    "duration_seconds": _NUMBER,
    "emissions_kg": _NUMBER,
    "emissions_rate_kg_sec": _NUMBER,
    "cpu_power_watt": _NUMBER,
    "gpu_power_watt": _NUMBER,
    "ram_power_watt": _NUMBER,
    "cpu_energy_kw": _NUMBER,
    "gpu_energy_kw": _NUMBER,
    "ram_energy_kw": _NUMBER,
    "energy_consumed_kw": _NUMBER,
    "country_name": _TEXT,
    "country_iso_code": _TEXT,
    "region": _TEXT,
    "cloud_provider": _TEXT,
    "cloud_region": _TEXT,
    "os": _TEXT,
    "python_version": _TEXT,
    "codecarbon_version": _TEXT,
    "cpu_count": _NUMBER,
    "cpu_model": _TEXT,
    "gpu_count": _NUMBER,
    "gpu_model": _TEXT,
    "longitude": _TEXT,
    "latitude": _TEXT,
    "ram_total_size": _NUMBER,
    "tracking_mode": _TEXT,
    "on_cloud": _TEXT,
    "power_usage_efficiency": _NUMBER,
    "offline_mode": _FLAG,
}
"""Its columns and their types, after `ID` and `experiment_id`."""

_MARKS = ("id", "experiment_id", "codecarbon_timestamp")


def is_emissions(columns: Sequence[str]) -> bool:
    """Whether a table that has the name is the one that PyExperimenter makes."""
    return tuple(column.lower() for column in columns[: len(_MARKS)]) == _MARKS


def columns(table: Table) -> Steps[tuple[str, ...]]:
    """The columns of what has the name of the table, in order; none when there is no such table."""
    name = f"{table.name}_codecarbon"
    found = yield columns_of(table, name)
    return tuple(column for of, column in found.rows if of == name)  # a server shows one in other capitals as well


def inserts(table: Table, reports: Sequence[Report], there: Sequence[str]) -> list[Do]:
    """The statements that store what the ends of these reports have measured, as far as there are columns for it."""
    wanted = [column for column in COLUMNS if column in there]
    rows = [
        [report.claim.experiment_id, *(_storable(column, report.end.emissions.get(column)) for column in wanted)]
        for report in reports
        if report.end is not None and report.end.emissions is not None
    ]
    if not (rows and is_emissions(there)):
        return []
    names = ", ".join(map(quote, ("experiment_id", *wanted)))
    return [Do(f"INSERT INTO {table.emissions} ({names}) VALUES ({marks(rows[0])})", rows, many=True)]


def deletes(table: Table, ids: Sequence[int], there: Sequence[str]) -> list[Do]:
    """The statements that take the rows of these experiments away."""
    if not is_emissions(there):
        return []
    return [Do(f"DELETE FROM {table.emissions} WHERE experiment_id IN ({marks(ids)})", ids)]


def _storable(column: str, value: Any) -> Any:
    """A value that the column takes whatever the server's mode: a measurement costs no result."""
    if value is None or COLUMNS[column] == _FLAG:
        return value
    if COLUMNS[column] == _NUMBER:
        return storable(float(value)) if isinstance(value, int | float) else None
    return storable(str(value))[: 19 if COLUMNS[column] == _TIME else 255]
