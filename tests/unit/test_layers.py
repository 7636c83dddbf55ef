"""The direction of imports, read from the source: docs/architecture.md names what is absent."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyexp_daemon"

EVERYBODY = {"model", "exceptions", "log", "events", "failpoint", "experiment_status", "result_processor", "snapshot"}
MAY_IMPORT = {
    "space": set[str](),
    "config": {"space"},
    "store": {"config", "space"},
    "worker": set[str](),
    "daemon": {"worker", "store", "config"},
    "export": {"store", "config", "space"},
    "cli": {"daemon", "export", "store", "config", "space", "worker"},
}
NO_IO = {"os", "socket", "subprocess", "sqlite3", "aiomysql", "aiosqlite", "pymysql", "threading", "anyio", "pathlib"}
STANDARD_ONLY = (
    "exceptions.py",
    "experiment_status.py",
    "result_processor.py",
    "snapshot.py",
    "worker/child.py",
    "worker/channel.py",
)
DRIVERS = {"sqlite3", "aiomysql", "aiosqlite", "pymysql"}


def imports(path: Path) -> list[tuple[str, ...]]:
    """Every module that a file imports, at the top or inside a function, as its dotted parts."""
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = tuple((node.module or "").split("."))
            found += [(*module, alias.name) for alias in node.names]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        if name[0] == "pyexp_daemon" and len(name) > 1 and part in MAY_IMPORT and (PACKAGE / name[1]).is_dir():
            assert name[1] == part or name[1] in MAY_IMPORT[part], f"{part} imports {'.'.join(name)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_drivers_appear_only_in_the_store(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] not in ("store", "cli"):
        assert not {name[0] for name in imports(path)} & DRIVERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_imports_asyncio_by_name(path: Path) -> None:
    assert "asyncio" not in {name[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_everybody_logs_by_the_logger_that_loads_structlog_late(path: Path) -> None:
    if path.name not in ("log.py", "events.py"):
        assert "structlog" not in {name[0] for name in imports(path)}


@pytest.mark.parametrize("name", ["space", "model.py"])
def test_pure_parts_do_no_io(name: str) -> None:
    place = PACKAGE / name
    for path in [place] if place.is_file() else place.rglob("*.py"):
        assert not {module[0] for module in imports(path)} & NO_IO, path


@pytest.mark.parametrize("name", STANDARD_ONLY)
def test_what_a_child_imports_is_the_standard_library(name: str) -> None:
    import sys

    modules = ("result_processor", "snapshot", "experiment_status", "exceptions", "worker")
    ours = {("pyexp_daemon", part) for part in modules}
    for module in imports(PACKAGE / name):
        assert module[0] in sys.stdlib_module_names or module[:2] in ours, f"{name} imports {'.'.join(module)}"


@pytest.mark.parametrize("name", ["__init__.py", "worker/__init__.py"])
def test_package_roots_import_nothing(name: str) -> None:
    assert imports(PACKAGE / name) == []
