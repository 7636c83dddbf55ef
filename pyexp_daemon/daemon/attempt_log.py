"""The line about every attempt that ended."""

from __future__ import annotations

import time
from typing import Any

from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Attempt, Outcome, Verdict

log = get_logger()


class AttemptLog:
    """One full line per attempt; above `most` in a second, one line for all of them. Failures are never left out."""

    def __init__(self, *, most: int = 20) -> None:
        self._most = most
        self._second = 0
        self._said = 0
        self._left_out: dict[str, int] = {}

    def ended(self, attempt: Attempt, verdict: Verdict) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self.close()
            self._second, self._said = second, 0
        good = attempt.outcome in (Outcome.DONE, Outcome.PAUSED, Outcome.RELEASED)
        self._said += 1
        if good and self._said > self._most:
            self._left_out[attempt.outcome] = self._left_out.get(attempt.outcome, 0) + 1
            return
        say = log.info if good else log.warning
        say("attempt.finished", **_facts(attempt))

    def close(self) -> None:
        """Say what was left out so far."""
        if self._left_out:
            log.info("attempts.finished", **self._left_out)
            self._left_out = {}


def _facts(attempt: Attempt) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "experiment_id": attempt.claim.experiment_id,
        "attempt": attempt.claim.attempt,
        "outcome": attempt.outcome.value,
        "duration_s": round((attempt.ended or 0) - (attempt.started or 0), 3),
        "exit_code": attempt.exit_code,
        "signal": attempt.signal,
        "error": attempt.error.strip().splitlines()[-1][:500] if attempt.error and attempt.error.strip() else None,
    }
    return {name: value for name, value in facts.items() if value is not None}
