"""Experiments that save snapshots and go on from them, whatever ended the attempt before."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.e2e.project import KILL, TERM, Project
from tests.e2e.study import Study
from tests.helpers import wait_until

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
Make = Callable[..., Project]

FUNCTIONS = '''
import hashlib, random
from pyexp_daemon.experiment_status import ExperimentStatus


def intervals(keyfields, rp, custom):
    """Fifty draws of one generator, or more until a gate is open, added up; the state is saved after each."""
    note(custom, "start", rp)
    generator, drawn, total = random.Random(keyfields["x"]), 0, 0.0
    snapshot = rp.latest_snapshot()
    if snapshot is not None:
        drawn, total = snapshot.state["drawn"], snapshot.state["total"]
        generator.setstate(snapshot.state["generator"])
    while drawn < custom["intervals"] or custom["gated"] and not os.path.exists(custom["journal"] + ".go"):
        if rp.should_stop:
            note(custom, "stop", rp)
            return ExperimentStatus.CREATED
        time.sleep(custom["seconds"])
        total += generator.random()
        drawn += 1
        note(custom, f"interval-{drawn}", rp)
        rp.save_snapshot({"drawn": drawn, "total": total, "generator": generator.getstate()}, keep=custom.get("keep"))
    note(custom, "end", rp)
    return {"y": total}


def large(keyfields, rp, custom):
    """A state of 64 MiB and a bit, saved by the first attempt and read by the second."""
    import numpy as np

    note(custom, "start", rp)
    if rp.attempt == 1:
        weights = np.random.default_rng(1).integers(0, 256, size=2**26 + 7, dtype=np.uint8)
        rp.save_snapshot({"weights": weights, "step": 7}, label="best", keep=1)
        note(custom, "saved", rp)
        return ExperimentStatus.CREATED
    snapshot = rp.latest_snapshot("best")
    weights = np.random.default_rng(1).integers(0, 256, size=2**26 + 7, dtype=np.uint8)
    assert snapshot.label == "best" and snapshot.attempt == 1 and snapshot.size_bytes > 2**26
    return {"y": float(np.array_equal(snapshot.state["weights"], weights) and snapshot.state["step"] == 7)}
'''


def undisturbed(x: int, intervals: int) -> float:
    generator, total = random.Random(x), 0.0
    for _ in range(intervals):
        total += generator.random()
    return total


@pytest.fixture
def make_long(make_project: Make) -> Make:
    """Makes a filled project whose experiments have so many intervals of so many seconds."""

    def make(
        *,
        function: str = "intervals",
        intervals: int = 50,
        seconds: float = 0.02,
        gated: bool = False,
        lease: str = "1s",
        **options: object,
    ) -> Project:
        custom = {"intervals": intervals, "seconds": seconds, "gated": gated, "keep": 1}
        daemon = {"heartbeat": "100ms", "lease": lease, "drain_timeout": "20s"}
        project = make_project(function=function, custom=custom, daemon=daemon, limits={"grace": "10s"}, **options)
        path = project.folder / "experiments.py"
        path.write_text(path.read_text() + FUNCTIONS)
        project.fill()
        return project

    return make


def count(project: Project, word: str) -> int:
    return sum(note[0].startswith(word) for note in project.notes())


def drawn(project: Project, experiment: int) -> int:
    """How many intervals an experiment has had at last."""
    had = (note[0] for note in project.notes() if note[1] == str(experiment))
    return max(int(word.removeprefix("interval-")) for word in had if word.startswith("interval-"))


def wait_for(project: Project, word: str, wanted: int) -> None:
    wait_until(lambda: count(project, word) >= wanted, timeout=120, what=f"{wanted} times {word}")


def wait_for_a_snapshot(project: Project, *, attempt: int) -> None:
    """Wait until an attempt is in its second interval at least, after it has saved the first."""
    wait_until(
        lambda: sum(note[0].startswith("interval") and note[2] == str(attempt) for note in project.notes()) >= 2,
        what=f"two intervals of attempt {attempt}",
    )


def start(project: Project, machine: int) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """A daemon on a machine of its own, which sees nothing of what others have on their disks."""
    state = project.folder / f"machine-{machine}"
    environment = {"PYEXPD_HOST_ID": state.name, "STATE_DIRECTORY": str(state)}
    return project.daemon("--slots", "1", "--name", state.name, **environment)


@both
@pytest.mark.timeout(900)
def test_twenty_kills_of_child_daemon_and_node_cost_an_interval_each_at_most(make_long: Make) -> None:
    kills = [("child", "daemon", "node")[number % 3] for number in range(20)]
    project, chance, machine = make_long(rows=1, seconds=0.04, gated=True), random.Random(20), 0
    with contextlib.ExitStack() as daemons:
        daemon = daemons.enter_context(start(project, machine))
        for number, killed in enumerate(kills):
            wait_for(project, "start", number + 1)
            time.sleep(chance.uniform(0, 0.1))
            if killed == "child":
                wait_for_a_snapshot(project, attempt=number + 1)  # what crashes again and again without one is given up
                os.kill(int(project.notes()[-1][3]), KILL)
                continue
            daemon.send_signal(KILL)
            daemon.wait()
            machine += killed == "node"
            daemon = daemons.enter_context(start(project, machine))
        wait_for_a_snapshot(project, attempt=21)  # else what the last kill cut off may be an interval too many
        project.open_gate()  # not before: all kills are to come before the end
        project.wait_for(done=1)
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    intervals = drawn(project, 1)
    assert project.database.query("SELECT status, y FROM exp") == [("done", undisturbed(0, intervals))]
    assert count(project, "start") == len(project.attempts()) == 21
    assert Counter(outcome for _, _, outcome in project.attempts()) == {"crash": 7, "lost": 13, "done": 1}
    assert 50 <= intervals <= count(project, "interval") <= intervals + 20
    ((tries,),) = project.database.query("SELECT pyexpd_tries FROM exp")
    assert tries is None
    assert project.database.query("SELECT COUNT(*) FROM exp__pyexpd_snapshots") == [(1,)]


@both
@pytest.mark.parametrize("told", ["drain", "reset"])
def test_who_is_asked_to_stop_saves_and_is_run_again_uncharged(make_long: Make, told: str) -> None:
    project = make_long(rows=2, intervals=60, seconds=0.05, gated=True)
    with project.daemon("--slots", "2", "--until-empty", "--name", "one") as daemon:
        wait_until(
            lambda: {note[1] for note in project.notes() if note[0] == "interval-5"} == {"1", "2"},
            what="a few intervals of both",
        )
        daemon.send_signal(TERM if told == "drain" else signal.SIGUSR2)
        wait_for(project, "stop", 2)
        project.open_gate()
        assert project.end(daemon) == 0
        if told == "drain":
            assert project.statuses() == {"created": 2}
    assert count(project, "stop") == 2
    assert project.pyexpd("run", "--until-empty").returncode == 0
    rows = project.database.query("SELECT status, y, pyexpd_tries FROM exp ORDER BY ID")
    intervals = [drawn(project, 1), drawn(project, 2)]
    assert rows == [("done", undisturbed(x, intervals[x]), None) for x in (0, 1)]
    assert count(project, "interval") == sum(intervals)
    assert [outcome for _, _, outcome in project.attempts()] == ["released", "done"] * 2


@both
def test_a_state_of_64_mib_is_saved_and_read_while_the_heart_beats(make_long: Make) -> None:
    project = make_long(rows=1, function="large", resultfields={"y": "DOUBLE"}, lease="5s")
    with project.daemon("--slots", "1", "--until-empty") as daemon:
        assert project.end(daemon, timeout=120) == 0
    assert project.database.query("SELECT status, y, pyexpd_attempt FROM exp") == [("done", 1.0, 2)]
    assert [event["event"] for event in project.events() if event["event"].startswith(("lease.", "daemon.re"))] == []
    ((parts, longest),) = project.database.query("SELECT COUNT(*), MAX(LENGTH(data)) FROM exp__pyexpd_snapshot_parts")
    assert (parts, longest) == (257, 2**18)
    shown = project.pyexpd("show", "1").stdout
    assert "\n1 snapshot (64.0 MiB), the newest of attempt 1 at " in shown
    assert ", labelled best\n" in shown
    (head,) = json.loads(project.pyexpd("show", "1", "--json").stdout)["snapshots"]
    assert (head["sequence"], head["attempt"], head["label"], head["size_bytes"] >= 2**26) == (1, 1, "best", True)


@both
def test_reset_keeps_snapshots_only_when_told_to(make_long: Make) -> None:
    project = make_long(rows=1, intervals=3)
    for arguments, intervals in ((["--keep-snapshots"], 3), ([], 3), ([], 6)):
        assert project.pyexpd("run", "--until-empty").returncode == 0
        assert count(project, "interval") == intervals
        assert project.pyexpd("reset", "1", "--yes", *arguments).returncode == 0
    assert project.database.query("SELECT COUNT(*) FROM exp__pyexpd_snapshots") == [(0,)]
    assert project.database.query("SELECT COUNT(*) FROM exp__pyexpd_snapshot_parts") == [(0,)]


OTHERS = """
from pyexp_daemon.experiment_status import ExperimentStatus
study = experimenter()
study.fill_table_from_config()

