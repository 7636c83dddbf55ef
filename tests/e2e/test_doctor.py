"""`doctor` on real servers: what it finds is what a daemon or a fill then meets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import yaml

from tests.databases import Database
from tests.e2e.project import Project
from tests.servers import Server, Software

Make = Callable[..., Project]
servers = pytest.mark.parametrize("database", ["mariadb", "mysql9"], indirect=True)
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


def findings(project: Project, *, code: int) -> dict[str, dict[str, Any]]:
    done = project.pyexpd("doctor", "--json")
    assert done.returncode == code, done.stdout
    return {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}


def log_in(project: Project, user: str, *grants: str, on: str | None = None) -> None:
    """Use an account that may do this, and nothing else."""
    server = project.database.server
    assert server is not None
    server.query(f"DROP USER IF EXISTS '{user}'@'%'")
    server.query(f"CREATE USER '{user}'@'%' IDENTIFIED BY 'p'")
    for privilege in grants:
        server.query(f"GRANT {privilege} ON {on or f'`{project.database.name}`.*'} TO '{user}'@'%'")
    path = project.folder / "database_credentials.yml"
    content = yaml.safe_load(path.read_text())
    content["CREDENTIALS"]["Database"] = {"user": user, "password": "p"}
    path.write_text(yaml.safe_dump(content))


@servers
def test_what_doctor_calls_enough_to_fill_is_enough(make_project: Make) -> None:
    """With a logtable, whose foreign key MySQL allows to those alone who have REFERENCES."""
    project = make_project(rows=2, logtables={"epochs": {"loss": "DOUBLE"}})
    log_in(project, "filler", "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX")
    if project.database.flavour == "mysql9":
        assert "lacks REFERENCES" in findings(project, code=1)["grants to fill"]["text"]
        refused = project.pyexpd("fill")
        assert refused.returncode == 74
        assert "REFERENCES command denied" in refused.stderr
        log_in(project, "filler", "SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX, REFERENCES")
    assert findings(project, code=1)["grants to fill"]["level"] == "ok"
    project.fill()
    found = findings(project, code=0)
    assert {"clock", "grants", "isolation", "connections", "packets", "history", "encryption"} <= set(found)
    assert "not visible" in found["history"]["text"]


@servers
def test_doctor_names_who_holds_the_oldest_transaction(make_project: Make) -> None:
    project = make_project(rows=1)
    project.fill()
    with project.database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        cursor.execute("SELECT * FROM exp")
        found = findings(project, code=0)["history"]
        assert f"session {connection.thread_id()} of pyexpd@" in found["text"]
        connection.rollback()


@on_mariadb
def test_an_account_that_may_not_even_read_is_an_error(make_project: Make) -> None:
    project = make_project(rows=1)
    project.fill()
    log_in(project, "blind", "SELECT", on=f"`{project.database.name}`.exp")
    found = findings(project, code=2)
    assert found["grants"]["level"] == "error"
    assert "INSERT, UPDATE, DELETE on exp;" in found["grants"]["text"]


@contextmanager
def project_on(software: Software, make: Callable[[Database], Project], *options: str) -> Iterator[Project]:
    """A filled project on a server of its own with these options."""
    with replace(software, command=(*software.command, *options)).server() as server:
        name = server.create_database()
        project = make(Database(provider="mysql", flavour="mariadb", name=name, server=server))
        project.fill()
        yield project


@pytest.fixture
def make_on(tmp_path: Any) -> Callable[[Database], Project]:
    return lambda database: Project(database, tmp_path / "project", rows=1)


def test_doctor_warns_of_a_server_that_is_set_up_badly(
    mariadb_software: Software, make_on: Callable[[Database], Project]
) -> None:
    """Too few connections, small packets, commits that a crash forgets; and a binary log that refuses every write."""
    options = ("--max-connections=12", "--max-allowed-packet=4M", "--innodb-flush-log-at-trx-commit=2")
    with project_on(mariadb_software, make_on, *options, "--log-bin=binlog", "--binlog-format=ROW") as project:
        found = findings(project, code=1)
        assert {name for name, finding in found.items() if finding["level"] == "warning"} == {"packets", "durability"}
        assert found["isolation"]["text"] == "READ-COMMITTED, binary log ROW"
        server = project.database.server
        assert isinstance(server, Server)
        server.query("SET GLOBAL max_connections = 10")
        server.query("SET GLOBAL binlog_format = 'STATEMENT'")
        server.query("SET GLOBAL read_only = 1")
        found = findings(project, code=2)
        assert {name for name, finding in found.items() if finding["level"] == "error"} == {"isolation", "read_only"}
        assert "error 1665" in found["isolation"]["text"]
        server.query("SET GLOBAL read_only = 0")
        refused = project.pyexpd("set", "queue=other", "all", "--yes")
        assert refused.returncode == 74
        assert "1665" in refused.stderr
