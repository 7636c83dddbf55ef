"""Fixtures of the tests of faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.e2e.project import Project
from tests.faults import fleet
from tests.servers import PrivateServer

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
"""A test for SQLite and MariaDB: MySQL 9 has the units of work and the driver of the latter."""

on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def make_project(database: Database, tmp_path: Path) -> Callable[..., Project]:
    """Makes a filled project on the test's database, see `fleet.make_project`."""

    def make(**options: Any) -> Project:
        return fleet.make_project(database, tmp_path / "project", **options)

    return make


@pytest.fixture
def private_database(private_mariadb: PrivateServer) -> Database:
    """An empty database on a MariaDB of this test's own, which it may stop, kill, freeze and restart."""
    return Database(provider="mysql", flavour="mariadb", name=private_mariadb.create_database(), server=private_mariadb)