def first(keyfields, rp, custom):
    if rp.attempt == 1:
        rp.save_snapshot({"x": keyfields["x"], "tuple": (1, b"2")}, label="half")
        rp.save_snapshot([keyfields["x"]])
        return ExperimentStatus.CREATED
    return {"y": keyfields["x"] + 0.5}

study.execute(first, n_jobs=2)
"""


def test_every_way_to_run_in_python_has_snapshots_and_the_results_of_others(make_study: Callable[..., Study]) -> None:
    make_study().run(
        OTHERS
        + """
def look(rp):
    newest, half = rp.snapshots()
    assert (newest.sequence, newest.label, newest.state) == (2, None, [1])
    assert rp.latest_snapshot("half").state == half.state == {"x": 1, "tuple": (1, b"2")}
    assert rp.latest_snapshot("third") is None
    rp.save_snapshot({"by": "another process"})
    return rp.results_of(1), rp.results_where(x=1), rp.results_where(x=9)

assert study.attach(look, 2) == ({"y": 0.5}, [{"ID": 2, "x": 1, "y": 1.5}], [])

def again(keyfields, rp, custom):
    assert rp.latest_snapshot() is None
    rp.save_snapshot(1, keep=1)
    rp.save_snapshot(2, keep=1)
    others = rp.results_where("exp")
    return {"y": sum(other["y"] for other in others) + len(rp.snapshots()) + rp.latest_snapshot().state}

