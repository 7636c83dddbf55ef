"""The chaos run itself: it can be repeated, and does not pass when it proves nothing. `make chaos` runs it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.databases import Database
from tests.faults.chaos import run
from tests.faults.chaos.people import People
from tests.faults.chaos.plan import ENDS, WEIGHTS, Action, DatabaseName, Kind, make_plan
from tests.faults.chaos.report import LEAST_IN_20_MINUTES, Report, least, too_little
from tests.faults.fleet import make_project

KINDS: list[DatabaseName] = ["sqlite", "mariadb"]


@pytest.mark.parametrize("database", KINDS)
def test_the_plan_is_a_function_of_the_seed(database: DatabaseName) -> None:
    plan = make_plan(7, minutes=2, daemons=5, database=database)
    assert plan == make_plan(7, minutes=2, daemons=5, database=database)
    assert plan != make_plan(8, minutes=2, daemons=5, database=database)
    assert plan == make_plan(7, minutes=20, daemons=5, database=database)[: len(plan)]


@pytest.mark.parametrize("database", KINDS)
@pytest.mark.parametrize("minutes", [2, 20])
@pytest.mark.parametrize("seed", range(5))
def test_enough_is_planned(database: DatabaseName, minutes: int, seed: int) -> None:
    plan = make_plan(seed, minutes=minutes, daemons=5, database=database)
    planned = Counter(action.kind for action in plan)
    assert set(planned) == set(WEIGHTS[database])
    assert planned[Kind.KILL] >= 1.25 * least(minutes)["daemon kills"]
    assert planned[Kind.PARTITION] >= 3 * least(minutes)["partitions"]
    assert {action.place for action in plan if action.kind in ENDS} == {1, 2, 3, 4}
    assert {action.place for action in plan if action.kind not in ENDS} == set(range(5))
    assert {action.moves for action in plan if action.kind is Kind.KILL} == {True, False}


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(40, [400, 100, 40, 40]), (20, [200, 50, 20, 20]), (10, [50, 12, 5, 5]), (2, [10, 2, 1, 1]), (0.5, [2, 0, 0, 0])],
)
def test_the_least_grows_with_the_time(minutes: float, expected: list[int]) -> None:
    assert list(least(minutes).values()) == expected


@pytest.mark.parametrize("missing", LEAST_IN_20_MINUTES)
def test_a_run_in_which_too_little_happened_is_vacuous(missing: str) -> None:
    enough = least(20)
    assert too_little(enough, 20) == []
    found = too_little(enough | {missing: enough[missing] - 1}, 20)
    assert found == [f"vacuous: {enough[missing] - 1} {missing}, less than {enough[missing]}"]
    assert too_little({}, 20)


def report(*violations: str, vacuous: str = "") -> Report:
    figures = {**least(2), "experiments": 1000}
    return Report(title="chaos", figures=figures, violations=violations, vacuous=[vacuous] * bool(vacuous), errors={})


def test_a_report_fails_for_violations_and_for_being_vacuous() -> None:
    assert not report().failed
    assert report().line.endswith("nothing lost, nothing doubled")
    for failed in (report("I1: experiment 1 is gone"), report(vacuous="vacuous: 0 partitions")):
        assert failed.failed
        assert failed.line == failed.table
        assert "nothing lost" not in failed.table
    assert "I1: experiment 1 is gone" in report("I1: experiment 1 is gone").table
    assert json.loads(report("one").json)["violations"] == ["one"]


def test_people_add_no_experiment_twice(tmp_path: Path) -> None:
    """The answer to an INSERT may be lost with its connection."""
    database = Database(provider="sqlite", flavour="sqlite", name=str(tmp_path / "results"))
    project = make_project(database, tmp_path / "project", rows=3)
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.faults.chaos.people.WAITING", 0)
            with People(project) as people:
                people.add(4)
    assert [x for (x,) in database.query("SELECT x FROM exp ORDER BY x")] == list(range(7))
    assert people.experiments == set(range(1, 8))


def test_a_daemon_that_is_still_ending_when_the_faults_are_over_is_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one at its place counts."""
    monkeypatch.setattr(run, "ROWS", 40)
    database = Database(provider="sqlite", flavour="sqlite", name=str(tmp_path / "results"))
    plan = [
        Action(at_s=0.5, kind=Kind.TERM, place=1, lasts_s=0.2, moves=False, seed=2),
        Action(at_s=0.5, kind=Kind.FREEZE, place=1, lasts_s=20.0, moves=False, seed=2),
    ]
    chaos = run.Chaos(run.make_project(database, tmp_path / "project"), plan, daemons=2)
    assert chaos.run() == []
    assert chaos.happened == {Kind.TERM: 1, Kind.FREEZE: 1}
    assert chaos.hosts.places[1].lives == 2
