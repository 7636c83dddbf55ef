"""Signs of life of a running attempt: what it says, what it prints, what it computes."""

from __future__ import annotations

LEAST_CPU = 0.01
"""The share of one CPU above which a process tree counts as computing."""

_LEAST_CPU_S = 0.02  # two clock ticks: one may belong to anything


class SignsOfLife:
    """When an attempt last showed that it is not stuck. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.last = now
        self._output_bytes = 0
        self._cpu_s: float | None = None
        self._awaited = 0

    def note(self, now: float) -> None:
        """It reported something."""
        self.last = now
        self._cpu_s = None

    def wait_for_us(self) -> None:
        """It waits for the daemon to store results: from now on its silence is not its own."""
        self._awaited += 1

    def go_on(self, now: float) -> None:
        """What it waited for has come."""
        self._awaited -= 1
        self.note(now)

    def look(self, now: float, *, cpu_s: float, output_bytes: int) -> None:
        """See what it did since the last look.

        Args:
            cpu_s: CPU time of the processes of its tree that live now, together.
            output_bytes: how much it has printed so far.
        """
        if self._awaited or output_bytes > self._output_bytes:
            self._output_bytes = output_bytes
            self.note(now)
        if self._cpu_s is None or cpu_s < self._cpu_s:  # a process ended, and took its time along
            self._cpu_s = cpu_s
        elif cpu_s - self._cpu_s >= max(_LEAST_CPU_S, LEAST_CPU * (now - self.last)):
            self.note(now)
            self._cpu_s = cpu_s

    def silence_s(self, now: float) -> float:
        """Seconds since the last sign of life."""
        return now - self.last
