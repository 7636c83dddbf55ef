"""Values of columns as files hold them."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

JsonValue = None | bool | int | float | str


def as_json(value: Any) -> JsonValue:
    """A value as JSON has it: dates as text, exact numbers as numbers, bytes as text or else as hex digits."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return as_text(value)


def as_text(value: Any) -> str:
    """A value as one cell of a text file; NULL is empty."""
    if value is None:
        return ""
    if isinstance(value, bytes | bytearray):
        return _text_of_bytes(bytes(value))
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, datetime.timedelta):
        return _text_of_time(value)
    return str(value)


def _text_of_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex()


def _text_of_time(value: datetime.timedelta) -> str:
    """A TIME of MySQL: `-1:02:03` rather than `-1 day, 22:57:57`."""
    seconds = abs(value).total_seconds()
    whole = int(seconds)
    text = f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
    fraction = f"{seconds - whole:.6f}"[1:].rstrip("0").rstrip(".")
    return f"{'-' if value < datetime.timedelta(0) else ''}{text}{fraction}"
