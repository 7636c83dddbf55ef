"""`PyExperimenter.execute`: a daemon inside a call, in scripts and beside others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.project import PYEXPD, is_alive
from tests.e2e.study import PRELUDE, Study
from tests.helpers import wait_until

Make = Callable[..., Study]

WAITING = """
def run(keyfields, result_processor, custom):
    note("start", keyfields["x"], os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    study = experimenter()
    study.fill_table_from_config()
    study.execute(run, n_jobs=2)
"""


def test_a_function_of_the_script_runs_by_value_and_is_heard(make_study: Make) -> None:
    study = make_study(custom={"offset": 0.5, "nested": {"a": 1}}, n_jobs=2)
    done = study.run(
        """
        factor = 10

        def run(keyfields, result_processor, custom):
            print("hello from", keyfields["x"], "äöü 🎲")
            print("and", file=sys.stderr)
            result_processor.process_logs({"steps": {"loss": 1.5}})
            if keyfields["x"] == 1:
                raise ValueError("no such luck")
            if keyfields["x"] == 2:
                return ExperimentStatus.PAUSED
            result_processor.process_results({"y": factor * keyfields["x"] + custom["offset"] + custom["nested"]["a"]})

        study = experimenter(name="job 7")
        study.fill_table_from_config()
        study.execute(run)
        """.replace("\n        ", "\n")
    )
    assert [tuple(row) for row in study.rows_of()] == [
        (1, "done", 1.5),
        (2, "error", None),
        (3, "paused", None),
        (4, "done", 31.5),
    ]
    assert all(f"hello from {x} äöü 🎲" in done.stdout for x in range(4))
    assert "ValueError: no such luck" in done.stderr
    assert "no such luck" in study.rows_of("error")[1][0]
    assert {row[0] for row in study.rows_of("name")} == {"job 7"}
    assert len(study.database.query("SELECT * FROM exp__steps")) == 4


def test_so_many_are_run_and_fewer_are_an_error(make_study: Make) -> None:
    study = make_study()
    study.run(
        """
def run(keyfields):
    note(keyfields["x"])

study = experimenter()
study.fill_table_from_config()
study.execute(run, max_experiments=3, n_jobs=2)
assert len(open("journal").readlines()) == 3
study.execute(run, max_experiments=0)
try:
    study.execute(run, max_experiments=2)
except exceptions.NoExperimentsLeftException as error:
    print(error)
else:
    raise AssertionError
study.execute(run)  # nothing is left, and that is no error
"""
    )
    assert sorted(study.notes()) == ["0", "1", "2", "3"]
    assert study.statuses() == {"done": 4}


def test_inside_a_running_event_loop_and_in_a_thread(make_study: Make) -> None:
    study = make_study()
    study.run(
        """
import asyncio

def run(keyfields):
    return {"y": keyfields["x"] + 1}

study = experimenter()
study.fill_table_from_config()

async def main():
    study.execute(run, max_experiments=2)
    await asyncio.sleep(0)

asyncio.run(main())
thread = threading.Thread(target=study.execute, args=(run,))
thread.start()
thread.join()
"""
    )
    assert [row[2] for row in study.rows_of()] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)], ids=["INT", "TERM"]
)
def test_an_interrupt_hands_back_what_runs_and_then_has_its_usual_effect(
    make_study: Make, number: signal.Signals, code: int
) -> None:
    study = make_study()
    with study.running(WAITING) as script:
        study.wait_for_notes(2)
        script.send_signal(number)
        _, errors = script.communicate(timeout=120)
        assert script.returncode == code, errors
    assert study.statuses() == {"created": 4}
    assert study.rows_of("pyexpd_token, pyexpd_tries, start_date") == [(None, None, None)] * 4
    assert [outcome for _, _, outcome in study.attempts()] == ["released"] * 2
    for line in study.notes():
        assert not is_alive(int(line.split()[2]))


def test_the_script_keeps_its_signals_its_children_and_its_log(make_study: Make) -> None:
    study = make_study()
    study.run(
        """
import structlog, subprocess
structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
before = structlog.get_config()
mine = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"], start_new_session=True)

from pyexp_daemon.worker import pool
pool._LONGEST_WATCH_S = 0.2  # how long a daemon leaves orphans alone

def run(keyfields):
    time.sleep(3)

study = experimenter()
study.fill_table_from_config()
study.execute(run, n_jobs=4)
study.execute(run, max_experiments=-1)
assert mine.wait() == 7
assert structlog.get_config() == before
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
"""
    )
    assert study.statuses() == {"done": 4}


def test_a_killed_script_leaves_its_experiments_to_the_next(make_study: Make) -> None:
    study = make_study()
    with study.running(WAITING) as script:
        study.wait_for_notes(2)
        script.kill()
        script.wait()
    study.run("experimenter().execute(lambda keyfields: note('again', keyfields['x']))")
    assert study.statuses() == {"done": 4}
    assert sum(line.startswith("again") for line in study.notes()) == 4
    assert sorted(outcome for _, _, outcome in study.attempts()) == ["done"] * 4 + ["lost"] * 2
    for line in study.notes()[:2]:
        assert not is_alive(int(line.split()[2]))


def test_a_function_that_cannot_be_sent_or_called_costs_no_experiment(make_study: Make) -> None:
    study = make_study()
    done = study.run(
        """
import types
study = experimenter()
study.fill_table_from_config()
lock = threading.Lock()
gone = types.ModuleType("gone")
exec("def run(keyfields): pass", gone.__dict__)
sys.modules["gone"] = gone

def waits(keyfields):
    lock.acquire()

def needs_four(a, b, c, d): ...

for function in (waits, needs_four, gone.run):
    try:
        study.execute(function)
    except exceptions.FunctionError as error:
        print(error)
    else:
        raise AssertionError(function)
"""
    )
    waits, needs_four, gone = done.stdout.splitlines()
    assert waits.startswith("waits cannot be sent to a child process: TypeError: ")
    assert needs_four == "needs_four takes 4 positional arguments"
    assert gone == "No module named 'gone'" or "ModuleNotFoundError: No module named 'gone'" in gone
    assert study.statuses() == {"created": 4}
    assert study.attempts() == []


def test_modules_beside_the_script_and_custom_objects_reach_the_children(make_study: Make) -> None:
    study = make_study()
    elsewhere = study.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "helpers.py").write_text("def double(x):\n    return 2.0 * x\n")
    study.run(
        """
sys.path.append("elsewhere")
import helpers

class Scale:
    def __init__(self, by): self.by = by

def run(keyfields, result_processor, custom):
    custom["seen"].append(keyfields["x"])
    assert custom["seen"] == [keyfields["x"]]  # a fresh copy for each
    result_processor.process_results({"y": helpers.double(keyfields["x"]) * custom["scale"].by})

study = experimenter()
study.config.custom_configuration.custom_values.update(scale=Scale(3), seen=[])
study.fill_table_from_config()
study.execute(run)
"""
    )
    assert [row[2] for row in study.rows_of()] == [0.0, 6.0, 12.0, 18.0]


def test_a_crash_is_retried_within_the_call(make_study: Make) -> None:
    study = make_study(rows=2)
    study.run(
        """
def run(keyfields, result_processor):
    if keyfields["x"] == 1 and result_processor.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)

