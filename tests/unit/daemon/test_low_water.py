"""Where a claim begins when those before it were slow, or when there are many daemons."""

from __future__ import annotations

from pyexp_daemon.daemon.fleet import Fleet
from pyexp_daemon.daemon.low_water import ANYWHERE, HEAD, MOST_HEADS_PER_S, RARELY, RECHECK_S, SLOW_S, LowWater, Start
from pyexp_daemon.model import Claim

FAST, SLOW = SLOW_S / 2, SLOW_S * 2


def claim(experiment_id: int, order: int = 0) -> Claim:
    return Claim(experiment_id=experiment_id, attempt=1, token="t", start_date="", keyfields={}, order=order)


def mark(order: int, experiment_id: int) -> Start:
    return Start(mark=(order, experiment_id))


def place(order: int, experiment_id: int) -> Start:
    return Start(mark=(order, experiment_id), same_order=True)


def marked(now: float = 0.0) -> LowWater:
    """One whose last claim, at this time, was slow and took the experiments 6 and 7 of order 2."""
    queue = LowWater()
    queue.claimed([claim(6, 2), claim(7, 2)], start=queue.start(now=now), seconds=SLOW)
    return queue


def test_a_fast_claim_leaves_no_mark() -> None:
    queue = LowWater()
    queue.claimed([claim(6)], start=queue.start(now=0.0), seconds=FAST)
    assert queue.start(now=0.1) == HEAD


def test_after_a_slow_claim_the_next_begin_where_it_ended_and_one_a_second_at_the_head() -> None:
    queue = marked()
    assert queue.start(now=0.1) == mark(2, 7)
    queue.claimed([claim(8, 2)], start=mark(2, 7), seconds=FAST)
    assert queue.start(now=0.2) == mark(2, 8)
    assert queue.start(now=RECHECK_S + 0.1) == HEAD
    assert queue.start(now=RECHECK_S + 0.2) == mark(2, 8)


def test_the_mark_follows_what_came_before_it() -> None:
    queue = marked()
    head = queue.start(now=RECHECK_S + 0.1)
    queue.claimed([claim(9, -1)], start=head, seconds=SLOW)
    assert queue.start(now=RECHECK_S + 0.2) == mark(-1, 9)


def test_a_head_that_takes_long_is_looked_at_more_seldom() -> None:
    """Else every claim would begin there, for the next one comes later than a second anyway."""
    queue = LowWater()
    queue.claimed([claim(6)], start=queue.start(now=0.0), seconds=3.0)
    assert queue.start(now=3.0 + RECHECK_S + 1.0) == mark(0, 6)
    assert queue.start(now=3.0 + RARELY * 3.0 + 1.0) == HEAD


def test_an_empty_claim_and_a_fast_one_from_the_head_take_the_mark_away() -> None:
    queue = marked()
    queue.claimed([], start=mark(2, 7), seconds=FAST)
    assert queue.start(now=0.1) == HEAD
    queue = marked()
    queue.claimed([claim(8)], start=queue.start(now=RECHECK_S + 0.1), seconds=FAST)
    assert queue.start(now=RECHECK_S + 0.2) == HEAD


CROWD_S = 64 / MOST_HEADS_PER_S
"""How often each of 64 looks at the head."""


def one_of_many() -> LowWater:
    """One of 64, whose first claims at time 0 took the experiment 1 at the head, and 50 and 51 at a random place."""
    queue = LowWater(Fleet(size=64))
    queue.claimed([claim(1)], start=queue.start(now=0.0), seconds=FAST)
    queue.claimed([claim(50), claim(51)], start=queue.start(now=0.0), seconds=FAST)
    return queue


def test_of_a_crowd_each_begins_somewhere_and_goes_on_where_it_ended() -> None:
    queue = LowWater(Fleet(size=64))
    assert queue.start(now=0.0) == HEAD
    queue.claimed([claim(1), claim(2)], start=HEAD, seconds=FAST)
    assert queue.start(now=0.1) == ANYWHERE
    queue.claimed([claim(50), claim(51)], start=ANYWHERE, seconds=SLOW)
    assert queue.start(now=0.2) == place(0, 51)
    queue.claimed([claim(52), claim(60)], start=place(0, 51), seconds=FAST)
    assert queue.start(now=0.3) == place(0, 60)


def test_a_crowd_looks_at_the_head_so_often_together_and_each_goes_on_at_its_place_then() -> None:
    queue = one_of_many()
    assert queue.start(now=CROWD_S - 0.1) == place(0, 51)
    assert queue.start(now=CROWD_S + 0.1) == HEAD
    queue.claimed([claim(2), claim(3)], start=HEAD, seconds=FAST)
    assert queue.start(now=CROWD_S + 0.2) == place(0, 51)


def test_experiments_of_a_smaller_order_are_where_the_crowd_goes() -> None:
    queue = one_of_many()
    queue.claimed([claim(70, -1), claim(71, -1)], start=queue.start(now=CROWD_S + 0.1), seconds=FAST)
    assert queue.start(now=CROWD_S + 0.2) == ANYWHERE


def test_a_place_where_nothing_is_left_is_given_up() -> None:
    for rest in ([claim(4), claim(5)], [claim(80, 1), claim(81, 1)]):
        queue = one_of_many()
        queue.claimed(rest, start=queue.start(now=0.1), seconds=FAST)
        assert queue.start(now=0.2) == ANYWHERE
    queue = one_of_many()
    queue.claimed([], start=queue.start(now=0.1), seconds=FAST)
    assert queue.start(now=0.2) == HEAD


def test_where_few_have_the_same_order_a_crowd_claims_at_the_head() -> None:
    """At any other place of an order a claim would bring less than it was to."""
    queue = LowWater(Fleet(size=64))
    queue.claimed([claim(1, 1), claim(2, 2)], start=queue.start(now=0.0), seconds=FAST)
    assert queue.start(now=0.1) == HEAD
    queue = one_of_many()
    queue.claimed([claim(4), claim(5, 1)], start=queue.start(now=0.1), seconds=FAST)
    assert queue.start(now=0.2) == HEAD


def test_a_crowd_beside_an_old_view_begins_at_the_mark_where_few_have_the_same_order() -> None:
    queue = LowWater(Fleet(size=64))
    queue.claimed([claim(1, 1), claim(2, 2)], start=queue.start(now=0.0), seconds=SLOW)
    assert queue.start(now=0.1) == mark(2, 2)
    queue.claimed([claim(3, 3), claim(4, 4)], start=mark(2, 2), seconds=FAST)
    assert queue.start(now=0.2) == mark(4, 4)


def test_a_fleet_that_grows_spreads_and_one_that_shrinks_meets_at_the_head_again() -> None:
    fleet = Fleet()
    queue = LowWater(fleet)
    queue.claimed([claim(1)], start=queue.start(now=0.0), seconds=SLOW)
    fleet.size = 64
    queue.claimed([claim(2)], start=queue.start(now=0.1), seconds=FAST)
    assert queue.start(now=0.2) == ANYWHERE
    fleet.size = 2
    queue.claimed([claim(50)], start=ANYWHERE, seconds=FAST)
    assert queue.start(now=0.3) == HEAD
