"""What of a changed configuration a running daemon can take over, and what needs a restart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyexp_daemon.config.models import Config
from pyexp_daemon.config.section import yaml_key

_FIXED = ("n_jobs", "database", "codecarbon")
_FIXED_OF_DAEMON = ("slots", "heartbeat_s", "lease_s", "watchdog_s", "state", "logs", "start_jitter_s")
"""What a daemon is built around; everything else is looked up when it is used."""

_SECTIONS = {
    "function": "Function",
    "database": "Database",
    "custom": "Custom",
    "codecarbon": "CodeCarbon",
    "daemon": "Daemon",
    "limits": "Limits",
}
_FREE = ("custom", "codecarbon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What reading the configuration again has brought; the keys are written as in the file."""

    config: Config
    """What holds from now on."""
    changed: list[str]
    needs_restart: list[str]

    def __str__(self) -> str:
        parts = [f"changed: {', '.join(self.changed)}" if self.changed else "nothing changed"]
        if self.needs_restart:
            parts.append(f"needs a restart: {', '.join(self.needs_restart)}")
        return "; ".join(parts)


def merge(old: Config, new: Config) -> Reloaded:
    """Take over from `new` what a running daemon can."""
    new = new.model_copy(update={"use_codecarbon": old.use_codecarbon})  # the file does not say it
    kept = {name: getattr(old.daemon, name) for name in _FIXED_OF_DAEMON}
    config = new.model_copy(
        update={**{name: getattr(old, name) for name in _FIXED}, "daemon": new.daemon.model_copy(update=kept)}
    )
    return Reloaded(config=config, changed=_differences(old, config), needs_restart=_differences(config, new))


def _differences(one: Config, other: Config) -> list[str]:
    left, right = dict(_flat(one.model_dump())), dict(_flat(other.model_dump()))
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values; a section that is the user's own counts as one value."""
    for name, value in values.items():
        key = prefix + yaml_key(name) if prefix else _SECTIONS.get(name, name)
        if isinstance(value, Mapping) and name not in _FREE:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value
