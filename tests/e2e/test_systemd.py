"""Under a service manager: the units, booted with a real systemd, and what the daemon tells it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import nspawn
from tests.databases import Database
from tests.e2e.project import HUP, PYEXPD, TERM, Project, state_of
from tests.helpers import cannot_run, wait_until

SYSTEMD = nspawn.CHECKOUT / "systemd"
UNITS = {"system": SYSTEMD / "pyexpd@.service", "user": SYSTEMD / "user" / "pyexpd@.service"}
WORST_SCORE = {"system": 2.2, "user": 9.1}
"""The exposure that `systemd-analyze security` of systemd 252 counts; docs/howto/running.md says why it is not less."""

sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def analyze(kind: str, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """systemd-analyze about a unit whose command is the installed one."""
    if shutil.which("systemd-analyze") is None:
        cannot_run("systemd", "systemd-analyze is missing (package systemd)")
    unit = folder / UNITS[kind].name
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={PYEXPD}", UNITS[kind].read_text()))
    return subprocess.run(
        ["systemd-analyze", f"--{kind}", *command, str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("kind", UNITS)
def test_systemd_finds_nothing_to_say_against_the_units(kind: str, tmp_path: Path) -> None:
    """It exits 0 whatever it finds: what it prints counts."""
    verified = analyze(kind, "verify", folder=tmp_path)
    assert (verified.stdout, verified.stderr) == ("", "")
    (tmp_path / "broken").mkdir()
    unit = tmp_path / "broken" / "pyexpd@.service"
    unit.write_text((tmp_path / unit.name).read_text().replace("KillMode=mixed", "KillMode=mixd"))
    broken = subprocess.run(
        ["systemd-analyze", f"--{kind}", "verify", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "mixd" in broken.stderr


@pytest.mark.parametrize("kind", UNITS)
def test_the_units_are_as_closed_as_documented(kind: str, tmp_path: Path) -> None:
    said = analyze(kind, "security", "--offline=true", "--no-pager", folder=tmp_path).stdout
    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert score, said
    print(f"systemd-analyze security, {kind} unit: {score[1]}")
    version = analyze(kind, "--version", folder=tmp_path).stdout
    slack = 0 if version.startswith("systemd 252 ") else 0.6  # each version looks at other settings
    assert float(score[1]) <= WORST_SCORE[kind] + slack, said
    howto = (nspawn.CHECKOUT / "docs" / "howto" / "running.md").read_text()
    assert f"**{WORST_SCORE[kind]}**" in howto


FUNCTIONS = '''
import os, subprocess, sys, time


def note(custom, *words):
    descriptor = os.open(custom["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (" ".join(map(str, words)) + "\\n").encode())
    os.close(descriptor)


def run(keyfields, rp, custom):
    """Long in the first attempt; then with a process of a session of its own, which no signal to us reaches."""
    note(custom, "start", rp.experiment_id, rp.attempt, time.monotonic())
    note(custom, "pid", os.getpid())
    if rp.attempt == 1:
        stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        note(custom, "pid", stray.pid)
        time.sleep(custom["seconds"])
        stray.kill()
    note(custom, "end", rp.experiment_id, rp.attempt, time.monotonic())
    return {"y": keyfields["x"] * 2.0}
'''

QUERY = """
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=10)
print(json.dumps(connection.execute(sys.argv[2]).fetchall()))
"""


@dataclass(frozen=True)
class Service:
    """One instance of the unit in the container, with a configuration, a table and folders of its own."""

    container: nspawn.Container
    name: str

    @property
    def unit(self) -> str:
        return f"pyexpd@{self.name}.service"

    @property
    def home(self) -> str:
        return f"/var/lib/pyexpd/{self.name}"

    @property
    def config(self) -> str:
        return f"/etc/pyexpd/{self.name}.yml"

    def install(self, *, rows: int, seconds: float, **daemon: str) -> None:
        """What docs/howto/running.md tells an administrator to do, but for the database."""
        folder = self.container.path("/etc/pyexpd")
        folder.mkdir(exist_ok=True)
        (folder / "experiments.py").write_text(FUNCTIONS)
        database = Database(provider="sqlite", flavour="sqlite", name=f"{self.home}/results")
        written = database.write_config(
            folder,
            keyfields={"x": {"type": "INT", "values": list(range(rows))}},
            n_jobs=2,
            function="experiments:run",
            custom={"journal": f"{self.home}/journal", "seconds": seconds},
            daemon={"poll": {"shortest": "50ms", "longest": "200ms"}, **daemon},
            limits={"backoff": {"first": "50ms", "longest": "100ms"}},
        )
        written.rename(folder / f"{self.name}.yml")
        self.container.run("install", "-d", "-o", nspawn.USER, "-g", nspawn.USER, self.home)

    def fill(self) -> None:
        assert "already there" in self.container.run_as_user("pyexpd", "-c", self.config, "fill")

    def override(self, **settings: str) -> None:
        """A drop-in for this instance."""
        folder = self.container.path(f"/etc/systemd/system/{self.unit}.d")
        folder.mkdir()
        (folder / "test.conf").write_text("".join(["[Service]\n", *(f"{k}={v}\n" for k, v in settings.items())]))
        self.container.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.container.run("systemctl", verb, *options, self.unit, check=check)

    def start_working(self) -> int:
        """Start it, wait until two experiments run, and give its main process."""
        started = self.systemctl("start", check=False)
        assert started.returncode == 0, self.container.journal(self.unit)
        wait_until(lambda: len(self.notes("start")) == 2, timeout=120, interval=0.02)
        return self.main_pid

    def show(self, name: str) -> str:
        return self.container.show(self.unit, name)[name]

    @property
    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    def notes(self, word: str) -> list[list[str]]:
        journal = self.container.path(f"{self.home}/journal")
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(f"{word} ")]

    def query(self, sql: str) -> list[list[Any]]:
        said = self.container.run_as_user(sys.executable, "-c", QUERY, f"{self.home}/results.db", sql)
        answer: list[list[Any]] = json.loads(said)
        return answer

    def statuses(self) -> dict[str, int]:
        counts = self.query("SELECT status, COUNT(*) FROM exp GROUP BY status")
        return {str(status): int(count) for status, count in counts}

    def outcomes(self) -> list[str]:
        attempts = self.query("SELECT outcome FROM exp__pyexpd_attempts ORDER BY experiment_id, attempt")
        return [outcome for (outcome,) in attempts]

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the daemon said on stdout, as the journal has it."""
        lines = [line for line in self.container.journal(self.unit).splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    def wait_restarted(self, *, timeout: float) -> None:
        """Until systemd has started it again, and it is in service."""
        wait_until(
            lambda: (
                self.container.show(self.unit, "NRestarts", "ActiveState")
                == {"NRestarts": "1", "ActiveState": "active"}
            ),
            timeout=timeout,
            interval=0.05,
            what=f"a restart; {self.container.show(self.unit, 'NRestarts', 'ActiveState', 'Result')}",
        )


@pytest.fixture(scope="module")
def container() -> Iterator[nspawn.Container]:
    """One systemd for all tests of this module, with our unit installed."""
    try:
        with nspawn.booted() as booted:
            shutil.copy(UNITS["system"], booted.path("/etc/systemd/system"))
            booted.path("/usr/local/bin/pyexpd").unlink(missing_ok=True)
            booted.run("ln", "-s", PYEXPD, "/usr/local/bin/pyexpd")
            _let_in(booted)
            booted.run("systemctl", "daemon-reload")
            yield booted
    except nspawn.CannotBoot as error:
        cannot_run("nspawn", str(error))


def _let_in(container: nspawn.Container) -> None:
    """PrivateTmp hides a checkout below /tmp, which is no place for an installation."""
    needed = [str(folder) for folder in nspawn.what_the_interpreter_needs()]
    hidden = [folder for folder in needed if folder.startswith(("/tmp/", "/var/tmp/"))]
    if hidden:
        folder = container.path("/etc/systemd/system/pyexpd@.service.d")
        folder.mkdir()
        (folder / "checkout.conf").write_text(f"[Service]\nBindReadOnlyPaths={' '.join(hidden)}\n")


MOST_S = 60.0
"""Five seconds where there is nothing else to do; a loaded machine starts a daemon and its children more slowly."""

_numbers = itertools.count(1)


@pytest.fixture
def service(container: nspawn.Container) -> Iterator[Service]:
    service = Service(container, f"demo{next(_numbers)}")
    yield service
    service.systemctl("kill", "--signal=KILL", check=False)
    service.systemctl("stop", check=False)


def test_the_unit_starts_reloads_and_says_what_it_does(service: Service) -> None:
    service.install(rows=2, seconds=600)
    service.fill()
    pid = service.start_working()
    assert service.show("ActiveState") == "active"
    wait_until(lambda: service.show("StatusText") == "running 2 of 2", timeout=120, interval=0.1)
    assert service.container.run("stat", "-c", "%U", f"/proc/{pid}").stdout.strip() == nspawn.USER
    log = service.container.path(f"/var/log/pyexpd/{service.name}/exp")
    assert [path.name for path in log.glob("daemon-*.jsonl")] == [f"daemon-{service.name}.jsonl"]

    config = service.container.path(service.config)
    config.write_text(config.read_text().replace("first: 50ms", "first: 60ms"))
    service.systemctl("reload")
    wait_until(lambda: service.events("config.reloaded"), timeout=120, interval=0.05)
    assert service.events("config.reloaded")[0]["changed"] == ["Limits.backoff.first"]
    wait_until(lambda: service.show("ActiveState") == "active", timeout=120, interval=0.05)
    assert service.main_pid == pid
    assert service.show("NRestarts") == "0"
    assert len(service.notes("start")) == 2


def test_stopping_the_unit_lets_experiments_finish_even_beyond_its_timeout(service: Service) -> None:
    """Nothing is charged, nothing new begins. The daemon asks for the time that it needs."""
    service.install(rows=5, seconds=14)
    service.fill()
    service.override(TimeoutStopSec="5s")
    service.start_working()
    began = time.monotonic()
    service.systemctl("stop")
    print(f"stopped after {time.monotonic() - began:.1f} s, with TimeoutStopSec=5s")
    state = service.container.show(service.unit, "ActiveState", "Result", "ExecMainStatus", "NRestarts")
    assert state == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0", "NRestarts": "0"}
    assert service.statuses() == {"done": 2, "created": 3}
    assert service.outcomes() == ["done", "done"]
    assert len(service.notes("start")) == 2
    assert not [pid for (pid,) in service.notes("pid") if service.container.is_alive(int(pid))]


def test_a_killed_daemon_is_back_with_its_experiments_within_five_seconds(service: Service) -> None:
    service.install(rows=2, seconds=600)
    service.fill()
    pid = service.start_working()
    wait_until(lambda: len(service.notes("pid")) == 4, timeout=120, interval=0.02)
    old = [pid, *(int(note[0]) for note in service.notes("pid"))]
    assert all(service.container.is_alive(number) for number in old)

    killed_at = time.monotonic()
    service.systemctl("kill", "--kill-whom=main", "--signal=KILL")
    wait_until(lambda: len(service.notes("start")) == 4, timeout=120, interval=0.01)
    again = {experiment: float(moment) for experiment, attempt, moment in service.notes("start") if attempt == "2"}
    assert not [number for number in old if service.container.is_alive(number)]
    took_s = max(again.values()) - killed_at
    print(f"both experiments run again {took_s:.2f} s after kill -9")
    assert set(again) == {"1", "2"}
    assert took_s < MOST_S
    service.wait_restarted(timeout=120)
    wait_until(lambda: service.statuses() == {"done": 2}, timeout=120, interval=0.1)
    assert service.outcomes() == ["lost", "done", "lost", "done"]


def test_the_watchdog_replaces_a_daemon_that_stands_still(service: Service) -> None:
    service.install(rows=2, seconds=600)
    service.fill()
    service.override(WatchdogSec="12s")
    pid = service.start_working()
    time.sleep(14)  # longer than the watchdog: a healthy daemon is left alone
    assert service.main_pid == pid

    service.systemctl("kill", "--kill-whom=main", "--signal=STOP")
    service.wait_restarted(timeout=120)
    assert service.main_pid != pid
    assert not service.container.is_alive(pid)
    wait_until(lambda: "Watchdog timeout" in service.container.journal(service.unit), interval=0.1)
    wait_until(lambda: service.statuses() == {"done": 2}, timeout=120, interval=0.1)


def test_a_killed_child_does_not_stop_the_unit(service: Service) -> None:
    """As the kernel kills it when memory runs out; it is taken before the daemon."""
    service.install(rows=2, seconds=600)
    service.fill()
    pid = service.start_working()
    child = int(service.notes("pid")[0][0])
    scores = [int(service.container.path(f"/proc/{p}/oom_score_adj").read_text()) for p in (pid, child)]
    assert scores[1] == min(scores[0] + 500, 1000)
    assert service.show("OOMPolicy") == "continue"

    service.container.run("kill", "-KILL", str(child))
    wait_until(lambda: service.outcomes() == ["crash", "done"], timeout=120, interval=0.1)
    state = service.container.show(service.unit, "ActiveState", "NRestarts", "MainPID")
    assert state == {"ActiveState": "active", "NRestarts": "0", "MainPID": str(pid)}


def test_a_wrong_configuration_is_not_started_again_and_a_missing_table_is_until_it_is_there(service: Service) -> None:
    service.install(rows=2, seconds=0)
    config = service.container.path(service.config)
    right = config.read_text()
    config.write_text(right.replace("n_jobs: 2", "n_jobs: many"))
    assert service.systemctl("start", check=False).returncode != 0
    state = service.container.show(service.unit, "ActiveState", "ExecMainStatus", "NRestarts")
    assert state == {"ActiveState": "failed", "ExecMainStatus": "64", "NRestarts": "0"}
    assert "n_jobs" in service.container.journal(service.unit)

    config.write_text(right)
    service.systemctl("start", "--no-block")
    wait_until(lambda: int(service.show("NRestarts")) >= 2, timeout=120, interval=0.1)
    assert "status=74" in service.container.journal(service.unit)
    service.fill()
    wait_until(lambda: service.statuses() == {"done": 2}, timeout=120, interval=0.1)


def test_the_unit_of_a_person_starts_comes_back_and_drains(container: nspawn.Container) -> None:
    """With the project in the home directory, as docs/howto/running.md says."""
    home = f"/var/lib/{nspawn.USER}"
    folder = container.path(f"{home}/project")
    database = Database(provider="sqlite", flavour="sqlite", name="results")
    folder.mkdir()
    (folder / "experiments.py").write_text(FUNCTIONS)
    database.write_config(
        folder,
        keyfields={"x": {"type": "INT", "values": [1]}},
        function="experiments:run",
        custom={"journal": f"{home}/project/journal", "seconds": 600},
        limits={"backoff": {"first": "50ms", "longest": "100ms"}},
    )
    for place in (".config/systemd/user", ".config/pyexpd", ".local/bin"):
        container.path(f"{home}/{place}").mkdir(parents=True)
    shutil.copy(UNITS["user"], container.path(f"{home}/.config/systemd/user"))
    container.path(f"{home}/.config/pyexpd/mine.env").write_text(f"PYEXPD_CONFIG={home}/project/pyexpd.yml\n")
    container.run("ln", "-s", PYEXPD, f"{home}/.local/bin/pyexpd")
    container.run("chown", "-R", f"{nspawn.USER}:{nspawn.USER}", home)
    container.run_as_user("pyexpd", "-c", f"{home}/project/pyexpd.yml", "fill")

    def count(word: str) -> int:
        journal = folder / "journal"
        return journal.read_text().count(f"{word} ") if journal.exists() else 0

    container.start_user_manager()
    container.systemctl_user("start", "pyexpd@mine")
    wait_until(lambda: count("start") == 1, timeout=120, interval=0.02)
    wait_until(lambda: "running 1 of" in container.systemctl_user("show", "-PStatusText", "pyexpd@mine"), timeout=120)
    killed_at = time.monotonic()
    container.systemctl_user("kill", "--kill-whom=main", "--signal=KILL", "pyexpd@mine")
    wait_until(lambda: count("start") == 2, timeout=120, interval=0.01)
    took_s = time.monotonic() - killed_at
    print(f"user unit: running again {took_s:.2f} s after kill -9")
    assert took_s < MOST_S
    wait_until(lambda: count("end") == 1, timeout=120, interval=0.02)
    container.systemctl_user("stop", "pyexpd@mine")
    state = container.systemctl_user("show", "--property=ActiveState,Result", "pyexpd@mine")
    assert set(state.split()) == {"ActiveState=inactive", "Result=success"}
    assert list(container.path(f"{home}/project/.pyexpd/exp").glob("daemon-mine.jsonl"))


class Manager:
    """The socket on which a service manager listens."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(address.replace("@", "\0", 1))
        self.heard: list[dict[str, str]] = []

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def listen(self) -> list[dict[str, str]]:
        """Every datagram so far, as variables."""
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in data.decode().splitlines()))

    def wait_for(self, *, after: int = 0, timeout: float = 120, **wanted: str) -> dict[str, str]:
        """The first datagram, from number `after` on, in which these variables match these patterns."""

        def find() -> dict[str, str] | None:
            matching = (
                message
                for message in self.listen()[after:]
                if all(re.fullmatch(pattern, message.get(name, "")) for name, pattern in wanted.items())
            )
            return next(matching, None)

        found = wait_until(find, timeout=timeout, interval=0.02, what=f"{wanted} in {self.heard}")
        assert found is not None
        return found


@sqlite
@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_service_manager_hears_of_everything(make_project: Callable[..., Project], kind: str) -> None:
    project = make_project(rows=3, function="gated")
    project.fill()
    with tempfile.TemporaryDirectory(prefix="pyexpd-") as folder:
        address = f"{folder}/notify" if kind == "path" else f"@{folder}"
        with (
            Manager(address) as manager,
            project.daemon("--slots", "2", NOTIFY_SOCKET=address, WATCHDOG_USEC="3000000") as daemon,
        ):
            manager.wait_for(READY="1", STATUS="registered.*")
            manager.wait_for(STATUS="running 2 of 2")
            alive = len(manager.heard)
            manager.wait_for(WATCHDOG="1", after=alive, timeout=3)
            child = project.children_of(daemon)[0]
            theirs = Path(f"/proc/{child}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in theirs
            assert b"WATCHDOG" not in theirs

            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            daemon.send_signal(HUP)
            since = int(manager.wait_for(RELOADING="1", MONOTONIC_USEC=r"\d+")["MONOTONIC_USEC"])
            assert before <= since <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            reloading = len(manager.heard)
            manager.wait_for(READY="1", after=reloading - 1)

            daemon.send_signal(TERM)
            manager.wait_for(STOPPING="1", EXTEND_TIMEOUT_USEC=r"\d+")
            stopping = len(manager.heard)
            manager.wait_for(EXTEND_TIMEOUT_USEC=r"\d+", WATCHDOG="1", after=stopping)
            manager.wait_for(STATUS="draining: running .*", after=stopping - 1)
            project.open_gate()
            assert project.end(daemon) == 0
    assert project.statuses() == {"done": 2, "created": 1}


@sqlite
def test_a_drain_without_a_deadline_is_no_stop_until_experiments_are_done(
    make_project: Callable[..., Project],
) -> None:
    """Else `systemctl stop` would take the unit for stopping already, and send no TERM."""
    project = make_project(rows=1, function="gated")
    project.fill()
    with tempfile.TemporaryDirectory(prefix="pyexpd-") as folder:
        address = f"{folder}/notify"
        with (
            Manager(address) as manager,
            project.daemon("--slots", "1", NOTIFY_SOCKET=address, WATCHDOG_USEC="600000") as daemon,
        ):
            manager.wait_for(STATUS="running 1 of 1")
            daemon.send_signal(signal.SIGUSR1)
            manager.wait_for(STATUS="draining: running 1 of 1", EXTEND_TIMEOUT_USEC=r"\d+")
            assert not [message for message in manager.listen() if "STOPPING" in message]
            project.open_gate()
            assert project.end(daemon) == 0
            manager.wait_for(STOPPING="1")
    assert project.statuses() == {"done": 1}


@sqlite
def test_a_loop_that_stands_still_says_nothing(make_project: Callable[..., Project]) -> None:
    """And a manager that does not listen is no reason to stop working."""
    project = make_project(rows=1)
    project.fill()
    with tempfile.TemporaryDirectory(prefix="pyexpd-") as folder:
        address = f"{folder}/notify"
        with project.daemon("--slots", "1", NOTIFY_SOCKET=address, WATCHDOG_USEC="300000") as daemon:
            project.wait_for(done=1)
            with Manager(address) as manager:
                manager.wait_for(READY="1")
                manager.wait_for(WATCHDOG="1")
                daemon.send_signal(signal.SIGSTOP)
                wait_until(lambda: state_of(daemon.pid) == "T")
                heard = len(manager.listen())
                time.sleep(1)
                assert len(manager.listen()) == heard
                daemon.send_signal(signal.SIGCONT)
                manager.wait_for(WATCHDOG="1", after=heard)
            daemon.send_signal(TERM)
            assert project.end(daemon) == 0
