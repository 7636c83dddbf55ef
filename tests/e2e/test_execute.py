"""`PyExperimenter.execute`: a daemon inside a call, in scripts and beside others."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.project import PYEXPD, is_alive
from tests.e2e.study import Study
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
        _, errors = script.communicate(timeout=30)
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
        wait_until(lambda: len(study.database.query(names)) == 3, timeout=60, what="three that work")
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
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = make_study(codecarbon=OFFLINE).run(code)
    assert [line.split() for line in done.stdout.splitlines()][1:] == [
        [str(x), str(x), f"{x**2:.1f}", "done"] for x in range(4)
    ]
