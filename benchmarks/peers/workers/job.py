"""`WORKLOAD X`, run by path: one experiment in a process of its own, what it found as JSON on stdout."""

from __future__ import annotations

import json
import sys

from benchmarks.peers.workers import workload

if __name__ == "__main__":
    kind, x = sys.argv[1], int(sys.argv[2])
    print(json.dumps({"x": x, "results": workload.results(kind, x), "loss": workload.loss(kind, x)}))