study.add_experiment_and_execute({"x": 9}, again)
study.add_experiment_and_execute({"x": 10}, lambda keyfields, rp, custom: {"y": rp.results_of(5)["y"]})
total = 0.5 + 1.5 + 2.5 + 3.5 + 1 + 2
assert [row["y"] for _, row in study.get_table().iterrows()] == [0.5, 1.5, 2.5, 3.5, total, total], study.get_table()
study.reset_experiments("done", keep_snapshots=True)
assert [len(study.snapshots(number)) for number in (1, 2, 5, 6)] == [2, 3, 1, 0]
assert study.snapshots(2)[0].state == {"by": "another process"}
study.reset_experiments("created", "done")
"""
    )


def test_a_question_with_no_answer_is_an_error_of_the_function(make_study: Callable[..., Study]) -> None:
    study = make_study(rows=3)
    study.run(
        """
study = experimenter()
study.fill_table_from_config()
def run(keyfields, rp, custom):
    if keyfields["x"] == 0:
        rp.results_of(77)
    if keyfields["x"] == 1:
        rp.results_where(z=1)
    rp.save_snapshot({"open": sys})
study.execute(run)
"""
    )
    first, second, third = (row[0] for row in study.database.query("SELECT error FROM exp ORDER BY ID"))
    assert "SelectorError: table exp has no experiment 77" in first
    assert "SelectorError: table exp has no keyfield 'z'" in second
    assert "TypeError: state['open'] is of type module" in third
    assert study.statuses() == {"error": 3}
