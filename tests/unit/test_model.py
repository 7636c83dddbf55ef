"""The state diagram."""

from __future__ import annotations

from pathlib import Path

from pyexp_daemon.model import CHARGED, TRANSITIONS, Outcome, RetryPolicy, Status
from pyexp_daemon.store.budgets import backoff_s, next_status

POLICY = RetryPolicy(tries=dict.fromkeys(CHARGED, 3), first_s=30.0, longest_s=100.0)


def test_every_status_has_its_arrows_and_every_arrow_stands_in_the_document() -> None:
    assert set(TRANSITIONS) == set(Status)
    diagram = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    for status, later in TRANSITIONS.items():
        for target in later:
            assert f"{status} --> {target}" in diagram, f"{status} --> {target} is not in docs/protocol.md"


def test_every_outcome_of_an_attempt_follows_an_arrow_from_running() -> None:
    for outcome in Outcome:
        for cancelled in (False, True):
            status, _ = next_status(outcome, cancelled=cancelled, tries=None, policy=POLICY)
            assert status in TRANSITIONS[Status.RUNNING]


def test_a_backoff_doubles_with_jitter_up_to_its_longest() -> None:
    for spent, longest in ((1, 30.0), (2, 60.0), (3, 100.0), (2000, 100.0)):
        pause = backoff_s(POLICY, f'{{"error": {spent}}}')
        assert 0.75 * longest <= pause <= longest
