"""What an experiment costs in energy and emissions, measured by codecarbon in the process that runs it.

Runs in the child, too: standard library only, and codecarbon, which is imported when something is to be measured.
Nothing that goes wrong here costs an experiment.
"""

# ruff: noqa: PTH100
# Paths are plain text here: a child without pathlib is smaller.

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import sys
import threading
import time
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COLUMNS = {
    "timestamp": "codecarbon_timestamp",
    "project_name": "project_name",
    "run_id": "run_id",
    "duration": "duration_seconds",
    "emissions": "emissions_kg",
    "emissions_rate": "emissions_rate_kg_sec",
    "cpu_power": "cpu_power_watt",
    "gpu_power": "gpu_power_watt",
    "ram_power": "ram_power_watt",
    "cpu_energy": "cpu_energy_kw",
    "gpu_energy": "gpu_energy_kw",
    "ram_energy": "ram_energy_kw",
    "energy_consumed": "energy_consumed_kw",
    "country_name": "country_name",
    "country_iso_code": "country_iso_code",
    "region": "region",
    "cloud_provider": "cloud_provider",
    "cloud_region": "cloud_region",
    "os": "os",
    "python_version": "python_version",
    "codecarbon_version": "codecarbon_version",
    "cpu_count": "cpu_count",
    "cpu_model": "cpu_model",
    "gpu_count": "gpu_count",
    "gpu_model": "gpu_model",
    "longitude": "longitude",
    "latitude": "latitude",
    "ram_total_size": "ram_total_size",
    "tracking_mode": "tracking_mode",
    "on_cloud": "on_cloud",
    "pue": "power_usage_efficiency",
}
"""The fields of codecarbon's EmissionsData that are kept, and their columns in `<table>_codecarbon`."""

_PREPARE_S = 60.0
_STOP_S = 10.0
_PLACE_S = 5.0
_WHEN_UNKNOWN = ("CAN", 46.8, -71.2)
"""Where codecarbon says it is when nobody answers; real answers are more exact than that."""


def is_available() -> bool:
    """Whether codecarbon is installed for this interpreter; it is not imported."""
    return importlib.util.find_spec("codecarbon") is not None


class Emissions:
    """Measures one experiment after the other; raises nothing.

    What is slow is done here, before there is an experiment: to import codecarbon and to look at the hardware takes
    seconds, a tracker for each experiment then milliseconds.

    Args:
        settings: keyword arguments of codecarbon's trackers, and `offline_mode`; None measures nothing.
    """

    def __init__(self, settings: Mapping[str, Any] | None) -> None:
        self._make: Callable[[], Any] | None = None
        self._tracker: Any = None
        self._troubles: list[str] = []
        try:
            if settings is not None:
                self._prepare(settings)
        except ImportError as error:
            self._troubles.append(f"nothing is measured, {sys.executable} cannot import codecarbon: {error}")
        except Exception as error:  # noqa: BLE001 it looks at files, hardware and the network: it may raise anything
            self._troubles.append(f"nothing is measured, codecarbon cannot start: {_describe(error)}")

    def start(self) -> None:
        """Begin to measure."""
        if self._make is None:
            return
        try:
            self._tracker = self._make()
            _unsuppressed(self._tracker, "start")()
        except Exception as error:  # noqa: BLE001
            self._troubles.append(f"codecarbon cannot start: {_describe(error)}")

    def stop(self) -> dict[str, Any] | None:
        """What was measured since `start`, by column; None if that is nothing."""
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return None
        try:
            _end_timers(tracker)
            _within(_STOP_S, _unsuppressed(tracker, "stop"))
            return {**by_column(vars(tracker.final_emissions_data)), "offline_mode": self._is_offline}
        except Exception as error:  # noqa: BLE001
            self._troubles.append(f"codecarbon cannot end: {_describe(error)}")
            return None

    def take_trouble(self) -> str | None:
        """What has gone wrong and was not taken yet, in words; None: nothing."""
        troubles = "; ".join(self._troubles)
        self._troubles.clear()
        return troubles or None

    def _prepare(self, settings: Mapping[str, Any]) -> None:
        import codecarbon

        self._is_offline = bool(settings.get("offline_mode"))
        logging.getLogger("codecarbon").setLevel(logging.ERROR)  # until a tracker has read what is wanted
        kind = codecarbon.OfflineEmissionsTracker if self._is_offline else codecarbon.EmissionsTracker
        arguments = self._arguments(settings, known=_settings_of(kind))
        spare = [_construct(kind, arguments)]
        _within(_PREPARE_S, spare[0].get_detected_hardware)
        place = None if self._is_offline else _Place(spare[0], self._troubles)

        def make() -> Any:
            tracker = spare.pop() if spare else _construct(kind, arguments)
            if place is not None:
                tracker._get_geo_metadata, tracker._get_cloud_metadata = place.geo, place.cloud
            return tracker

        self._make = make

    def _arguments(self, settings: Mapping[str, Any], *, known: set[str]) -> dict[str, Any]:
        """Those of the settings that the tracker has, and what this project decides."""
        wanted = {name: value for name, value in settings.items() if name != "offline_mode"}
        unknown = sorted(wanted.keys() - known)
        if unknown:
            mode = "with" if self._is_offline else "without"
            self._troubles.append(f"left out, no settings of codecarbon {mode} offline_mode: {', '.join(unknown)}")
        defaults = {"log_level": "error", "save_to_file": False, "output_dir": "."}
        chosen = {**defaults, **wanted, "allow_multiple_runs": True}  # one for each slot
        chosen["output_dir"] = os.path.abspath(chosen["output_dir"])  # the function may change the working directory
        return {name: value for name, value in chosen.items() if name in known}


