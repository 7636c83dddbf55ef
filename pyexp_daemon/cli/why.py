"""Why an experiment is as it is, and what happens to it next: pure functions from what the database says to words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyexp_daemon.cli.context import count_of
from pyexp_daemon.cli.times import show_duration
from pyexp_daemon.model import CHARGED, Daemon, Status
from pyexp_daemon.store.reads import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of one experiment. Times are seconds since the epoch, by the database's clock."""

    id: int
    status: str
    now: float
    place: Place | None
    """None when the table has not been adopted."""
    attempts: Sequence[Mapping[str, Any]]
    daemons: Sequence[Daemon]
    """Those that are live or draining, and the one that holds the experiment."""
    tries: Mapping[str, int]
    """How many attempts may end so."""

    @property
    def live(self) -> list[Daemon]:
        return [daemon for daemon in self.daemons if daemon.state == "live"]


def explain(facts: Facts) -> str:
    """One or two sentences on what happens next, and the command that changes it."""
    if facts.place is None:
        return "The table has not been adopted yet: pyexpd fill adds what a daemon needs."
    describe = {
        Status.CREATED.value: _created,
        Status.WAITING.value: _waiting,
        Status.RUNNING.value: _running,
        Status.DONE.value: _done,
        Status.ERROR.value: _error,
        Status.PAUSED.value: _paused,
        Status.CANCELLED.value: _cancelled,
    }.get(facts.status, _unknown)
    return describe(facts, facts.place)


def _created(facts: Facts, place: Place) -> str:
    if place.ahead:
        turn = f"{count_of(place.ahead, 'experiment')} of queue {place.queue} come first"
    else:
        turn = f"It is the next one of queue {place.queue}"
    if not facts.live:
        return f"{turn}; no daemon is live: pyexpd run starts one."
    live = f"{count_of(len(facts.live), 'daemon')} {'is' if len(facts.live) == 1 else 'are'} live"
    return f"{turn}; {live} (those take it that serve its queue)."


def _waiting(facts: Facts, place: Place) -> str:
    last = facts.attempts[-1] if facts.attempts else None
    cause = f" after its last attempt ended in {last['outcome']}" if last else ""
    if place.not_before is None:
        return f"It waits{cause} without a time, so nothing wakes it: pyexpd reset {facts.id} makes it run."
    left = place.not_before - facts.now
    when = f"for another {show_duration(left)}" if left > 0 else "until a daemon looks again (each second)"
    nobody = "" if facts.live else "; no daemon is live: pyexpd run starts one"
    return f"It waits{cause} {when}, and then runs again ({_budgets(facts, place)}){nobody}."


def _running(facts: Facts, place: Place) -> str:
    if not place.has_token:
        return (
            "It runs without a token: PyExperimenter or a person set it to running, and no daemon rescues it."
            f" If nobody works on it: pyexpd reset --running {facts.id}"
        )
    owner = next((daemon for daemon in facts.daemons if daemon.id == place.daemon), None)
    if owner is None:
        return (
            "Its daemon is gone without a trace; the next daemon that runs here or elsewhere takes the experiment back."
        )
    who = f"daemon {owner.name} on {owner.host} (process {owner.pid})"
    asked = " It has been asked to stop." if place.cancel else ""
    if owner.state not in ("live", "draining"):
        return f"Its {who} is {owner.state}; a daemon that runs puts the experiment back to created soon."
    silent = facts.now - owner.beat_at
    if silent > owner.lease_s:
        return (
            f"Its {who} has been silent for {show_duration(silent)} (its lease is {show_duration(owner.lease_s)});"
            " a daemon that runs puts the experiment back to created soon."
        )
    return f"It runs under {who}, which gave a sign of life {show_duration(silent)} ago.{asked}"


def _done(facts: Facts, place: Place) -> str:
    return f"It is done. pyexpd reset {facts.id} clears its results and runs it again."


def _error(facts: Facts, place: Place) -> str:
    spent = _budgets(facts, place)
    used_up = f" ({spent})" if spent else ""
    return (
        f"It failed for good{used_up}. pyexpd logs {facts.id} shows its output, pyexpd reset {facts.id} runs it again."
    )


def _paused(facts: Facts, place: Place) -> str:
    return f"Its function paused it, so nothing takes it. pyexpd reset {facts.id} runs it from the beginning."


def _cancelled(facts: Facts, place: Place) -> str:
    return f"It was cancelled, so nothing takes it. pyexpd reset {facts.id} brings it back."


def _unknown(facts: Facts, place: Place) -> str:
    return f"No daemon knows the status {facts.status!r}, so nothing takes it. pyexpd reset {facts.id} runs it."


def _budgets(facts: Facts, place: Place) -> str:
    """`error 1 of 1, crash 2 of 3`: the tries it has spent."""
    spent = json.loads(place.tries) if place.tries else {}
    used = [f"{name.value} {spent[name.value]} of {facts.tries[name.value]}" for name in CHARGED if name.value in spent]
    return f"tries: {', '.join(used)}" if used else ""
