"""PyExperimenter 1.4.2 with `n_jobs` 2, the very configuration and functions that we run.

It is installed as pip does it today, with the newest PyMySQL that it accepts (without Jupyterlab, which nothing needs).
That PyMySQL loads the machine's certificates at every connect, and PyExperimenter connects for every statement:
the second variant is spared that, as a favourable bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.peers.ours import stored
from benchmarks.peers.peer import Environment, Run, call, timed
from benchmarks.peers.workers.workload import Workload
from benchmarks.places import Flavour, place
from tests import pyexperimenter as theirs

ENVIRONMENT = Environment(
    "py-experimenter",
    installs=(
        (*(name for name in theirs.NEEDED if not name.startswith("PyMySQL")), "PyMySQL>=1.2.3,<2"),
        theirs.ITSELF,
    ),
    imports=theirs.IMPORTS,
)


@dataclass(frozen=True, kw_only=True)
class PyExperimenter:
    """Start: Python, the import, reading the configuration and a first connect, but not joblib's workers."""

    flavour: Flavour
    experiments: Mapping[Workload, int]
    tls: bool = True

    @property
    def what(self) -> str:
        return "PyExperimenter" if self.tls else "PyExperimenter, TLS disabled"

    @property
    def database(self) -> str:
        return self.flavour

    def prepare(self) -> str:
        return ENVIRONMENT.version()

    def run(self, workload: Workload, count: int) -> Run:
        with place(self.flavour) as here:
            here.write(rows=count, function=workload)
            environment = {**theirs.environment(here.database), "PYEXPERIMENTER_TLS": "on" if self.tls else "off"}
            call(ENVIRONMENT.command("pyexperimenter", "fill"), folder=here.folder, environment=environment)
            work = ENVIRONMENT.command("pyexperimenter", "work", workload)
            run = timed([work], folder=here.folder, environment=environment)
            stored(here).check(workload, count)
        return run