study = experimenter()
study.fill_table_from_config()
study.execute(run)
"""
    )
    assert study.statuses() == {"done": 2}
    assert study.attempts() == [(1, 1, "done"), (2, 1, "crash"), (2, 2, "done")]


def test_it_shows_up_among_the_daemons_and_can_be_stopped_there(make_study: Make) -> None:
    from pyexp_daemon.cli.main import main

    study = make_study(daemon={"heartbeat": "0.3s", "lease": "3s", "drain_timeout": "1s"})
    with study.running(WAITING) as script:
        study.wait_for_notes(2)
        with pytest.raises(SystemExit) as ended:
            main(["daemon", "-c", str(study.config), "stop", "--all"])
        assert not ended.value.code
        assert script.wait(30) == 0
    assert study.statuses() == {"created": 4}


TOGETHER = """
from experiments import run

study = experimenter(name=sys.argv[0].rpartition("/")[2])
study.execute(run, n_jobs=4)
"""


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_two_calls_and_a_daemon_on_one_table_run_each_experiment_once(make_study: Make) -> None:
    study = make_study(rows=500, function="experiments:run", n_jobs=4)
    (study.folder / "experiments.py").write_text(
        """
import os, pathlib, time

def run(keyfields, result_processor, custom):
    with open("journal", "a") as journal:
        journal.write(f"{keyfields['x']}\\n")
    while not pathlib.Path("gate").exists():  # nobody is done before everybody has begun
        time.sleep(0.01)
    return {"y": keyfields["x"] * 2.0}
