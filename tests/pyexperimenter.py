"""The real PyExperimenter 1.4.2, whose place we take: in an environment of its own in `.cache/`, made once.

    python script.py        with `python()` as the interpreter and `environment(database)` as its environment

Jupyterlab, which it asks for, is left out: nothing here needs it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.databases import Database
from tests.helpers import cannot_run
from tests.servers import CACHE

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

ITSELF = "py-experimenter==1.4.2"
SITE = Path(__file__).parent / "parity" / "site"


def python() -> Path:
    """The interpreter that can import py_experimenter; without one, the test is skipped."""
    done, recipe = HOME / "done", "\n".join((*NEEDED, ITSELF))
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "pyexperimenter.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != recipe:
            done.unlink(missing_ok=True)
            _make()
            done.write_text(recipe)
    return HOME / "bin" / "python"


def environment(database: Database) -> Mapping[str, str]:
    """Environment variables of a process that uses it with this database."""
    port = {"PYEXPERIMENTER_PORT": str(database.server.port)} if database.server else {}
    return {**os.environ, **port, "PYTHONPATH": str(SITE), "PYTHONWARNINGS": "ignore"}


def _make() -> None:
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(sys.executable, "-m", "venv", "--clear", str(HOME))
    _run(str(HOME / "bin" / "python"), *install, *NEEDED)
    _run(str(HOME / "bin" / "python"), *install, "--no-deps", ITSELF)
    _run(str(HOME / "bin" / "python"), "-W", "ignore", "-c", "import py_experimenter.experimenter")


def _run(*command: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=900
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        cannot_run("pyexperimenter", f"{' '.join(command[1:4])} failed: {last[0]}")
