"""Durations and sizes as people write them: `2h30m`, `500ms`, `8GiB`. A number without a unit is refused."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from annotated_types import Gt
from pydantic import BeforeValidator

from pyexp_daemon.config.mistakes import mistake, show

SECONDS = {"d": Decimal(86400), "h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}

_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(r"\s*".join(rf"(?:(?P<{unit}>{_NUMBER})\s*{unit})?" for unit in SECONDS))
_SIZE = re.compile(rf"({_NUMBER})\s*([A-Za-z]+)")
_BARE = re.compile(rf"-?{_NUMBER}")
_BYTES_BY_LOWER_CASE = {unit.lower(): size for unit, size in BYTES.items()}


def parse_duration(value: Any) -> float:
    """Seconds of a text such as `90s`, `2h30m`, `500ms` or `1d`; the number 0 needs no unit."""
    text = _text_with_unit(value, example="s", expected="a duration such as 90s or 2h30m")
    found = _DURATION.fullmatch(text)
    if not text or not found:
        raise mistake(
            f"expected a duration such as 90s or 2h30m, got {show(value)}", hint="units are d, h, m, s and ms"
        )
    return float(sum(Decimal(number) * SECONDS[unit] for unit, number in found.groupdict().items() if number))


def parse_size(value: Any) -> int:
    """Bytes of a text such as `64MiB`, `8GiB`, `500MB` or `1024B`; the number 0 needs no unit."""
    text = _text_with_unit(value, example="MiB", expected="a size such as 64MiB or 8GB")
    found = _SIZE.fullmatch(text)
    size = _BYTES_BY_LOWER_CASE.get(found[2].lower()) if found else None
    if not found or not size:
        raise mistake(
            f"expected a size such as 64MiB or 8GB, got {show(value)}",
            hint="units are B, KB, MB, GB, TB, KiB, MiB, GiB and TiB",
        )
    return int(Decimal(found[1]) * size)


def _text_with_unit(value: Any, *, example: str, expected: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise mistake(f"expected {expected}, got {show(value)}")
    text = str(value).strip()
    if not _BARE.fullmatch(text):
        return text
    if text.startswith("-"):
        raise mistake(f"must not be negative, got {show(value)}")
    if Decimal(text) == 0:
        return f"0{example}"
    raise mistake(f"{show(value)} has no unit", hint=f"write {text}{example}")


Duration = Annotated[float, BeforeValidator(parse_duration)]
PositiveDuration = Annotated[Duration, Gt(0)]
Size = Annotated[int, BeforeValidator(parse_size)]
PositiveSize = Annotated[Size, Gt(0)]