"""
    )
    study.run("experimenter().fill_table_from_config()")
    daemon = [PYEXPD, "run", "--until-empty", "--name", "daemon"]
    names = "SELECT DISTINCT name FROM exp WHERE status = 'running'"
    with study.running(TOGETHER) as one, study.running(TOGETHER) as other, study.started(daemon) as third:
        wait_until(lambda: len(study.database.query(names)) == 3, timeout=120, what="three that work")
        (study.folder / "gate").touch()
        for process in (one, other, third):
            _, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors
    assert sorted(map(int, study.notes())) == list(range(500))
    assert study.statuses() == {"done": 500}
    assert [y for _, _, y in study.rows_of()] == [x * 2.0 for x in range(500)]
    assert [outcome for _, _, outcome in study.attempts()] == ["done"] * 500


OFFLINE = {"offline_mode": True, "country_iso_code": "DEU"}


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_emissions_are_tracked_unless_declined(make_study: Make) -> None:
    study = make_study(rows=2, codecarbon=OFFLINE)
    done = study.run(
        """
def run(keyfields):
    sum(range(10**6))
    if keyfields["x"] == 1:
        raise ValueError

study = PyExperimenter("pyexpd.yml")
study.fill_table_from_config()
study.execute(run)
study.add_experiment_and_execute({"x": 7}, lambda keyfields: None)
table = study.get_codecarbon_table()
print(sorted(table["experiment_id"]), set(table["country_iso_code"]), (table["energy_consumed_kw"] > 0).all())
PyExperimenter("pyexpd.yml", use_codecarbon=False).add_experiment_and_execute({"x": 8}, lambda keyfields: None)
print(len(study.get_codecarbon_table()))
""",
        timeout=120,
    )
    assert done.stdout.splitlines() == ["[1, 2, 3] {'DEU'} True", "3"]
    assert not [path.name for path in study.folder.iterdir() if "codecarbon" in path.name or "emissions" in path.name]


def test_every_way_to_run_in_python_has_the_store(make_study: Make) -> None:
    study = make_study(rows=4, store="stored:load", custom={"factor": 3.0})
    made = "open('made', 'a').write('once more\\n')"
    (study.folder / "stored.py").write_text(f"def load(custom):\n    {made}\n    return dict(custom)\n")
    study.run(
        """
study = experimenter()
study.fill_table_from_config()
def run(keyfields, result_processor, custom):
    return {"y": result_processor.store["factor"] * keyfields["x"]}
study.execute(run, n_jobs=2)
assert study.attach(lambda result_processor: result_processor.store["factor"], 1) == 3.0
study.add_experiment_and_execute({"x": 9}, run)
assert sorted(study.get_table()["y"]) == [0.0, 3.0, 6.0, 9.0, 27.0]
study.config.custom_configuration.custom_values["factor"] = 4.0
assert study.attach(lambda result_processor: result_processor.store["factor"], 1) == 4.0
"""
    )
    # Two slots, if both had an experiment, and this process: once more there when the custom fields are others.
    assert len((study.folder / "made").read_text().splitlines()) in (3, 4)


def test_without_codecarbon_one_warning_and_the_run_goes_on(make_study: Make) -> None:
    study = make_study(rows=2, codecarbon=OFFLINE)
    done = study.run(
        """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "codecarbon" else find(name, *rest)
