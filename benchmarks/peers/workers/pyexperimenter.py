"""`fill` or `work WORKLOAD` with `pyexpd.yml` and `experiments.py` of the current folder, with PyExperimenter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from py_experimenter.experimenter import PyExperimenter  # type: ignore[import-not-found]

from benchmarks.peers.workers import workload

WORKERS = 2


def opened() -> PyExperimenter:
    return PyExperimenter(
        experiment_configuration_file_path="pyexpd.yml",
        database_credential_file_path="database_credentials.yml",
        use_codecarbon=False,
        log_level="ERROR",
    )


def fill() -> None:
    opened().fill_table_from_config()


def work(kind: str) -> None:
    function = getattr(importlib.import_module("experiments"), kind)
    experimenter = opened()
    workload.tell(workload.READY)
    experimenter.execute(function, n_jobs=WORKERS)
    workload.tell(workload.DONE)


ACTIONS: dict[str, Callable[..., None]] = {"fill": fill, "work": work}

if __name__ == "__main__":
    ACTIONS[sys.argv[1]](*sys.argv[2:])
