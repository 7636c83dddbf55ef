from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from pyexp_daemon.config.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("2h30m", 9000.0),
        ("2h 30m", 9000.0),
        ("500ms", 0.5),
        ("1d", 86400.0),
        ("1d2h3m4s5ms", 93784.005),
        ("0.5h", 1800.0),
        ("0.1s", 0.1),
        (" 10 s ", 10.0),
        (0, 0.0),
        ("0", 0.0),
        (0.0, 0.0),
        ("0s", 0.0),
    ],
)
def test_a_duration_is_seconds(text: Any, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 64 * 2**20),
        ("8GiB", 8 * 2**30),
        ("8gib", 8 * 2**30),
        ("500MB", 500_000_000),
        ("1024B", 1024),
        ("1.5 KiB", 1536),
        ("2TB", 2 * 10**12),
        (0, 0),
    ],
)
def test_a_size_is_bytes(text: Any, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (10, "10 has no unit", "write 10s"),
        ("10", "'10' has no unit", "write 10s"),
        (1.5, "1.5 has no unit", "write 1.5s"),
        (-1, "must not be negative, got -1", None),
        ("10 parsecs", "expected a duration such as 90s or 2h30m, got '10 parsecs'", "units are d, h, m, s and ms"),
        ("30m2h", "expected a duration such as 90s or 2h30m, got '30m2h'", "units are d, h, m, s and ms"),
        ("", "expected a duration such as 90s or 2h30m, got ''", "units are d, h, m, s and ms"),
        ("-5s", "expected a duration such as 90s or 2h30m, got '-5s'", "units are d, h, m, s and ms"),
        (True, "expected a duration such as 90s or 2h30m, got true", None),
        ([5], "expected a duration such as 90s or 2h30m, got [5]", None),
        (float("inf"), "expected a duration such as 90s or 2h30m, got inf", "units are d, h, m, s and ms"),
    ],
)
def test_anything_else_is_no_duration(text: Any, message: str, hint: str | None) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        parse_duration(text)
    assert (caught.value.message(), (caught.value.context or {})["hint"]) == (message, hint)


@pytest.mark.parametrize("text", [64, "64", "8G", "8", "GiB", "8 GiB 2", "1e3B", None, -1, "-1B"])
def test_anything_else_is_no_size(text: Any) -> None:
    with pytest.raises(PydanticCustomError):
        parse_size(text)


@given(days=st.integers(0, 99), hours=st.integers(0, 99), seconds=st.integers(0, 10**6))
def test_the_parts_of_a_duration_add_up(days: int, hours: int, seconds: int) -> None:
    assert parse_duration(f"{days}d{hours}h{seconds}s") == days * 86400 + hours * 3600 + seconds