study = PyExperimenter("pyexpd.yml")
study.fill_table_from_config()
study.execute(lambda keyfields: None, max_experiments=1)
study.execute(lambda keyfields: None)
assert "codecarbon" not in sys.modules
"""
    )
    assert done.stderr.count("Emissions are not tracked, for codecarbon is not installed") == 1
    assert study.statuses() == {"done": 2}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_example_of_the_documentation_runs(make_study: Make) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "python.md").read_text()
    code, *others = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    study = make_study(codecarbon=OFFLINE)
    done = study.run(code)
    assert [line.split() for line in done.stdout.splitlines()][1:] == [
        [str(x), str(x), f"{x**2:.1f}", "done"] for x in range(4)
    ]
    assert len(others) == 2
    for other in others:
        study.run(other)


def test_serial_mode_runs_everything_in_this_process_beside_others(make_study: Make) -> None:
    study = make_study(rows=5, limits={"tries": {"error": 2}, "backoff": {"first": "50ms", "longest": "50ms"}})
    study.run(
        """
study = experimenter()
study.fill_table_from_config()
here, seen = os.getpid(), []
def run(keyfields, result_processor, custom):
    assert os.getpid() == here
    seen.append(keyfields["x"])
    result_processor.process_logs({"steps": {"loss": 1.0}})
    if keyfields["x"] == 2 and seen.count(2) == 1:
        raise ValueError("the first time")
    return {"y": keyfields["x"] * 2.0}
study.execute(run, mode="serial", max_experiments=2)
assert seen == [0, 1]
study.execute(run, mode="serial", progress=True)
assert (seen[:3], sorted(seen[3:])) == ([0, 1, 2], [2, 3, 4]), seen
try:
    study.execute(run, mode="serial", max_experiments=1)
except exceptions.NoExperimentsLeftException:
    note("none left")
try:
    study.execute(run, mode="threads")
except ValueError as error:
    note(error)
assert len(study.get_logtable("steps")) == 6
"""
    )
    assert study.notes() == ["none left", "mode is 'threads'; there are 'processes' and 'serial'"]
    assert study.rows_of() == [(x + 1, "done", x * 2.0) for x in range(5)]
    assert study.attempts() == [
        (1, 1, "done"),
        (2, 1, "done"),
        (3, 1, "error"),
        (3, 2, "done"),
        (4, 1, "done"),
        (5, 1, "done"),
    ]
    assert study.database.query("SELECT DISTINCT state FROM exp__pyexpd_daemons") == [("stopped",)]


def test_serial_mode_obeys_commands(make_study: Make) -> None:
    study = make_study(rows=3, daemon={"heartbeat": "100ms", "lease": "2s"})
    code = """
study = experimenter()
study.fill_table_from_config()
def run(keyfields, result_processor, custom):
    note("runs", keyfields["x"])
    if keyfields["x"] == 1:
        while not result_processor.should_stop:
            time.sleep(0.01)
    else:
        while not os.path.exists("go"):
            time.sleep(0.01)
study.execute(run, mode="serial")
"""

    def tell(command: str) -> str:
        done = subprocess.run(
            [PYEXPD, "daemon", command, "--all"], cwd=study.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with study.running(code) as process:
        study.wait_for_notes(1)
        assert "paused, 1 running go on" in tell("pause")
        assert "refused: what runs in a script cannot be broken off" in tell("reset")
        assert "refused: a script reads its configuration once" in tell("reload")
        (study.folder / "go").touch()
        wait_until(lambda: study.statuses() == {"done": 1, "created": 2}, timeout=120)
        assert "resumed" in tell("resume")
        study.wait_for_notes(2)
        assert "draining, 1 running" in tell("drain")
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert study.notes() == ["runs 0", "runs 1"]
    assert study.statuses() == {"done": 2, "created": 1}


ONE_HERE = """
import time

