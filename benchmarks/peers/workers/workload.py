"""What an experiment does, for every peer: nothing, or three results and every tenth time a log row.

Standard library only: it is loaded in the environments of the peers.
"""

from __future__ import annotations

import json
import time
from typing import Any, Literal, get_args

Workload = Literal["noop", "realistic"]
WORKLOADS: tuple[Workload, ...] = get_args(Workload)

READY = "ready"
DONE = "done"


def results(workload: str, x: int) -> dict[str, Any] | None:
    """The results of experiment `x`; a no-op has none."""
    return {"a": x * 1.0, "b": x / 7, "c": "some text"} if workload == "realistic" else None


def loss(workload: str, x: int) -> float | None:
    """What experiment `x` logs, if it logs anything."""
    return 1.0 / (x + 1) if workload == "realistic" and x % 10 == 0 else None


def count_logs(workload: str, experiments: int) -> int:
    """How many log rows experiments 0, 1, … leave."""
    return sum(loss(workload, x) is not None for x in range(experiments))


def tell(moment: str) -> None:
    """Say when a worker was ready for its first experiment, or had stored everything; all processes share the clock."""
    print(json.dumps({moment: time.monotonic()}), flush=True)
