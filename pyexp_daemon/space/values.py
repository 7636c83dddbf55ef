"""Values as users and database drivers hand them over, made plain, shown and encoded."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Context, Decimal
from enum import Enum
from typing import Any

WIDE = Context(prec=800)
"""Decimal arithmetic that never rounds what a float or a column can hold."""

_LITERAL = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?\s*", re.ASCII)
_MOST_SHOWN = 60
_LARGEST_EXPONENT = 330


def plain(value: Any) -> Any:
    """The value without its wrapping: numpy scalars and members of enumerations become what they stand for."""
    if isinstance(value, Enum):
        return plain(value.value)
    if getattr(getattr(value, "dtype", None), "kind", None) == "M":
        return str(value)
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        return value.item()
    return value


def show(value: Any) -> str:
    """The value in one short line, for messages."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write out an integer of thousands of digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def read_number(value: Any) -> int | float | Decimal:
    """The finite number that the value is or, as text, spells.

    Raises:
        ValueError: it is no number, or not a finite one.
    """
    number = _number_or_none(value)
    if number is None:
        raise ValueError(f"{show(value)} is not a number")
    if not Decimal(number).is_finite():
        raise ValueError(f"{show(value)} is not a finite number")
    if number and abs(Decimal(number).adjusted()) > _LARGEST_EXPONENT:
        raise ValueError(f"{show(value)} is beyond what any column holds")
    return number


def _number_or_none(value: Any) -> int | float | Decimal | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float | Decimal):
        return value
    return Decimal(value.strip()) if isinstance(value, str) and _LITERAL.fullmatch(value) else None


def to_decimal(number: float | Decimal) -> Decimal:
    """The number as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    return number if isinstance(number, Decimal) else Decimal(number if isinstance(number, int) else repr(number))


def number_text(number: Decimal) -> str:
    """The one spelling of a number: no exponent, no needless zeros, no minus zero."""
    return f"{number.normalize(WIDE):f}" if number else "0"


def encode_text(text: str) -> bytes:
    """UTF-8.

    Raises:
        ValueError: half a character (a lone surrogate), which no database stores.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{show(text)} contains half a character (a lone surrogate)") from None


def encode_anything(value: Any) -> bytes:
    """Bytes for a value that does not belong into its column: equal for equal values, from whichever driver."""
    if not isinstance(value, str):
        try:
            number = read_number(value)
            # SQLite may give back a large float as the exact integer.
            exact = Decimal(number) if number == int(number) else to_decimal(number)
            return b"?n" + number_text(exact).encode()
        except ValueError:
            pass
    if isinstance(value, bytes | bytearray | memoryview):
        return b"?b" + bytes(value)
    return b"?t" + _written(value).encode("utf-8", "surrogatepass")


def _written(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat(" ")
    return hex(value) if isinstance(value, int) else str(value)  # Python does not write out thousands of decimal digits