def run(keyfields, result_processor, custom):
    with open("journal", "a") as journal:
        journal.write("runs\\n")
    while not result_processor.should_stop:
        time.sleep(0.01)
    return {"y": 1.0}
"""
"""An experiment that goes on until it is told."""


@pytest.mark.parametrize(
    "call",
    [
        "study.add_experiment_and_execute({'x': 7}, run)",
        "study.unpause_experiment(1, run)",
        "",
    ],
    ids=["add", "unpause", "here"],
)
def test_one_experiment_in_this_process_obeys_commands(make_study: Make, call: str) -> None:
    study = make_study(rows=1, function="one.py:run", daemon={"heartbeat": "100ms", "lease": "2s"})
    (study.folder / "one.py").write_text(ONE_HERE)
    study.run("experimenter().fill_table_from_config()")
    if "unpause" in call:
        study.database.query("UPDATE exp SET status = 'paused'")
    here = [PYEXPD, "run", "1", "--here"]

    def tell(command: str) -> str:
        told = [PYEXPD, "daemon", command, "--all"]
        done = subprocess.run(told, cwd=study.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    script = f"from one import run\nstudy = experimenter()\n{call}"
    with study.running(script) if call else study.started(here) as process:
        study.wait_for_notes(1)
        assert "paused, 1 running go on" in tell("pause")
        assert "resumed" in tell("resume")
        assert "refused: what runs in a script cannot be broken off" in tell("reset")
        ((facts,),) = study.database.query("SELECT facts FROM exp__pyexpd_daemons")
        assert json.loads(facts)["queues"] == []  # so that nobody takes it for one that takes experiments
        assert process.poll() is None
        assert "draining, 1 running" in tell("drain")
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert (study.statuses()["done"], study.rows_of("y")[-1]) == (1, (1.0,))


UNTIL_GO = """
study = experimenter()
study.fill_table_from_config()
def run(keyfields, result_processor, custom):
    note("runs", keyfields["x"])
    while not os.path.exists("go"):
        time.sleep(0.01)
study.execute(run, mode="serial")
"""
"""A script whose experiments end when there is a file."""


def test_serial_mode_that_is_declared_dead_while_it_is_paused_hears_again(make_study: Make) -> None:
    study = make_study(rows=2, daemon={"heartbeat": "100ms", "lease": "2s"})
    daemons = "exp__pyexpd_daemons"

    def tell(command: str) -> None:
        subprocess.run([PYEXPD, "daemon", command, "--all"], cwd=study.folder, check=True, capture_output=True)

    with study.running(UNTIL_GO) as process:
        study.wait_for_notes(1)
        tell("pause")
        listed = [PYEXPD, "daemon", "list"]
        wait_until(
            lambda: "paused" in subprocess.run(listed, cwd=study.folder, capture_output=True, text=True).stdout,
            timeout=120,
        )
        (study.folder / "go").touch()
        wait_until(lambda: study.statuses() == {"done": 1, "created": 1}, timeout=120)
        study.database.query(f"UPDATE {daemons} SET state = 'dead' WHERE state = 'live'")
        live = f"SELECT COUNT(*) FROM {daemons} WHERE state = 'live'"
        wait_until(lambda: study.database.query(live) == [(1,)], timeout=120)
        tell("resume")
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert study.statuses() == {"done": 2}


def test_serial_mode_that_is_paused_when_all_is_done_returns(make_study: Make) -> None:
    study = make_study(rows=1, daemon={"heartbeat": "100ms", "lease": "2s"})
    with study.running(UNTIL_GO) as process:
        study.wait_for_notes(1)
        subprocess.run([PYEXPD, "daemon", "pause", "--all"], cwd=study.folder, check=True, capture_output=True)
        (study.folder / "go").touch()
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert study.statuses() == {"done": 1}


@pytest.mark.parametrize("mode", ["serial", "processes"])
def test_who_is_told_to_end_does_not_say_that_none_was_left(make_study: Make, mode: str) -> None:
    study = make_study(rows=2, daemon={"heartbeat": "100ms", "lease": "2s"})
    code = f"""
