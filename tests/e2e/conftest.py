"""Fixtures for what a user does: the installed command in a folder of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.e2e.project import Project
from tests.e2e.study import Study


@pytest.fixture
def make_project(database: Database, tmp_path: Path) -> Callable[..., Project]:
    """Makes a project on the test's database."""

    def make(*, rows: int = 5, **options: Any) -> Project:
        return Project(database, tmp_path / "project", options=options, rows=rows)

    return make


@pytest.fixture
def make_study(database: Database, tmp_path: Path) -> Callable[..., Study]:
    """Makes a folder for scripts on the test's database."""

    def make(*, rows: int = 4, **options: Any) -> Study:
        return Study(database, tmp_path / "study", rows=rows, options=options)

    return make
