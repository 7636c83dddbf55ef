"""How many rows to claim, and how long to wait."""

from __future__ import annotations

from pyexp_daemon.daemon.claimer import MOST_AHEAD, Pace, Prefetch


def prefetch(*, slots: int = 2, claim_s: float = 0.002, duration_s: float) -> Prefetch:
    made = Prefetch(slots)
    for _ in range(50):
        made.claimed(claim_s)
        made.ran(duration_s)
    return made


def test_nothing_is_claimed_ahead_before_the_first_end() -> None:
    assert Prefetch(4).rows() == 0


def test_long_experiments_are_never_claimed_ahead() -> None:
    assert prefetch(duration_s=1.0).rows() == 0
    assert prefetch(duration_s=0.11).rows() == 0


def test_short_ones_are_claimed_ahead_and_not_without_bound() -> None:
    assert prefetch(duration_s=0.09).rows() == 2  # one for each slot
    assert 0 < prefetch(duration_s=0.02).rows() <= 8
    assert prefetch(duration_s=0.0001).rows() == MOST_AHEAD


def test_one_long_claim_does_not_make_it_claim_ahead_for_ever() -> None:
    made = prefetch(duration_s=1.0)
    made.claimed(30.0)
    for _ in range(50):
        made.claimed(0.002)
    assert made.rows() == 0


def test_the_pace_slows_down_to_its_longest_and_starts_again_with_work() -> None:
    pace = Pace(shortest_s=0.1, longest_s=5.0)
    pauses = [pace.nothing() for _ in range(12)]
    assert 0.05 <= pauses[0] <= 0.15
    assert 3.5 <= pauses[-1] <= 6.5
    pace.found()
    assert pace.nothing() <= 0.15


def test_after_a_refusal_it_asks_again_soon_and_then_each_minute() -> None:
    pace = Pace(shortest_s=0.1, longest_s=5.0)
    pauses = [pace.refused(now=1000.0 * turn) for turn in range(10)]
    assert pauses[0] <= 1.0
    assert 45.0 <= pauses[-1] <= 60.0
    pace.found()
    assert pace.refused() <= 1.0


def test_a_refusal_is_not_waited_for_longer_by_who_is_woken_meanwhile() -> None:
    pace = Pace(shortest_s=0.1, longest_s=5.0)
    assert all(0.75 <= pace.refused(now=100.0) <= 1.0 for _ in range(20))
    assert 1.5 <= pace.refused(now=101.0) <= 2.0
    pace.found()
    assert 0.75 <= pace.refused(now=101.0) <= 1.0
