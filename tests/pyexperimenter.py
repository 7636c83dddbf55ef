"""The real PyExperimenter 1.4.2, whose place we take: in an environment of its own in `.cache/`, made once.

    python script.py        with `python()` as the interpreter and `environment(database)` as its environment

Jupyterlab, which it asks for, is left out: nothing here needs it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.databases import Database
from tests.environments import prepared
from tests.helpers import cannot_run
from tests.servers import CACHE, NotToBeHad

HOME = CACHE / "pyexperimenter-1.4.2"
NEEDED = (
    "attrs",
    "codecarbon<2.6",  # it maps figures by their position: later ones have one more, and MariaDB refuses the row
    "joblib<2",
    "numpy",
    "omegaconf<3",
    "pandas",
    "paramiko<4",
    "PyMySQL<1.2",
    "sshtunnel<0.5",
)
"""What it imports, in versions with which it works."""

ITSELF = ("--no-deps", "py-experimenter==1.4.2")
IMPORTS = "py_experimenter.experimenter"
SITE = Path(__file__).parent / "parity" / "site"


def python() -> Path:
    """The interpreter that can import py_experimenter; without one, the test is skipped."""
    try:
        return prepared(HOME, NEEDED, ITSELF, imports=IMPORTS)
    except NotToBeHad as reason:
        cannot_run("pyexperimenter", str(reason))


def environment(database: Database) -> Mapping[str, str]:
    """Environment variables of a process that uses it with this database."""
    port = {"PYEXPERIMENTER_PORT": str(database.server.port)} if database.server else {}
    return {**os.environ, **port, "PYTHONPATH": str(SITE), "PYTHONWARNINGS": "ignore"}
