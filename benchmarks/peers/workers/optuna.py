"""`fill URL` or `work URL WORKLOAD COUNT`, with Optuna's RDBStorage."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import optuna

from benchmarks.peers.workers import workload

STUDY = "exp"


def fill(url: str) -> None:
    optuna.create_study(storage=url, study_name=STUDY)


def work(url: str, kind: str, count: str) -> None:
    study = optuna.load_study(storage=url, study_name=STUDY, sampler=optuna.samplers.RandomSampler())

    def experiment(trial: Any) -> float:
        x = trial.suggest_int("x", trial.number, trial.number)
        for name, value in (workload.results(kind, x) or {}).items():
            trial.set_user_attr(name, value)
        loss = workload.loss(kind, x)
        if loss is not None:
            trial.report(loss, step=0)
        return 0.0

    workload.tell(workload.READY)
    study.optimize(experiment, n_trials=int(count))
    workload.tell(workload.DONE)


ACTIONS: dict[str, Callable[..., None]] = {"fill": fill, "work": work}

if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ACTIONS[sys.argv[1]](*sys.argv[2:])