def by_column(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an EmissionsData by their columns; what is missing or empty is None."""
    return {column: None if (value := measured.get(name)) == "" else value for name, column in COLUMNS.items()}


class _Place:
    """Where this machine is: asked over the network once for all experiments, while the first one runs.

    Args:
        tracker: knows whom to ask.
        troubles: get a line when nobody answers.
    """

    def __init__(self, tracker: Any, troubles: list[str]) -> None:
        self._ask_geo, self._ask_cloud = tracker._get_geo_metadata, tracker._get_cloud_metadata
        self._troubles = troubles
        self._found: tuple[Any, Any] | None = None
        self._is_missed = False
        self._deadline = time.monotonic() + _PLACE_S
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._asking.start()

    def geo(self) -> Any:
        """The country, or none: then codecarbon takes the average of the world."""
        return self._wait()[0]

    def cloud(self) -> Any:
        """The provider's cloud, or none."""
        return self._wait()[1]

    def _ask(self) -> None:
        with suppress(Exception):
            geo, cloud = self._ask_geo(), self._ask_cloud()
            if (geo.country_iso_code, geo.latitude, geo.longitude) != _WHEN_UNKNOWN or not cloud.is_on_private_infra:
                self._found = geo, cloud

    def _wait(self) -> tuple[Any, Any]:
        self._asking.join(max(0.0, self._deadline - time.monotonic()))  # names may take a minute to be looked up
        if self._found is not None:
            return self._found
        from codecarbon.external.geography import CloudMetadata, GeoMetadata

        if not self._is_missed:
            self._is_missed = True
            self._troubles.append(
                "nobody says in which country this machine is, so emissions are those of an average country:"
                " set offline_mode and country_iso_code"
            )
        nowhere: Any = None
        return GeoMetadata(country_iso_code=nowhere), CloudMetadata(provider=None, region=None)


def _settings_of(kind: type) -> set[str]:
    """The keyword arguments of a tracker, its base's included."""
    makers = [vars(base)["__init__"] for base in kind.__mro__[:-1] if "__init__" in vars(base)]
    return {name for maker in makers for name in inspect.signature(maker).parameters} - {"self", "args", "kwargs"}


def _construct(kind: Any, arguments: Mapping[str, Any]) -> Any:
    tracker = kind.__new__(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # save_to_file is deprecated; users have it, and older releases know no other
        _unsuppressed(tracker, "__init__")(**arguments)
    return tracker


def _unsuppressed(tracker: Any, method: str) -> Callable[..., Any]:
    """The method without codecarbon's `suppress` around it, which hides what went wrong."""
    bound: Callable[..., Any] = inspect.unwrap(getattr(type(tracker), method)).__get__(tracker)
    return bound


def _end_timers(tracker: Any) -> None:
    """Keep the tracker's timers from starting anew: one that is at it while the tracker stops would go on for ever."""
    for name in ("_scheduler", "_scheduler_monitor_power"):
        scheduler = getattr(tracker, name, None)
        if scheduler is not None:
            scheduler.start = lambda **_: None


def _within(seconds: float, call: Callable[[], Any]) -> None:
    """Make a call that may hang; then it is left behind, in a thread that keeps no process from ending.

    Raises:
        TimeoutError: it hangs.
        Exception: whatever the call raised.
    """
    raised: list[Exception | None] = []

    def run() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 it is raised by who waits
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not raised:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if raised[0] is not None:
        raise raised[0]


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
