"""A table of the real PyExperimenter 1.4.2, taken over as it is; and what that can still do with it afterwards."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import pyexperimenter
from tests.databases import Database
from tests.e2e.project import PYEXPD
from tests.e2e.study import Study
from tests.helpers import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the first test makes PyExperimenter's environment
    pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True),
]
OFFLINE = {"offline_mode": True, "country_iso_code": "DEU"}
COLUMNS = "ID, x, creation_date, status, start_date, name, machine, y, end_date, error"
WORK = """
import os, pathlib, time


def run(keyfields, result_processor, custom):
    with open("journal", "a") as journal:
        journal.write(f"{os.environ.get('WHO', 'we')} {keyfields['x']}\\n")
    while not pathlib.Path("gate").exists():
        time.sleep(0.01)
    result_processor.process_logs({"steps": {"loss": 0.5}})
    result_processor.process_results({"y": keyfields["x"] * 2.0})
"""
HALF = """
def run(keyfields, result_processor, custom):
    result_processor.process_logs({"steps": {"loss": 0.25}})
    if keyfields["x"] == 1:
        raise ValueError("no such luck")
    if keyfields["x"] == 2:
        return ExperimentStatus.PAUSED
    result_processor.process_results({"y": keyfields["x"] + 0.5})

if __name__ == "__main__":
    study = experimenter(use_codecarbon=True, name="before")
    study.fill_table_from_config()
    study.execute(run, max_experiments=4)
    study.fill_table_with_rows([{"x": 20}, {"x": 20}])
"""


@dataclass
class Before(Study):
    """The same folder and scripts with PyExperimenter's name for the package."""

    def _command(self, code: str) -> list[str]:
        _, script = super()._command(code)
        Path(script).write_text(Path(script).read_text().replace("pyexp_daemon", "py_experimenter"))
        return [str(pyexperimenter.python()), script]

    def _place(self) -> dict[str, Any]:
        return {"cwd": self.folder, "env": {**pyexperimenter.environment(self.database), "WHO": "they"}}


@pytest.fixture
def make_both(database: Database, tmp_path: Path) -> Callable[..., tuple[Before, Study]]:
    """Makes one folder for both packages."""

    def make(*, rows: int, **options: Any) -> tuple[Before, Study]:
        described = {"n_jobs": 1, "function": "experiments:run", **options}
        both = (Before(database, tmp_path, rows, described), Study(database, tmp_path, rows, described))
        (tmp_path / "experiments.py").write_text(WORK)
        return both

    return make


def pyexpd(study: Study, *arguments: str) -> subprocess.CompletedProcess[str]:
    with study.started([PYEXPD, *arguments]) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return subprocess.CompletedProcess(arguments, 0, output, errors)


def test_a_half_run_table_is_taken_over_and_finished(make_both: Callable[..., tuple[Before, Study]]) -> None:
    before, study = make_both(rows=8, codecarbon=OFFLINE)
    before.run(HALF, timeout=120)
    before.run("experimenter().execute(lambda *_: os._exit(9), max_experiments=1)", check=False)
    contents = {
        "exp": f"SELECT {COLUMNS} FROM exp ORDER BY ID",
        "exp__steps": "SELECT ID, experiment_id, timestamp, loss FROM exp__steps ORDER BY ID",
        "exp_codecarbon": "SELECT * FROM exp_codecarbon ORDER BY ID",
    }
    there = {name: study.database.query(sql) for name, sql in contents.items()}
    assert [row[3] for row in there["exp"]] == [
        *("done", "error", "paused", "done", "running", "created", "created", "created", "created", "created")
    ]
    assert [len(there[name]) for name in ("exp__steps", "exp_codecarbon")] == [4, 4]

    filled = pyexpd(study, "fill")

    assert "added 0, 8 already there" in filled.stdout
    assert re.search(r"\b10\b.*\b9\b", filled.stderr), filled.stderr
    assert {name: study.database.query(sql) for name, sql in contents.items()} == there

    (study.folder / "gate").touch()
    pyexpd(study, "run", "--until-empty")

    now = {name: study.database.query(sql) for name, sql in contents.items()}
    assert now["exp"][:5] == there["exp"][:5]
    assert [(row[1], row[3], row[7]) for row in now["exp"][5:]] == [(x, "done", x * 2.0) for x in (5, 6, 7, 20, 20)]
    assert {name: rows[:4] for name, rows in now.items()} == {name: rows[:4] for name, rows in there.items()}
    assert [len(now[name]) for name in ("exp__steps", "exp_codecarbon")] == [9, 9]

    study.run(
        """
import experiments
study = experimenter()
study.unpause_experiment(3, experiments.run)
study.reset_experiments("running", "error")
study.execute(experiments.run)
"""
    )
    assert study.statuses() == {"done": 10}
    assert [row[2] for row in study.rows_of()] == [0.5, 2.0, 4.0, 3.5, *(x * 2.0 for x in (4, 5, 6, 7, 20, 20))]


