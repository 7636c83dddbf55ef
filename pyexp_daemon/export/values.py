"""Values of columns as files hold them."""

from __future__ import annotations

import datetime
import json
import math
import numbers
from decimal import Decimal
from typing import Any

JsonValue = None | bool | int | float | str | list[Any] | dict[str, Any]


def as_json(value: Any) -> JsonValue:
    """A value as JSON has it: dates as text, exact numbers as numbers, bytes as text or else as hex digits."""
    if value is None or isinstance(value, bool | int | float | str | list | dict):
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
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def is_number(value: Any) -> bool:
    """Whether it is a number, of whatever library; True and False are none."""
    return isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool)


def as_number(value: Any) -> float | None:
    """A value to calculate with; None for NULL and for what is not finite.

    Raises:
        ValueError: it is no number, nor a text that spells one.
    """
    if value is None:
        return None
    if not isinstance(value, str | numbers.Real | Decimal):
        raise ValueError(f"{value!r} is no number")
    number = float(value)
    return number if math.isfinite(number) else None


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
