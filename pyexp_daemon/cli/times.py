"""Times and durations as people read them."""

from __future__ import annotations

import time


def show_duration(seconds: float) -> str:
    """`0.3 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    whole = round(seconds)
    for place, (unit, size) in enumerate(units):
        if whole >= size:
            rest = whole % size // units[place + 1][1] if place + 1 < len(units) else 0
            return f"{whole // size} {unit}" + (f" {rest} {units[place + 1][0]}" if rest else "")
    return "0 s"


def show_time(seconds: float | None) -> str:
    """A moment in local time, to the second."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def iso_time(seconds: float | None) -> str | None:
    """A moment in UTC as JSON documents have it."""
    if seconds is None:
        return None
    whole = int(seconds // 1)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1e6):06d}Z"
