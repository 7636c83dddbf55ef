"""Where an experiment goes after an attempt: its status, its tries, its pause. No statement here."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

from pyexp_daemon.model import CHARGED, Outcome, RetryPolicy, Status

_END_OF: Mapping[Outcome, Status] = {
    Outcome.DONE: Status.DONE,
    Outcome.PAUSED: Status.PAUSED,
    Outcome.CANCELLED: Status.CANCELLED,
    Outcome.RELEASED: Status.CREATED,
    Outcome.SUPERSEDED: Status.CREATED,  # killed because its row seemed taken, and it was not
}


def next_status(
    outcome: Outcome, *, cancelled: bool, tries: str | None, policy: RetryPolicy
) -> tuple[Status, str | None]:
    """Where an experiment goes after an attempt that ended so, and its tries after it (JSON, NULL for none)."""
    spent = read_tries(tries)
    if outcome in CHARGED:
        spent[outcome.value] = spent.get(outcome.value, 0) + 1
    text = json.dumps(spent, sort_keys=True) if spent else None
    if cancelled and outcome is not Outcome.DONE:
        return Status.CANCELLED, text
    if outcome in _END_OF:
        return _END_OF[outcome], text
    if spent[outcome.value] >= policy.tries.get(outcome.value, 1):
        return Status.ERROR, text
    return (Status.CREATED if outcome is Outcome.LOST else Status.WAITING), text


def read_tries(tries: str | None) -> dict[str, int]:
    """The tries of an experiment by outcome; what somebody wrote there by hand and is none counts as nothing."""
    try:
        spent = json.loads(tries) if tries else {}
    except ValueError:
        return {}
    return {key: value for key, value in spent.items() if type(value) is int} if isinstance(spent, dict) else {}


def backoff_s(policy: RetryPolicy, tries: str | None) -> float:
    """Seconds until the next attempt: doubled with every try that is spent, jittered by a quarter."""
    spent = sum(read_tries(tries).values()) or 1
    longest = min(policy.longest_s, policy.first_s * 2.0 ** min(spent - 1, 60))
    return longest * random.uniform(0.75, 1.0)


def uncharged(tries: str | None, *, outcome: str = Outcome.LOST) -> str | None:
    """The tries of an experiment without one that turned out not to be its own."""
    spent = read_tries(tries)
    spent[outcome] = spent.get(outcome, 0) - 1
    left = {outcome: count for outcome, count in spent.items() if count > 0}
    return json.dumps(left, sort_keys=True) if left else None