def test_what_it_can_still_do_with_our_table(make_both: Callable[..., tuple[Before, Study]]) -> None:
    before, study = make_both(rows=6)
    (study.folder / "gate").touch()
    study.run(
        """
from experiments import run
study = experimenter()
study.fill_table_from_config()
study.execute(run, max_experiments=2)
"""
    )
    read = f"""
from pandas import option_context
with option_context("display.width", 1000, "display.max_columns", None):
    print(experimenter().get_table()[{COLUMNS.split(", ")}])
    print(experimenter().get_logtable("steps")[["experiment_id", "timestamp", "loss"]])
"""
    before.run(
        """
study = experimenter()
for fill in (study.create_table, study.fill_table_from_config, lambda: study.fill_table_with_rows([{"x": 77}])):
    try:
        fill()
    except exceptions.TableHasWrongStructureError:
        continue
    raise AssertionError(fill)
"""
    )
    before.run(
        """
from experiments import run

def fail(keyfields, result_processor, custom):
    raise ValueError("no such luck")

def pause(keyfields, result_processor, custom):
    return ExperimentStatus.PAUSED

study = experimenter(name="they")
study.execute(fail, max_experiments=1)
study.execute(pause, max_experiments=1)
study.execute(run)
study.unpause_experiment(4, run)
"""
    )
    assert study.rows_of("ID, status, y, name") == [
        (1, "done", 0.0, "PyExperimenter"),
        (2, "done", 2.0, "PyExperimenter"),
        (3, "error", None, "they"),
        *((number, "done", (number - 1) * 2.0, "they") for number in (4, 5, 6)),
    ]
    assert before.run(read).stdout == study.run(read).stdout
    assert len(study.database.query("SELECT ID FROM exp__steps")) == 5
    if study.database.server:  # it would lose rows if it went on, for it takes hidden columns for visible ones
        assert "ValueError" in before.run("experimenter().reset_experiments('error')", check=False).stderr
    study.run("experimenter().reset_experiments('error'); experimenter().execute(lambda keyfields: {'y': 0.25})")
    assert study.rows_of()[2] == (3, "done", 0.25)


def test_the_way_back(make_both: Callable[..., tuple[Before, Study]]) -> None:
    """A table that we made and half ran is PyExperimenter's after `db release`, and ours again after `fill`."""
    before, study = make_both(rows=4)
    (study.folder / "gate").touch()
    pyexpd(study, "fill")
    pyexpd(study, "run", "--max-experiments", "2")
    with study.started([PYEXPD, "db", "release", "--dry-run"]) as process:
        shown, _ = process.communicate(timeout=60)
    assert "DROP TABLE IF EXISTS `exp__pyexpd_meta`" in shown
    content = study.rows_of(COLUMNS)

    said = pyexpd(study, "db", "release", "--yes").stdout

    assert said == "released table exp; 0 experiments put back to created\n"
    assert pyexpd(study, "db", "release").stdout == "nothing to take out: table exp is as PyExperimenter makes it\n"
    assert study.rows_of("*") == content
    before.run(
        """
from experiments import run
study = experimenter()
study.create_table()
study.fill_table_with_rows([{"x": 3}, {"x": 4}])
study.execute(run, max_experiments=2)
assert list(study.get_table()["x"]) == [0, 1, 2, 3, 4]
"""
    )
    assert "added 0, 4 already there" in pyexpd(study, "fill").stdout
    pyexpd(study, "run", "--until-empty")
    assert [tuple(row) for row in study.rows_of()] == [(x + 1, "done", x * 2.0) for x in range(5)]


def test_both_work_at_the_same_time(make_both: Callable[..., tuple[Before, Study]]) -> None:
    """Begun by PyExperimenter, adopted under its hands, and finished by both."""
    before, study = make_both(rows=150)
    before.run("experimenter().fill_table_from_config()")
    with before.running("from experiments import run\nexperimenter().execute(run, n_jobs=2)") as theirs:
        before.wait_for_notes(2)
        pyexpd(study, "fill")
        with study.started([PYEXPD, "run", "--until-empty", "--slots", "2"]) as ours:
            # Both of our slots hold one each, for theirs can finish all others before we look again.
            wait_until(lambda: workers(study)["we"] == 2, timeout=60, what="our first two experiments")
            (study.folder / "gate").touch()
            for process in (theirs, ours):
                _, errors = process.communicate(timeout=200)
                assert process.returncode == 0, errors
    assert study.statuses() == {"done": 150}
    assert [y for _, _, y in study.rows_of()] == [x * 2.0 for x in range(150)]
    runs = Counter(study.notes())
    assert {line.split()[1] for line in runs} == {str(x) for x in range(150)}
    # On SQLite both of its jobs may have taken the same one, and all others are done while they look for more.
    assert workers(study)["they"] >= (2 if study.database.server else 1)
    assert workers(study)["we"] >= 2
    assert {line: count for line, count in runs.items() if line.startswith("we") and count > 1} == {}
    if study.database.server:  # on SQLite it takes rows that others, its own jobs too, took a moment ago
        assert sum(runs.values()) == 150


def workers(study: Study) -> Counter[str]:
    return Counter(line.split()[0] for line in study.notes())
