"""Where a claim begins when those before it were slow."""

from __future__ import annotations

from pyexp_daemon.daemon.low_water import RARELY, RECHECK_S, SLOW_S, LowWater
from pyexp_daemon.model import Claim


def claim(experiment_id: int, order: int = 0) -> Claim:
    return Claim(experiment_id=experiment_id, attempt=1, token="t", start_date="", keyfields={}, order=order)


def marked(now: float = 0.0) -> LowWater:
    """One whose last claim, at this time, was slow and took the experiments 6 and 7 of order 2."""
    queue = LowWater()
    queue.claimed([claim(6, 2), claim(7, 2)], mark=queue.mark(now=now), seconds=2 * SLOW_S)
    return queue


def test_a_fast_claim_leaves_no_mark() -> None:
    queue = LowWater()
    queue.claimed([claim(6)], mark=queue.mark(now=0.0), seconds=SLOW_S / 2)
    assert queue.mark(now=0.1) is None


def test_after_a_slow_claim_the_next_begin_where_it_ended_and_one_a_second_at_the_head() -> None:
    queue = marked()
    assert queue.mark(now=0.1) == (2, 7)
    queue.claimed([claim(8, 2)], mark=(2, 7), seconds=SLOW_S / 2)
    assert queue.mark(now=0.2) == (2, 8)
    assert queue.mark(now=RECHECK_S + 0.1) is None
    assert queue.mark(now=RECHECK_S + 0.2) == (2, 8)


def test_the_mark_follows_what_came_before_it() -> None:
    queue = marked()
    head = queue.mark(now=RECHECK_S + 0.1)
    queue.claimed([claim(9, -1)], mark=head, seconds=2 * SLOW_S)
    assert queue.mark(now=RECHECK_S + 0.2) == (-1, 9)


def test_a_head_that_takes_long_is_looked_at_more_seldom() -> None:
    """Else every claim would begin there, for the next one comes later than a second anyway."""
    queue = LowWater()
    queue.claimed([claim(6)], mark=queue.mark(now=0.0), seconds=3.0)
    assert queue.mark(now=3.0 + RECHECK_S + 1.0) == (0, 6)
    assert queue.mark(now=3.0 + RARELY * 3.0 + 1.0) is None


def test_an_empty_claim_and_a_fast_one_from_the_head_take_the_mark_away() -> None:
    queue = marked()
    queue.claimed([], mark=(2, 7), seconds=SLOW_S / 2)
    assert queue.mark(now=0.1) is None
    queue = marked()
    queue.claimed([claim(8)], mark=queue.mark(now=RECHECK_S + 0.1), seconds=SLOW_S / 2)
    assert queue.mark(now=RECHECK_S + 0.2) is None
