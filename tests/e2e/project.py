"""A researcher's folder: configuration, function, journal; and the installed command run in it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.databases import Database
from tests.helpers import wait_until, whole_lines

PYEXPD = str(Path(sys.executable).with_name("pyexpd"))
"""The installed command."""

FUNCTIONS = '''
import os, signal, subprocess, sys, time


def note(custom, word, rp):
    line = f"{word} {rp.experiment_id} {rp.attempt} {os.getpid()} {time.monotonic()}\\n"
    descriptor = os.open(custom["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def run(keyfields, rp, custom):
    note(custom, "start", rp)
    time.sleep(custom.get("seconds", 0))
    rp.process_results({"y": keyfields["x"] * 2.0})
    note(custom, "end", rp)


def long_first_time(keyfields, rp, custom):
    """Long in the first attempt of an experiment, short in later ones."""
    note(custom, "start", rp)
    time.sleep(60 if rp.attempt == 1 else 0.01)
    note(custom, "end", rp)
    return {"y": keyfields["x"] * 2.0}


def gated(keyfields, rp, custom):
    """Does not end before the gate is open."""
    note(custom, "start", rp)
    while not os.path.exists(custom["journal"] + ".go"):
        time.sleep(0.02)
    note(custom, "end", rp)
    return {"y": keyfields["x"] * 2.0}


def noop(keyfields, rp, custom):
    pass


def mixed(keyfields, rp, custom):
    """Every third experiment ends in a way of its own."""
    note(custom, "start", rp)
    x = keyfields["x"]
    print("hello from", x, flush=True)
    if x == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    if x == 1:
        os._exit(3)
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 3:
        raise ValueError("no such luck")
    if x == 4:
        sys.exit("done here")
    return {"y": float(x)}


def stubborn(keyfields, rp, custom):
    """Ignores TERM, and has a grandchild that ignores it and one in a session of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    one = subprocess.Popen([sys.executable, "-c", code])
    two = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    for pid in (os.getpid(), one.pid, two.pid):
        with open(custom["journal"], "a") as journal:
            journal.write(f"pid {pid}\\n")
    time.sleep(600)
'''


@dataclass
class Project:
    """One configuration with its functions.

    Args:
        options: what `Database.write_config` is told; `function` names one of FUNCTIONS.
    """

    database: Database
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    rows: int = 5

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "experiments.py").write_text(FUNCTIONS)
        self.journal = self.folder / "journal"
        options = dict(self.options)
        custom = {"journal": str(self.journal), **options.pop("custom", {})}
        function = f"experiments:{options.pop('function', 'run')}"
        keyfields = options.pop("keyfields", {"x": {"type": "INT", "values": list(range(self.rows))}})
        daemon = {"poll": {"shortest": "50ms", "longest": "200ms"}, **options.pop("daemon", {})}
        limits = {"backoff": {"first": "50ms", "longest": "100ms"}, **options.pop("limits", {})}
        self.config = self.database.write_config(
            self.folder,
            keyfields=keyfields,
            function=function,
            custom=custom,
            daemon=daemon,
            limits=limits,
            **options,
        )

    def pyexpd(self, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, without a terminal."""
        return subprocess.run(
            [PYEXPD, *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def fill(self) -> None:
        filled = self.pyexpd("fill")
        assert filled.returncode == 0, filled.stderr
        assert f"added {self.rows}, 0 already there" in filled.stdout

    @contextmanager
    def daemon(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A running `pyexpd run`, killed in the end if it still runs."""
        output = open(self.folder / f"daemon-output-{len(list(self.folder.glob('daemon-output-*')))}", "w+")  # noqa: PTH123, SIM115
        process = subprocess.Popen(
            [PYEXPD, "run", *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            output.seek(0)
            self.last_output = output.read()
            output.close()

    def end(self, process: subprocess.Popen[str], *, timeout: float = 120) -> int:
        """The exit code of a daemon that ends by itself."""
        return process.wait(timeout)

    def statuses(self) -> dict[str, int]:
        return dict(self.database.query("SELECT status, COUNT(*) FROM exp GROUP BY status"))

    def wait_for(self, *, timeout: float = 120, **statuses: int) -> None:
        """Wait until the table has (at least) so many experiments of each of these statuses."""
        wait_until(
            lambda: all(self.statuses().get(status, 0) >= count for status, count in statuses.items()),
            timeout=timeout,
            interval=0.02,
            what=f"{statuses}, not {self.statuses()}",
        )

    def attempts(self) -> list[tuple[int, int, str]]:
        return self.database.query(
            "SELECT experiment_id, attempt, outcome FROM exp__pyexpd_attempts ORDER BY experiment_id, attempt"
        )

    def notes(self) -> list[list[str]]:
        return [line.split() for line in whole_lines(self.journal)] if self.journal.exists() else []

    def stop_at_once(self, process: subprocess.Popen[str]) -> None:
        """Tell the only daemon to end, and again: when it has heard the first for longer than a key repeats."""
        process.send_signal(TERM)
        wait_until(lambda: [e for e in self.events() if e["event"] == "daemon.draining"], what="the first is heard")
        time.sleep(1.1)
        process.send_signal(TERM)

    def open_gate(self) -> None:
        """Let what waits for it, as `gated` does, come to its end."""
        Path(f"{self.journal}.go").touch()

    def runs(self) -> dict[int, list[tuple[float, float | None]]]:
        """When each experiment really ran, by the function's own journal: start and end of each run, by start."""
        started: dict[tuple[str, str, str], float] = {}
        runs: defaultdict[int, list[tuple[float, float | None]]] = defaultdict(list)
        for word, experiment, attempt, pid, moment in self.notes():
            key = (experiment, attempt, pid)
            if word == "start":
                started[key] = float(moment)
            else:
                runs[int(experiment)].append((started.pop(key), float(moment)))
        for (experiment, _, _), began in started.items():
            runs[int(experiment)].append((began, None))
        return {experiment: sorted(times, key=lambda run: run[0]) for experiment, times in runs.items()}

    def freeze(self, process: subprocess.Popen[str]) -> None:
        """Stop a daemon, but not within a transaction: on SQLite that would lock everybody out."""
        while True:
            process.send_signal(signal.SIGSTOP)
            wait_until(lambda: state_of(process.pid) == "T", what="it stands still")
            if self.database.server or not is_locked(self.database.path):
                return
            process.send_signal(signal.SIGCONT)
            time.sleep(0.02)

    def children_of(self, process: subprocess.Popen[str]) -> list[int]:
        import psutil

        return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]

    def events(self, name: str = "*") -> list[dict[str, Any]]:
        """The daemon logs of this project, parsed."""
        logs = self.folder / ".pyexpd" / "exp"
        return [json.loads(line) for path in sorted(logs.glob(f"daemon-{name}.jsonl")) for line in whole_lines(path)]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return state_of(pid) not in "ZX"
    except OSError:
        return False


def state_of(pid: int) -> str:
    """The letter for it, such as T for one that is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_locked(path: Path) -> bool:
    """Whether somebody is writing to this SQLite file."""
    with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL
