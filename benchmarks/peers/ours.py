"""pyexp_daemon itself: from the start of `pyexpd run` to its end, with everything that it stores beside the results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.peers.peer import Run, Stored
from benchmarks.peers.workers.workload import Workload
from benchmarks.places import Flavour, Place, place
from pyexp_daemon import __version__


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Two slots. With `fresh` isolation every experiment has a process of its own, as PgQueuer's jobs have here."""

    flavour: Flavour
    experiments: Mapping[Workload, int]
    isolation: Literal["reuse", "fresh"] = "reuse"

    @property
    def what(self) -> str:
        return "pyexp_daemon" if self.isolation == "reuse" else "pyexp_daemon, process per experiment"

    @property
    def database(self) -> str:
        return self.flavour

    def prepare(self) -> str:
        return __version__

    def run(self, workload: Workload, count: int) -> Run:
        with place(self.flavour) as here:
            here.write(rows=count, function=workload, isolation=self.isolation)
            here.pyexpd("fill")
            began = time.monotonic()
            here.pyexpd("run", "--until-empty")
            took = time.monotonic() - began
            stored(here).check(workload, count)
        return Run(seconds=took, start_s=None)


def stored(here: Place) -> Stored:
    """What is in a table of ours, which is one of PyExperimenter's."""
    ((finished, results),) = here.query("SELECT COUNT(*), COUNT(a + b + LENGTH(c)) FROM exp WHERE status = 'done'")
    ((logs,),) = here.query("SELECT COUNT(*) FROM exp__epochs")
    return Stored(finished=finished, results=results, logs=logs)
