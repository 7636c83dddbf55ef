"""docs/reliability.md names tests and failpoints that exist, every scenario, and every failpoint there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
PACKAGE = ROOT / "pyexp_daemon"


def named_tests() -> list[tuple[str, str]]:
    """(file below tests/, name) of every test in the page; a file stands for the names that follow it in its cell."""
    found = []
    for cell in re.split(r"[|\n]", PAGE):
        file = ""
        for code in re.findall(r"`([^`]+)`", cell):
            if code.endswith(".py"):
                file = code
            elif code.startswith("test_"):
                found.append((file, code))
    return found


def defined(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def failpoints() -> set[str]:
    """Every place in the code, `<unit>` for that of a unit of work."""
    places = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                words = [word.value if isinstance(word, ast.Constant) else "<unit>" for word in node.args]
                places.add(".".join(map(str, words)))
    return places


def test_every_test_it_names_exists() -> None:
    tests = named_tests()
    assert len(tests) > 60
    missing = [f"{file}::{name}" for file, name in tests if name not in defined(ROOT / "tests" / file)]
    assert not missing


def test_it_has_all_forty_scenarios_and_all_holes_of_the_protocol() -> None:
    rows = set(re.findall(r"^\| (H?\d+) \|", PAGE, re.MULTILINE))
    assert rows >= {str(number) for number in range(1, 41)}
    assert rows >= {f"H{number}" for number in range(1, 19)}


def test_it_lists_every_failpoint() -> None:
    (table,) = re.findall(r"place \| is passed.*?\n\n", PAGE, re.DOTALL)
    assert set(re.findall(r"`([\w.<>]+\.\w+)`", table)) == failpoints()