study = experimenter()
study.fill_table_from_config()
def run(keyfields, result_processor, custom):
    note("runs", keyfields["x"])
    while not result_processor.should_stop:
        time.sleep(0.01)
study.execute(run, mode="{mode}", max_experiments=2)
note("returned")
"""
    with study.running(code) as process:
        study.wait_for_notes(1)
        subprocess.run([PYEXPD, "daemon", "drain", "--all"], cwd=study.folder, check=True, capture_output=True)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert study.notes() == ["runs 0", "returned"]
    assert study.statuses() == {"done": 1, "created": 1}


def test_what_is_cancelled_in_serial_mode_should_stop_and_the_next_should_not(make_study: Make) -> None:
    study = make_study(rows=2, daemon={"heartbeat": "100ms", "lease": "2s"})
    code = """
study = experimenter()
study.fill_table_from_config()
def run(keyfields, result_processor, custom):
    note("runs", keyfields["x"])
    end = time.monotonic() + (20 if keyfields["x"] == 0 else 0.5)
    while not result_processor.should_stop and time.monotonic() < end:
        time.sleep(0.01)
    note("stop" if result_processor.should_stop else "end", keyfields["x"])
    return ExperimentStatus.CREATED if result_processor.should_stop else None
study.execute(run, mode="serial")
"""
    with study.running(code) as process:
        study.wait_for_notes(1)
        cancel = [PYEXPD, "cancel", "1", "--yes"]
        subprocess.run(cancel, cwd=study.folder, check=True, capture_output=True, timeout=120)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert study.notes() == ["runs 0", "stop 0", "runs 1", "end 1"]
    assert study.statuses() == {"cancelled": 1, "done": 1}


def test_an_interrupt_in_serial_mode_hands_back_what_runs(make_study: Make) -> None:
    study = make_study(rows=3)
    code = """
study = experimenter()
study.fill_table_from_config()
def run(keyfields, result_processor, custom):
    note("runs", keyfields["x"])
    time.sleep(0 if keyfields["x"] == 0 else 60)
study.execute(run, mode="serial")
"""
    with study.running(code) as process:
        study.wait_for_notes(2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert "KeyboardInterrupt" in errors
    assert study.statuses() == {"done": 1, "created": 2}
    assert study.attempts() == [(1, 1, "done"), (2, 1, "released")]


def test_a_bar_advances_on_a_terminal_and_leaves_what_is_printed_alone(make_study: Make) -> None:
    study = make_study(rows=6)
    code = """
study = experimenter(log_level="ERROR")
study.fill_table_from_config()
def run(keyfields, result_processor, custom):
    print("x is", keyfields["x"], flush=True)
    time.sleep(0.2)
study.execute(run, n_jobs=2, progress=True)
"""
    (study.folder / "bar.py").write_text(PRELUDE + code)
    command = f"{sys.executable} bar.py > printed"
    shown = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        cwd=study.folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stdout
    counts = [int(count) for count in re.findall(r"(\d)/6", shown.stdout)]
    assert counts[0] == 0
    assert counts[-1] == 6
    assert counts == sorted(counts)
    assert sorted((study.folder / "printed").read_text().splitlines()) == [f"x is {x}" for x in range(6)]


def test_experiments_are_read_completed_and_opened_again(make_study: Make) -> None:
    study = make_study(rows=3, logtables={})
    study.run(
        """
