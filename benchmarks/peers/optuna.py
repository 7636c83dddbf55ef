"""Optuna with RDBStorage: a trial is an experiment, two processes share the study.

Everything is where Optuna has a place for it: the parameter is suggested, with one possible value; the three results
are user attributes; the log row is a reported intermediate value. The trials are not enqueued beforehand: Optuna reads
all that wait for each that it takes, which is slower. The sampler is the random one, which reads no history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.peers.peer import Environment, Run, Stored, call, timed
from benchmarks.peers.workers.workload import Workload
from benchmarks.places import Flavour, Place, place

ENVIRONMENT = Environment("optuna", installs=(("optuna>=5.0,<5.1", "PyMySQL>=1.2.3,<2"),), imports="optuna")
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Optuna:
    """Start: Python, the import and loading the study."""

    flavour: Flavour
    experiments: Mapping[Workload, int]

    @property
    def what(self) -> str:
        return "Optuna RDBStorage"

    @property
    def database(self) -> str:
        return self.flavour

    def prepare(self) -> str:
        return ENVIRONMENT.version()

    def run(self, workload: Workload, count: int) -> Run:
        with place(self.flavour) as here:
            call(ENVIRONMENT.command("optuna", "fill", _url(here)), folder=here.folder)
            work = ENVIRONMENT.command("optuna", "work", _url(here), workload, count // WORKERS)
            run = timed([work] * WORKERS, folder=here.folder)
            _stored(here).check(workload, count // WORKERS * WORKERS)
        return run


def _url(here: Place) -> str:
    server = here.database.server
    if server is None:
        return f"sqlite:///{here.database.path}"
    return urlsplit(server.url)._replace(scheme="mysql+pymysql", path=here.database.name).geturl()


def _stored(here: Place) -> Stored:
    ((finished,),) = here.query("SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'")
    ((attributes,),) = here.query("SELECT COUNT(*) FROM trial_user_attributes")
    ((logs,),) = here.query("SELECT COUNT(*) FROM trial_intermediate_values")
    return Stored(finished=finished, results=attributes // 3, logs=logs)
