"""How often a daemon of a large fleet asks the database."""

from __future__ import annotations

import pytest

from pyexp_daemon.daemon.claimer import MOST_POLLS_PER_S, Pace
from pyexp_daemon.daemon.fleet import CROWD, Fleet


@pytest.mark.parametrize("size", [1, 10, 200, 2000])
def test_together_they_ask_no_more_often_than_allowed(size: int) -> None:
    pause_s = Fleet(size=size).pause_s(5.0, per_s=40.0)
    assert pause_s >= 5.0
    assert size / pause_s <= 40.0


def test_a_small_fleet_asks_as_often_as_it_was_told_to() -> None:
    assert Fleet(size=8).pause_s(1.0, per_s=10.0) == 1.0


def test_only_a_large_fleet_is_a_crowd() -> None:
    assert not Fleet().is_crowd
    assert not Fleet(size=CROWD).is_crowd
    assert Fleet(size=CROWD + 1).is_crowd


def test_the_oldest_look_as_often_as_ever_and_the_others_together_not_much_more() -> None:
    pauses = [Fleet(size=500, rank=rank).pause_by_rank_s(1.0, first=4) for rank in range(500)]
    assert pauses[:4] == [1.0] * 4
    assert sorted(pauses) == pauses
    assert sum(1 / pause for pause in pauses) < 25


def test_an_idle_daemon_of_a_large_fleet_polls_more_seldom_than_configured() -> None:
    fleet = Fleet()
    pace = Pace(shortest_s=0.1, longest_s=5.0, fleet=fleet)
    assert max(pace.nothing() for _ in range(12)) <= 5.0 * 1.25
    fleet.size = 4 * int(5.0 * MOST_POLLS_PER_S)
    assert [pace.nothing() for _ in range(4)][-1] >= 20.0 * 0.75