study = experimenter()
study.create_table(create_database=True)
assert (study.completed_ratio(), study.get_experiments()) == (None, [])
study.fill_table_from_config()
study.execute(lambda keyfields: {"y": 1 / keyfields["x"]})
first, second, third = study.get_experiments()
assert (first.status, first.results, first.is_done) == ("error", {"y": None}, False), first
assert "ZeroDivisionError" in first.error
assert (second.id, second.keyfields, second.results, second.is_done) == (2, {"x": 1}, {"y": 1.0}, True)
assert study.get_experiments("error") == study.get_experiments(ExperimentStatus.ERROR) == [first]
assert study.completed_ratio() == 2 / 3
study.complete_experiment(1, {"y": 0.5})
assert study.get_experiment(1).results == {"y": 0.5} and study.get_experiment(1).error is None
study.mark_incomplete(2)
study.mark_incomplete(2)
assert (study.get_experiment(2).status, study.get_experiment(2).results) == ("created", {"y": 1.0})
assert list(study.get_progress()["done"]) == [True, False, True]
for call in (
    lambda: study.get_experiment(9), lambda: study.complete_experiment(9, {}), lambda: study.mark_incomplete(9)
):
    try:
        call()
    except exceptions.SelectorError as error:
        note(error)
try:
    study.complete_experiment(1, {"z": 1})
except exceptions.InvalidResultFieldError as error:
    note(error)
"""
    )
    assert study.notes() == ["table exp has no experiment 9"] * 3 + ["no such result field: z"]


def test_what_runs_is_superseded_by_results_of_a_person(make_study: Make) -> None:
    study = make_study(rows=1, daemon={"heartbeat": "100ms", "lease": "1s"})
    code = """
study = experimenter()
study.fill_table_from_config()
def run(keyfields):
    note("runs")
    time.sleep(60)
study.execute(run)
"""
    with study.running(code) as process:
        study.wait_for_notes(1)
        study.run("experimenter().complete_experiment(1, {'y': 7.0})")
        assert process.wait(30) == 0
    assert study.rows_of() == [(1, "done", 7.0)]
    assert [outcome for _, _, outcome in study.attempts()] == ["superseded"]


def test_a_space_of_variables_is_filled_in_its_order_with_its_copies(make_study: Make) -> None:
    keyfields = {"x": {"type": "INT"}, "kind": {"type": "VARCHAR(9)"}, "tag": {"type": "INT"}}
    study = make_study(keyfields=keyfields)
    study.run(
        """
from pyexp_daemon.space import Iterable, Match, Repeat
study = experimenter()
space = {"x": Iterable([2, 1]), "kind": Repeat("a", 2), "tag": Match([7, 7, 7, 7])}
for _ in range(2):
    study.fill_table_from_space(space)
try:
    study.fill_table_from_space({**space, "tag": Match([7])})
except ValueError as error:
    note(error)
"""
    )
    assert study.database.query("SELECT ID, x, kind, tag FROM exp ORDER BY ID") == [
        (1, 2, "a", 7),
        (2, 1, "a", 7),
        (3, 2, "a", 7),
        (4, 1, "a", 7),
    ]
    assert "1" in study.notes()[0]
    assert "4" in study.notes()[0]


def test_serial_mode_waits_for_its_own_queue_only_and_for_what_died_here(make_study: Make) -> None:
    study = make_study(rows=3, daemon={"heartbeat": "200ms", "lease": "2s"})
    code = """
import multiprocessing
study = experimenter()
study.fill_table_from_config()
def run(keyfields):
    note("runs", keyfields["x"])
    if keyfields["x"] == 0 and not pathlib.Path("died").exists():
        pathlib.Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"y": keyfields["x"] * 1.0}
study.execute(run, mode="serial")
"""
    assert study.run(code, check=False).returncode == -signal.SIGKILL
    assert study.statuses() == {"running": 1, "created": 2}
    connection = study.database.connect()
    connection.cursor().execute(
        "UPDATE exp SET status = 'waiting', pyexpd_queue = 'gpu',"
        f" pyexpd_not_before = {'9e9' if study.database.server is None else repr('2999-01-01')} WHERE ID = 3"
    )
    connection.close()
    study.run(code, timeout=120)
    assert study.rows_of() == [(1, "done", 0.0), (2, "done", 1.0), (3, "waiting", None)]
    assert study.attempts() == [(1, 1, "lost"), (1, 2, "done"), (2, 1, "done")]


def test_serial_mode_begins_anew_when_it_was_declared_dead(make_study: Make) -> None:
    study = make_study(rows=3)
    study.run(
        """
