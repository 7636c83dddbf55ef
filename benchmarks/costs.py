"""What a thousand experiments ask of their database: statements, transactions, bytes, writes that reach the disk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from typing import Any

from benchmarks.places import Place, place
from benchmarks.throughput import ROWS

SERVER = {
    "Questions": "statements",
    "Com_commit": "commits",
    "Bytes_received": "bytes to the server",
    "Bytes_sent": "bytes from the server",
    "Innodb_log_writes": "flushed writes of the log",  # innodb_flush_log_at_trx_commit is 1
    "Innodb_os_log_written": "bytes of the log",
}
"""Figures of the server's, and what they are called here. Whatever else it does in that time counts, too."""

_SYNCS = ("fsync", "fdatasync")


def measure() -> list[dict[str, Any]]:
    """One row per database and function, each figure per 1,000 experiments."""
    return [_measure_once(flavour, function, count) for (flavour, function), count in ROWS.items()]


def _measure_once(flavour: Any, function: str, count: int) -> dict[str, Any]:
    with place(flavour) as here:
        here.write(rows=count, function=function)
        here.pyexpd("fill")
        spent = _of_server(here) if here.database.server else _of_file(here)
    figures = {what: round(1000 * figure / count, 1) for what, figure in spent.items()}
    return {"what": f"{function}, {flavour}, per 1,000", **figures}


def _of_server(here: Place) -> Mapping[str, float]:
    before = _status(here)
    here.pyexpd("run", "--until-empty")
    after = _status(here)
    return {what: after[name] - before[name] for name, what in SERVER.items()}


def _status(here: Place) -> dict[str, int]:
    return {name: int(value) for name, value in here.query("SHOW GLOBAL STATUS") if name in SERVER}


def _of_file(here: Place) -> Mapping[str, float]:
    """SQLite has no figures of its own; the kernel's are counted by strace, which holds up nothing else."""
    strace = shutil.which("strace")
    if strace is None:
        raise RuntimeError("strace is not installed (Debian: apt install strace)")
    trace = here.folder / "trace"
    counting = ["-f", "--seccomp-bpf", "-c", "-U", "calls,name", "-e", f"trace={','.join(_SYNCS)}", "-o", str(trace)]
    here.pyexpd("run", "--until-empty", under=[strace, *counting])
    calls = re.findall(rf"^\s*(\d+) ({'|'.join(_SYNCS)})$", trace.read_text(), re.MULTILINE)
    return {"fsyncs": sum(int(number) for number, _ in calls)}
