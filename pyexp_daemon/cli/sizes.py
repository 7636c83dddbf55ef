"""Sizes as people read them."""

from __future__ import annotations


def show_size(count: float) -> str:
    """`0 B`, `812 B`, `1.5 KiB`, `64.0 MiB`, `2.3 TiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
