"""For tests of faults: projects whose function can be checked, and daemons on what seem to be hosts of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pyexp_daemon.failpoint import VARIABLE as FAILPOINTS
from tests.databases import Database
from tests.e2e.project import Project
from tests.faults.checker import FUNCTION, RESULTFIELDS, Circumstances, Records, check
from tests.faults.proxy import Proxy
from tests.helpers import wait_until

SHORT = {"heartbeat": "500ms", "lease": "3s"}
"""The shortest lease that is promised to work on a loaded machine."""


PACED = '''
def paced(keyfields, rp, custom):
    """Sleeps for so many seconds as are listed for its x."""
    note(custom, "start", rp)
    time.sleep(custom["pace"][keyfields["x"]])
    note(custom, "end", rp)
    return result(keyfields, rp)
'''
"""A function whose `custom["pace"]` says how long each experiment takes."""


def make_project(
    database: Database,
    folder: Path,
    *,
    rows: int,
    function: str = "careful",
    code: str = "",
    seconds: float = 0.05,
    daemon: dict[str, Any] | None = None,
    **options: Any,
) -> Project:
    """A project that is filled, with a short lease and a function whose runs can be checked.

    Args:
        function: `careful`, or one that `code` defines; it may use the parts of checker.FUNCTION.
        seconds: what the function reads as `custom["seconds"]`.
    """
    custom = {"seconds": seconds, **options.pop("custom", {})}
    options |= {"function": function, "custom": custom, "daemon": {**SHORT, **(daemon or {})}}
    project = Project(database, folder, rows=rows, options={"resultfields": RESULTFIELDS, **options})
    with (folder / "experiments.py").open("a") as file:
        file.write(FUNCTION + code)
    project.fill()
    return project


def check_project(project: Project, **circumstances: Any) -> Records:
    """The checker's verdict on a project: its rows are 1 … n unless `experiments` says otherwise."""
    everything = {"experiments": range(1, project.rows + 1), **circumstances}
    return check(project.database, project.journal, Circumstances(**everything))


@dataclass
class Node:
    """A host with one daemon: an identity, a state folder, and on a server a way to the database that can be broken."""

    project: Project
    name: str
    process: subprocess.Popen[str]
    proxy: Proxy | None
    state: Path = field(repr=False)

    @property
    def way(self) -> Proxy:
        """The proxy; on SQLite there is none."""
        assert self.proxy is not None
        return self.proxy

    def events(self, *names: str) -> list[dict[str, Any]]:
        """What the daemon logged, of these events."""
        return [entry for entry in self.project.events(self.name) if entry["event"] in names]

    def wait_for(self, event: str, *, timeout: float = 120, count: int = 1) -> list[dict[str, Any]]:
        """The events of one name, when there are so many."""
        found: list[dict[str, Any]] = []

        def enough() -> bool:
            found[:] = self.events(event)
            return len(found) >= count

        wait_until(enough, timeout=timeout, interval=0.02, what=f"{event} of {self.name}")
        return found

    def wait_for_any(self, *names: str, timeout: float = 120) -> None:
        """Wait until it has logged one of these events."""
        wait_until(lambda: self.events(*names), timeout=timeout, interval=0.02, what=f"{names} of {self.name}")


def stop(*nodes: Node) -> None:
    """End daemons in the ordinary way."""
    for each in nodes:
        each.process.terminate()
    for each in nodes:
        assert each.process.wait(60) == 0


@contextmanager
def node(
    project: Project,
    name: str,
    *arguments: str,
    host: str | None = None,
    slots: int = 2,
    failpoints: str = "",
    ready: bool = True,
    proxy: Proxy | None = None,
    **environment: str,
) -> Iterator[Node]:
    """A running daemon on a host of its own, killed in the end if it still runs.

    Args:
        host: the host's identity, `name` unless given; daemons of one host share a state folder.
        failpoints: what PYEXPD_FAILPOINTS says there.
        ready: wait until a slot of it has started.
        proxy: the way of a daemon before it, within whose block this one runs: a spool is for one address.
    """
    identity = host or name
    home = project.folder / f"host-{identity}"
    state = home / "state"
    with ExitStack() as stack:
        given = list(arguments)
        if project.database.server:
            proxy = proxy or stack.enter_context(Proxy(project.database.server))
            given += ["--credentials", str(_credentials(project, home / name, proxy.port))]
        environment |= {"PYEXPD_HOST_ID": identity, "STATE_DIRECTORY": str(state)}
        if failpoints:
            environment[FAILPOINTS] = failpoints
        daemon = project.daemon("--slots", str(slots), "--name", name, *given, **environment)
        running = Node(project, name, stack.enter_context(daemon), proxy, state)
        if ready:
            running.wait_for("slot.started")
        yield running


def drained(running: Node) -> None:
    """The daemon ends as it should when it is told to."""
    running.process.terminate()
    assert running.process.wait(60) == 0


def for_another_queue(project: Project) -> tuple[str, str]:
    """The arguments of a daemon that rescues and has nothing to run."""
    path = project.folder / "idle.yml"
    content = project.config.read_text()
    assert "  Daemon:\n" in content
    path.write_text(content.replace("  Daemon:\n", "  Daemon:\n    queues: [another]\n"))
    return "--config", str(path)


def has_started(project: Project, count: int) -> bool:
    return sum(note[0] == "start" for note in project.notes()) >= count


def _credentials(project: Project, folder: Path, port: int) -> Path:
    """The project's credentials, by way of another port."""
    content = yaml.safe_load((project.folder / "database_credentials.yml").read_text())
    content["CREDENTIALS"]["Connection"]["Standard"]["port"] = port
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "credentials.yml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content))
    return path
