"""Small tools that every kind of test uses."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import anyio
import pytest

T = TypeVar("T")
FIXTURES = Path(__file__).parent / "fixtures"


def cannot_run(what: str, reason: str) -> NoReturn:
    """Skip this test because `what` (mariadb, mysql9, slurm, …) is not to be had here.

    The reason is listed at the end of the run; when PYEXPD_TEST_REQUIRE names `what`, the test fails instead.
    """
    message = f"{what}: {reason}"
    if what in os.environ.get("PYEXPD_TEST_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"required by PYEXPD_TEST_REQUIRE, but cannot run here: {message}", pytrace=False)
    pytest.skip(message)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that others are writing: what has no end yet may be half a line."""
    return path.read_text().rpartition("\n")[0].splitlines()


def wait_until(predicate: Callable[[], T], *, timeout: float = 120.0, interval: float = 0.01, what: str = "") -> T:
    """What `predicate` returns once that is true.

    Raises:
        TimeoutError: it stayed false for `timeout` seconds; the message has `what` and the last answer.
    """
    deadline = time.monotonic() + timeout
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(_too_late(predicate, answer, timeout, what))
        time.sleep(interval)
    return answer


async def wait_until_async(
    predicate: Callable[[], Any], *, timeout: float = 120.0, interval: float = 0.01, what: str = ""
) -> Any:
    """The same beside other tasks; `predicate` may be a plain or an async function."""
    answer: Any = None
    with anyio.move_on_after(timeout):
        while True:
            asked = predicate()
            answer = await asked if inspect.isawaitable(asked) else asked
            if answer:
                return answer
            await anyio.sleep(interval)
    raise TimeoutError(_too_late(predicate, answer, timeout, what))


def _too_late(predicate: Callable[[], object], answer: object, timeout: float, what: str) -> str:
    return (
        f"not within {timeout:g} s: {what or getattr(predicate, '__qualname__', predicate)} (last answer: {answer!r})"
    )


def load_dump(connection: Any, path: Path) -> None:
    """Run every statement of an SQL file on a blocking SQLite or PyMySQL connection, in autocommit mode."""
    text = path.read_text(encoding="utf-8")
    if hasattr(connection, "executescript"):
        connection.executescript(text)
        return
    with connection.cursor() as cursor:
        for statement in text.split(";\n"):
            if statement.strip():
                cursor.execute(statement)
