"""A daemon in tmux, started by systemd/pyexpd-tmux."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.project import KILL, PYEXPD, TERM, Project, is_alive
from tests.helpers import cannot_run, wait_until

SCRIPT = str(Path(__file__).parents[2] / "systemd" / "pyexpd-tmux")

sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


class Tmux:
    """pyexpd-tmux, with tmux's sockets in a folder of the test's own."""

    def __init__(self, project: Project, folder: str) -> None:
        self.project = project
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "TMUX"},
            "TMUX_TMPDIR": folder,
            "PYEXPD": PYEXPD,
            "TERM": "xterm",
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._run(SCRIPT, *arguments, **environment)

    def tmux(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("tmux", "-L", "pyexpd-one", *arguments)

    def screen(self) -> str:
        return " ".join(self.tmux("capture-pane", "-p", "-J").stdout.split())

    def _run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.project.folder,
            env={**self._environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def make_tmux() -> Iterator[Callable[[Project], Tmux]]:
    """Makes the tool for a project; the tmux server of the daemon `one` ends with the test."""
    if shutil.which("tmux") is None:
        cannot_run("tmux", "tmux is missing (package tmux)")
    made: list[Tmux] = []

    def make(project: Project) -> Tmux:
        made.append(Tmux(project, folder))
        return made[-1]

    with tempfile.TemporaryDirectory(prefix="pyexpd-") as folder:
        yield make
        for tmux in made:
            tmux.tmux("kill-server")


@sqlite
def test_a_daemon_in_tmux_works_on_when_its_session_is_closed(
    make_project: Callable[..., Project], make_tmux: Callable[[Project], Tmux]
) -> None:
    project = make_project(rows=4, function="gated")
    tmux = make_tmux(project)
    project.fill()
    started = tmux.start("one", "pyexpd.yml", "--slots", "1", MARK="of this shell")
    assert (started.returncode, started.stdout) == (0, "")
    assert started.stderr == "pyexpd-tmux: to see it: tmux -L pyexpd-one attach\n"
    wait_until(lambda: project.statuses().get("running"), timeout=120, interval=0.05)
    wait_until(lambda: "running 1 of 1" in tmux.screen(), timeout=120, interval=0.05)
    pid = project.events("one")[0]["pid"]
    assert b"MARK=of this shell" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    try:
        again = tmux.start("one", "pyexpd.yml")
        assert "pyexpd-one is there already" in again.stderr

        tmux.tmux("kill-session", "-t", "=pyexpd-one")
        project.open_gate()
        project.wait_for(done=4)
        assert is_alive(pid)
        assert [event["pid"] for event in project.events("one") if event["event"] == "daemon.started"] == [pid]
        os.kill(pid, TERM)
        wait_until(lambda: not is_alive(pid), timeout=120, interval=0.05)
    finally:
        if is_alive(pid):
            os.kill(pid, KILL)
    assert project.events("one")[-1]["event"] == "daemon.stopped"
    assert [outcome for _, _, outcome in project.attempts()] == ["done"] * 4


@sqlite
def test_tmux_does_not_start_a_daemon_again_that_cannot_run(
    make_project: Callable[..., Project], make_tmux: Callable[[Project], Tmux]
) -> None:
    project = make_project(rows=1)
    tmux = make_tmux(project)
    project.config.write_text(project.config.read_text().replace("PY_EXPERIMENTER", "PY_EXPERIMENTOR"))
    assert tmux.start("one", "pyexpd.yml").returncode == 0
    wait_until(lambda: "Press Enter" in tmux.screen(), timeout=120, interval=0.05)
    assert "PY_EXPERIMENTER" in tmux.screen()
    assert "exit code 64, which does not go away by itself" in tmux.screen()
    tmux.tmux("send-keys", "Enter")
    wait_until(lambda: tmux.tmux("has-session").returncode, timeout=120, interval=0.05)


@sqlite
@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("one",), {}, "Usage: pyexpd-tmux NAME CONFIG"),
        (("a b", "pyexpd.yml"), {}, "'a b' is no name for a daemon"),
        (("one", "other.yml"), {}, "other.yml: no such file"),
        (("one", "pyexpd.yml"), {"PYEXPD": "/nowhere/pyexpd"}, "/nowhere/pyexpd: no such command"),
        (("one", "pyexpd.yml"), {"PATH": "{bare}"}, "tmux is not installed"),
    ],
)
def test_pyexpd_tmux_refuses_in_words(
    make_project: Callable[..., Project],
    make_tmux: Callable[[Project], Tmux],
    tmp_path: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    message: str,
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("dirname", "basename", "sh", "cat"):
        (bare / tool).symlink_to(str(shutil.which(tool)))
    environment = {name: value.format(bare=bare) for name, value in environment.items()}
    refused = make_tmux(make_project()).start(*arguments, **environment)
    assert refused.returncode == 64
    assert message in refused.stderr
    assert refused.stdout == ""


def test_pyexpd_tmux_helps() -> None:
    helped = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, timeout=120)
    assert helped.returncode == 0
    assert "attaches to it" in helped.stdout
