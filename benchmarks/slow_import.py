"""A function whose module takes two seconds to import, or whose store does, and a thousand short experiments of it."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.places import FLAVOURS, Flavour, place

IMPORT_S = 2.0

MODULE = f"""
import pathlib
import time

time.sleep({IMPORT_S})
with pathlib.Path(__file__).with_name("imports").open("a") as file:
    file.write("once more\\n")


def run(keyfields, result_processor, custom):
    pass
"""


STORE = f"""
import pathlib
import time


def load():
    time.sleep({IMPORT_S})
    with pathlib.Path(__file__).with_name("imports").open("a") as file:
        file.write("once more\\n")
    return {{"dataset": [1, 2, 3]}}


def run(keyfields, result_processor, custom):
    assert result_processor.store["dataset"][2] == 3
"""


def measure(*, experiments: int = 1000) -> list[dict[str, Any]]:
    """Two rows per database: how often the module was imported, or the store made, and how long everything took."""
    return [_run(what, flavour, experiments) for what in ("import", "store") for flavour in FLAVOURS]


def _run(what: str, flavour: Flavour, experiments: int) -> dict[str, Any]:
    with place(flavour) as here:
        here.write(rows=experiments, store="slow:load" if what == "store" else None)
        (here.folder / "slow.py").write_text(STORE if what == "store" else MODULE)
        here.pyexpd("fill")
        began = time.monotonic()
        here.pyexpd("run", "--until-empty", "--function", "slow:run")
        took = time.monotonic() - began
        imports = len((here.folder / "imports").read_text().splitlines())
    return {"what": f"slow {what}, {flavour}", "experiments": experiments, "times": imports, "s": round(took, 2)}
