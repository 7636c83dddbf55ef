"""How values of ours and results of the user are stored: times, and what no database can hold."""

from __future__ import annotations

import datetime
import json
import math
import time
from decimal import Decimal
from typing import Any

from pyexp_daemon.space.moments import time_text
from pyexp_daemon.store.tables import Table


def local_time(seconds: float | None = None) -> str:
    """A time as PyExperimenter's date columns hold it: local, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def storable(value: Any) -> Any:
    """A value as all databases take it and give it back.

    NaN and infinities, which none holds, become NULL; minus zero, which not all hold, zero. Exact numbers, times of day
    and spans, which SQLite's driver does not know, become text, of which every column makes what it holds.
    """
    if value is None or (type(value) is str and value.isascii()):
        return value  # what is stored most often
    if not_finite(value):
        return None
    if isinstance(value, float):
        return value + 0.0
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return time_text(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return value


def not_finite(value: Any) -> bool:
    return isinstance(value, float | Decimal) and not math.isfinite(value)


def utc(table: Table, seconds: float | None) -> Any:
    """A time as our own columns hold it: DATETIME(6) in UTC on MySQL, seconds since the epoch on SQLite."""
    if seconds is None or table.dialect.provider == "sqlite":
        return seconds
    whole = math.floor(seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1e6):06d}"
