"""The fixtures that every test may use.

    database            one test's own database, on SQLite, MariaDB and MySQL 9 in turn   (databases.py)
    mariadb, mysql9     a server shared by the whole run                                  (servers.py)
    mariadb_database, mysql9_database     the name of a new database on it
    private_mariadb, private_mysql9       a running server of this test's own, to stop, kill, freeze and restart
    sshd                an SSH server of this test's own, and a home directory that may log in to it   (sshd.py)

What cannot run on this machine is listed with its reason at the end; PYEXPD_TEST_REQUIRE=mariadb,… makes it a failure.
"""

from __future__ import annotations

import compileall
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from pyexp_daemon import log
from tests import servers
from tests.databases import Database
from tests.helpers import cannot_run
from tests.servers import Flavour, PrivateServer, Server, Software
from tests.sshd import Sshd, make_sshd

# What a service manager, a batch system or the user's shell would tell a daemon.
INHERITED = ("PYEXPD_", "SLURM_", "OAR_")
INHERITED_ALSO = (
    "CREDENTIALS_DIRECTORY",
    "CUDA_VISIBLE_DEVICES",
    "INVOCATION_ID",
    "LOGS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
_numbers = itertools.count()

# How long an example takes is for the machine to say: by default more than a fifth of a second is a failure. The same
# examples are tried everywhere; `make test ARGS="--hypothesis-profile=search"` looks for others.
search = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("search", search)
hypothesis.settings.register_profile("any machine", search, derandomize=True)
hypothesis.settings.load_profile("any machine")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile what thousands of processes will load; the environment may forbid them to keep what they compile."""
    if not hasattr(session.config, "workerinput"):
        compileall.compile_dir(Path(__file__).parents[1] / "pyexp_daemon", quiet=1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the daemon does: aiomysql and aiosqlite know no other."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of the machine's set-up or of another test reaches a test; none leaves state in the home directory."""
    structlog.reset_defaults()
    log.forget()
    for name in os.environ:
        if (name.startswith(INHERITED) and not name.startswith("PYEXPD_TEST_")) or name in INHERITED_ALSO:
            monkeypatch.delenv(name)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path_factory.getbasetemp() / f"state{next(_numbers)}"))


@pytest.fixture(scope="session")
def mariadb_software() -> Software:
    return _software("mariadb")


@pytest.fixture(scope="session")
def mysql9_software() -> Software:
    return _software("mysql9")


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    """A MariaDB server shared by the whole run; make databases on it, do not stop it."""
    yield from _shared("mariadb")


@pytest.fixture(scope="session")
def mysql9() -> Iterator[Server]:
    """A MySQL 9 server shared by the whole run; make databases on it, do not stop it."""
    yield from _shared("mysql9")


@pytest.fixture
def private_mariadb(mariadb_software: Software) -> Iterator[PrivateServer]:
    """A running MariaDB of this test's own: `stop`, `kill`, `freeze`, `restart` it at will."""
    with mariadb_software.server() as server:
        yield server


@pytest.fixture
def private_mysql9(mysql9_software: Software) -> Iterator[PrivateServer]:
    """A running MySQL 9 of this test's own: `stop`, `kill`, `freeze`, `restart` it at will."""
    with mysql9_software.server() as server:
        yield server


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A running SSH server; this test and what it starts are at home where one may log in to it."""
    with make_sshd(tmp_path / "sshd") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def mariadb_database(mariadb: Server) -> Iterator[str]:
    """The name of a new database on `mariadb`, dropped afterwards."""
    yield from _new_database(mariadb)


@pytest.fixture
def mysql9_database(mysql9: Server) -> Iterator[str]:
    """The name of a new database on `mysql9`, dropped afterwards."""
    yield from _new_database(mysql9)


@pytest.fixture(params=["sqlite", "mariadb", "mysql9"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A test's own empty database, on each kind in turn."""
    flavour = request.param
    if flavour == "sqlite":
        return Database(provider="sqlite", flavour="sqlite", name=str(tmp_path / "results"))
    name = request.getfixturevalue(f"{flavour}_database")
    return Database(provider="mysql", flavour=flavour, name=name, server=request.getfixturevalue(flavour))


def _software(flavour: Flavour) -> Software:
    try:
        return servers.FLAVOURS[flavour][1]()
    except servers.NotToBeHad as error:
        cannot_run(flavour, str(error))


def _shared(flavour: Flavour) -> Iterator[Server]:
    try:
        with servers.running(flavour) as server:
            yield server
    except servers.NotToBeHad as error:
        cannot_run(flavour, str(error))


def _new_database(server: Server) -> Iterator[str]:
    name = server.create_database()
    yield name
    server.drop_database(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List every reason for which something was not run, with the number of tests it concerns."""
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("not run here")
        for reason, tests in sorted(reasons.items()):
            terminalreporter.line(f"{reason}   ({tests} {'test' if tests == 1 else 'tests'})")


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