study = experimenter()
study.fill_table_from_config()
def run(keyfields, result_processor):
    if keyfields["x"] == 0 and result_processor.attempt == 1:
        for sql in ("UPDATE exp__pyexpd_daemons SET state = 'dead'", "UPDATE exp SET status = 'created',"
                    " pyexpd_token = NULL, pyexpd_daemon = NULL, pyexpd_attempt = 1 WHERE ID = 1"):
            with study.db_connector.connect() as connection:
                connection.cursor().execute(sql)
                connection.commit()
    return {"y": keyfields["x"] * 1.0}
study.execute(run, mode="serial")
assert study.completed_ratio() == 1.0
"""
    )
    assert study.rows_of() == [(x + 1, "done", x * 1.0) for x in range(3)]
    assert study.database.query("SELECT COUNT(*) FROM exp__pyexpd_daemons") == [(2,)]


def test_a_table_of_pyexperimenter_is_completed_before_it_is_changed(make_study: Make) -> None:
    study = make_study(rows=1, logtables={})
    connection = study.database.connect()
    key = "AUTOINCREMENT" if study.database.server is None else "AUTO_INCREMENT"
    made = (
        f"CREATE TABLE exp (ID INTEGER PRIMARY KEY {key}, x INT, creation_date DATETIME, status VARCHAR(255),"
        " start_date DATETIME, name LONGTEXT, machine VARCHAR(255), y DOUBLE, end_date DATETIME, error LONGTEXT)"
    )
    for sql in (made, "INSERT INTO exp (x, status) VALUES (7, 'created')"):
        connection.cursor().execute(sql)
    connection.close()
    study.run(
        """
study = experimenter()
study.complete_experiment(1, {"y": 2.5})
study.mark_incomplete(1)
assert study.snapshots(1) == []
assert study.get_experiment(1).results == {"y": 2.5}
"""
    )
    assert study.statuses() == {"created": 1}


@pytest.mark.parametrize("mode", ["serial", "processes"])
def test_two_callers_in_one_process_do_not_take_each_other_for_dead(make_study: Make, mode: str) -> None:
    study = make_study(rows=12, daemon={"heartbeat": "200ms", "lease": "30s"})
    study.run(
        f"""
studies = [experimenter(), experimenter()]
studies[0].fill_table_from_config()
def run(keyfields):
    time.sleep(0.3)
    return {{"y": 1.0}}
threads = [threading.Thread(target=each.execute, args=(run,), kwargs={{"mode": "{mode}"}}) for each in studies]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    )
    assert study.statuses() == {"done": 12}
    assert {outcome for _, _, outcome in study.attempts()} == {"done"}
    assert study.database.query("SELECT DISTINCT state FROM exp__pyexpd_daemons") == [("stopped",)]


def test_serial_mode_ends_when_the_table_gets_a_keyfield_that_it_does_not_know(make_study: Make) -> None:
    study = make_study(rows=3)
    study.run(
        """
study = experimenter()
study.fill_table_from_config()
def run(keyfields):
    with study.db_connector.connect() as connection:
        connection.cursor().execute("INSERT INTO exp__pyexpd_meta (name, value) VALUES ('keyfield_1', 'k')")
        connection.commit()
    return {"y": 1.0}
try:
    study.execute(run, mode="serial")
except exceptions.TableHasWrongStructureError as error:
    note(error)
"""
    )
    assert study.notes() == ["table exp has a new keyfield k"]
    assert study.statuses() == {"done": 1, "created": 2}
    assert study.database.query("SELECT COUNT(*) FROM exp__pyexpd_daemons") == [(1,)]
