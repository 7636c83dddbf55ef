"""Metrics in Prometheus's text format, version 0.0.4.

By hand: it is three kinds of lines, and what Prometheus's client library has beyond them (registries, a server) would
serve a process that keeps its own counters. Ours are read from the database each time. Tests read the text with that
library's parser.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TextIO


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with a value for each set of labels."""

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    samples: list[tuple[Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> None:
        """Add the value of one set of labels."""
        self.samples.append((labels, value))


def write(file: TextIO, metrics: Iterable[Metric]) -> None:
    """Write the metrics, each once, with what it is and what it means."""
    for metric in metrics:
        file.write(f"# HELP {metric.name} {_escaped(metric.help)}\n# TYPE {metric.name} {metric.kind}\n")
        for labels, value in metric.samples:
            shown = ",".join(f'{name}="{_escaped(text, quote=True)}"' for name, text in labels.items())
            file.write(f"{metric.name}{{{shown}}} {_number(value)}\n")


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(round(value, 6))
