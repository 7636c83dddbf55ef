"""Accounts as an administrator gives them: with four privileges on our tables alone, or over TLS alone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.authority import Authority
from tests.e2e.project import PYEXPD
from tests.helpers import cannot_run
from tests.servers import PrivateServer, Server, Software

DEMO = Path(__file__).parents[2] / "docs" / "examples" / "demo"
TABLES = (
    "svm",
    *(f"svm__pyexpd_{name}" for name in ("attempts", "daemons", "commands", "snapshots", "snapshot_parts", "meta")),
)
FOUR = "SELECT, INSERT, UPDATE, DELETE"
EXPERIMENTS = 80


@dataclass
class Demo:
    """A copy of docs/examples/demo whose table is on a server, and the account it uses."""

    folder: Path
    server: Server
    database: str

    def __post_init__(self) -> None:
        shutil.copytree(DEMO, self.folder, ignore=shutil.ignore_patterns("*.db*", ".pyexpd", "__pycache__"))
        content = yaml.safe_load((self.folder / "pyexpd.yml").read_text())
        content["PY_EXPERIMENTER"]["Database"] |= {"provider": "mysql", "database": self.database}
        content["PY_EXPERIMENTER"]["n_jobs"] = 2
        (self.folder / "pyexpd.yml").write_text(yaml.safe_dump(content))

    def log_in(self, user: str, password: str, *, ssl: dict[str, Any] | None = None) -> None:
        """Use this account from now on."""
        standard: dict[str, Any] = {"server": self.server.host, "port": self.server.port}
        if ssl is not None:
            standard["ssl"] = ssl
        account = {"user": user, "password": password}
        content = {"CREDENTIALS": {"Database": account, "Connection": {"Standard": standard}}}
        path = self.folder / "database_credentials.yml"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(content))

    def log_in_as_operator(self) -> None:
        self.log_in(self.server.user, self.server.password)

    def say(self, *arguments: str, code: int = 0) -> str:
        done = self.run(*arguments)
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYEXPD, *arguments],
            cwd=self.folder,
            env=dict(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=250,
        )

    def findings(self, *, code: int = 0) -> dict[str, dict[str, Any]]:
        """What `doctor` says, by check."""
        findings = json.loads(self.say("doctor", "--json", code=code))["findings"]
        return {finding["check"]: finding for finding in findings}

    def do_everything(self) -> None:
        """What run.sh does after the fill, and a table of what came out."""
        self.say("run", "--until-empty")
        assert json.loads(self.say("status", "--json"))["experiments"] == {"done": EXPERIMENTS}
        rows = json.loads(self.say("export", "--format", "json"))
        assert len(rows) == EXPERIMENTS
        assert all(0.3 < row["test_accuracy"] <= 1 for row in rows)


def make_account(server: Server, user: str, *, require: str = "") -> None:
    """An account without any privilege; dropped and made anew when it is there."""
    server.query(f"DROP USER IF EXISTS '{user}'@'%'")
    server.query(f"CREATE USER '{user}'@'%' IDENTIFIED BY 'p' {require}")


def grant(server: Server, user: str, privileges: str, database: str, tables: tuple[str, ...] = TABLES) -> None:
    for table in tables:
        server.query(f"GRANT {privileges} ON `{database}`.`{table}` TO '{user}'@'%'")


@pytest.fixture(autouse=True)
def _demo_can_run() -> None:
    if importlib.util.find_spec("sklearn") is None:
        cannot_run("demo", "scikit-learn is not installed (pip install -e '.[demo]')")


@pytest.fixture
def demo(mariadb: Server, mariadb_database: str, tmp_path: Path) -> Demo:
    demo = Demo(tmp_path / "demo", mariadb, mariadb_database)
    demo.log_in_as_operator()
    return demo


@pytest.mark.slow
def test_a_daemon_needs_four_privileges_on_its_tables(demo: Demo) -> None:
    """The operator makes the tables; what daemons do, and those who look, needs no more than the four on them."""
    demo.say("fill")
    make_account(demo.server, "worker")
    grant(demo.server, "worker", FOUR, demo.database)
    demo.log_in("worker", "p")
    findings = demo.findings()
    assert "enough for a daemon" in findings["grants"]["text"]
    assert "lacks ALTER, CREATE, INDEX" in findings["grants to fill"]["text"]
    demo.do_everything()
    demo.say("reset", "3", "--yes")
    demo.say("run", "--until-empty")
    assert "not visible without the privilege PROCESS" in findings["history"]["text"]


def test_doctor_names_the_privilege_that_is_missing(demo: Demo) -> None:
    demo.say("fill")
    make_account(demo.server, "lame")
    grant(demo.server, "lame", "SELECT, INSERT, UPDATE", demo.database)
    demo.log_in("lame", "p")
    missing = demo.findings(code=2)["grants"]
    assert (missing["level"], missing["text"]) == ("error", "the account lacks DELETE on the tables of svm")
    grant(demo.server, "lame", FOUR, demo.database, tables=TABLES[1:])
    assert demo.findings(code=2)["grants"]["text"] == "the account lacks DELETE on svm"


def test_doctor_warns_who_may_not_make_the_tables(demo: Demo) -> None:
    """Before the first fill, with an account that a daemon would do with; a role counts as what it allows."""
    server = demo.server
    make_account(server, "early")
    server.query("CREATE OR REPLACE ROLE fillers")
    server.query(f"GRANT {FOUR} ON `{demo.database}`.* TO fillers")
    server.query("GRANT fillers TO 'early'@'%'")
    server.query("SET DEFAULT ROLE fillers FOR 'early'@'%'")
    demo.log_in("early", "p")
    findings = demo.findings(code=1)
    assert findings["grants"]["level"] == "ok"
    assert findings["grants to fill"]["level"] == "warning"
    server.query(f"GRANT CREATE, ALTER, INDEX ON `{demo.database}`.* TO fillers")
    assert demo.findings(code=1)["grants to fill"]["level"] == "ok"
    demo.say("fill")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", "pyexpd tests")


@pytest.fixture
def tls_server(mariadb_software: Software, authority: Authority) -> Iterator[PrivateServer]:
    """A MariaDB with a certificate of the private CA."""
    certificate, key = authority.issue("server")
    options = (f"--ssl-ca={authority.ca}", f"--ssl-cert={certificate}", f"--ssl-key={key}")
    with replace(mariadb_software, command=(*mariadb_software.command, *options)).server() as server:
        yield server


@pytest.fixture
def tls_demo(tls_server: PrivateServer, tmp_path: Path) -> Demo:
    """Filled, with an account that the server lets in over TLS alone."""
    demo = Demo(tmp_path / "demo", tls_server, tls_server.create_database())
    demo.log_in_as_operator()
    demo.say("fill")
    make_account(tls_server, "careful", require="REQUIRE SSL")
    grant(tls_server, "careful", FOUR, demo.database)
    return demo


@pytest.mark.slow
def test_the_whole_demo_over_tls(tls_demo: Demo, authority: Authority) -> None:
    """Both drivers encrypt, the daemon's and the heartbeat's: the server lets nobody in who does not."""
    tls_demo.log_in("careful", "p", ssl={"ca": str(authority.ca)})
    findings = tls_demo.findings()
    assert findings["encryption"]["level"] == "ok"
    assert "TLS" in findings["encryption"]["text"]
    tls_demo.do_everything()


def test_an_account_that_demands_tls_is_refused_without(tls_demo: Demo) -> None:
    tls_demo.log_in("careful", "p")
    done = tls_demo.run("status")
    assert done.returncode == 74
    message, hint = done.stderr.splitlines()
    assert message.startswith("pyexpd: mysql://127.0.0.1:")
    assert "Access denied" in message
    assert "REQUIRE SSL needs Connection.Standard.ssl" in hint


def test_a_server_of_another_authority_is_refused(tls_demo: Demo, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger", "somebody else")
    tls_demo.log_in("careful", "p", ssl={"ca": str(stranger.ca)})
    for command in ("status", "run"):
        done = tls_demo.run(command)
        assert done.returncode == 74
        message, hint = done.stderr.splitlines()
        assert "is not reachable: the server's certificate is not trusted: " in message
        assert "Connection.Standard.ssl.ca" in hint
    tls_demo.log_in("careful", "p", ssl={"ca": str(stranger.ca), "verify": False})
    assert "is not checked" in tls_demo.findings(code=1)["encryption"]["text"]


def test_files_that_cannot_be_used_are_named(tls_demo: Demo, tmp_path: Path) -> None:
    """Relative paths belong to the project."""
    tls_demo.log_in("careful", "p", ssl={"ca": "missing.pem"})
    done = tls_demo.run("status")
    assert done.returncode == 74
    assert f"{tls_demo.folder / 'missing.pem'}: No such file or directory" in done.stderr
    (tls_demo.folder / "missing.pem").write_text("no certificate")
    assert "missing.pem" in tls_demo.run("status").stderr


def test_nothing_is_sent_in_clear_to_a_server_without_tls(mariadb: Server, demo: Demo, authority: Authority) -> None:
    """Both drivers would go on without a word when the server does not offer TLS."""
    if mariadb.query("SHOW VARIABLES LIKE 'have_ssl'")[0][1] == "YES":
        pytest.skip("this server offers TLS by itself")
    demo.say("fill")
    demo.log_in(mariadb.user, mariadb.password, ssl={"ca": str(authority.ca)})
    for command in ("status", "run"):
        done = demo.run(command)
        assert done.returncode == 74
        assert "offers no encryption (TLS)" in done.stderr
