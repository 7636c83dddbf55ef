"""`pyexpd db export`, `merge`, `restore`, and the same from Python, between SQLite and servers."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.project import Project
from tests.e2e.study import Study

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
Make = Callable[..., Project]

SAVING = """
def saving(keyfields, rp, custom):
    rp.process_logs({"epochs": {"loss": 0.5}})
    rp.save_snapshot({"x": keyfields["x"]}, keep=1)
    if keyfields["x"] == 3:
        raise ValueError("three")
    return {"y": keyfields["x"] / 3}
"""


@pytest.fixture
def make_saving(make_project: Make) -> Make:
    def make(**options: Any) -> Project:
        project = make_project(function="saving", logtables={"epochs": {"loss": "DOUBLE"}}, **options)
        path = project.folder / "experiments.py"
        path.write_text(path.read_text() + SAVING)
        project.fill()
        return project

    return make


def say(project: Project, *arguments: str) -> str:
    done = project.pyexpd(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(project: Project, *arguments: str, code: int = 64) -> str:
    done = project.pyexpd(*arguments)
    assert done.returncode == code, (done.returncode, done.stderr)
    assert done.stdout == ""
    return done.stderr


def other_config(project: Project, database: str, *, rows: int | None = None) -> Path:
    """The configuration of an SQLite database in the same folder."""
    content = yaml.safe_load(project.config.read_text())
    content["PY_EXPERIMENTER"]["Database"] |= {"provider": "sqlite", "database": str(project.folder / database)}
    if rows is not None:
        content["PY_EXPERIMENTER"]["Database"]["table"]["keyfields"]["x"]["values"] = list(range(rows))
    path = project.folder / f"{database}.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@both
def test_export_and_merge_back(make_saving: Make) -> None:
    project = make_saving(rows=6)
    assert say(project, "db", "export", "before.db", "--dry-run") == "would have added 6, took 0, 0 the same\n"
    assert not (project.folder / "before.db").exists()
    assert say(project, "db", "export", "before.db") == "added 6, took 0, 0 the same\n"
    project.pyexpd("run", "--until-empty")
    assert say(project, "db", "export", "some.db", "--status", "done") == "added 5, took 0, 0 the same, 5 snapshots\n"
    assert say(project, "db", "export", "before.db", "--dry-run") == "would have added 0, took 6, 0 the same\n"
    assert "this replaces 6 experiments; it was not confirmed" in refusal(project, "db", "export", "before.db")
    assert say(project, "db", "export", "before.db", "--yes") == "added 0, took 6, 0 the same, 6 snapshots\n"
    told = json.loads(say(project, "db", "export", "before.db", "--json"))
    assert (told["same"], told["kept"], told["conflicts"], told["snapshots"]) == (5, 1, [], 0)

    assert project.pyexpd("delete", "all", "--yes").returncode == 0
    assert "this adds 6 experiments" in refusal(project, "db", "merge", "before.db")
    assert say(project, "db", "merge", "before.db", "--yes") == "added 6, took 0, 0 the same, 6 snapshots\n"
    assert say(project, "db", "merge", "some.db") == "added 0, took 0, 5 the same\n"
    assert project.statuses() == {"done": 5, "error": 1}
    assert project.database.query("SELECT ID, y FROM exp WHERE x = 2") == [(3, 2 / 3)]
    assert len(project.attempts()) == 6
    assert project.database.query("SELECT COUNT(*) FROM exp__epochs") == [(6,)]
    shown = say(project, "show", "4")
    assert "ValueError: three" in shown
    assert "1 snapshot" in shown


@both
def test_two_results_are_listed_and_nothing_is_done_until_one_is_preferred(make_saving: Make) -> None:
    project = make_saving(rows=3)
    project.pyexpd("run", "--until-empty")
    say(project, "db", "export", "other.db")
    config = other_config(project, "other")
    script = (
        "from pyexp_daemon.experimenter import PyExperimenter\n"
        "PyExperimenter('other.yml', use_codecarbon=False).complete_experiment(2, {'y': 9.0})"
    )
    subprocess.run([sys.executable, "-c", script], cwd=project.folder, check=True, capture_output=True)
    error = refusal(project, "db", "merge", str(config))
    assert "1 experiment done in both with different results: 2 and 2 (x=1): y 9.0 and 0.333" in error
    assert "  --prefer ours or --prefer theirs; --dry-run lists them, and no experiment was changed" in error
    listed = say(project, "db", "merge", str(config), "--dry-run")
    assert listed.startswith("conflict: 2 and 2 (x=1): y 9.0 and 0.333")
    assert say(project, "db", "merge", str(config), "--prefer", "ours") == "added 0, took 0, 2 the same, 1 kept\n"
    assert say(project, "db", "merge", str(config), "--prefer", "theirs", "--yes").startswith("added 0, took 1, 2 the")
    assert project.database.query("SELECT y FROM exp WHERE ID = 2") == [(9.0,)]


@both
def test_what_cannot_be_merged_is_one_line_and_changes_nothing(make_saving: Make) -> None:
    project = make_saving(rows=3)
    (project.folder / "no.db").write_text("this is no database at all, and yet it has the name of one")
    for other, text, code in (
        ("nowhere.db", "database nowhere.db does not exist", 74),
        ("no.db", "cannot be opened: file is not a database", 74),
        ("nowhere.yml", "nowhere.yml", 64),
    ):
        done = project.pyexpd("db", "merge", other, "--yes")
        assert done.returncode in (code, 69, 74), (other, done.returncode, done.stderr)
        assert text in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2
    assert project.statuses() == {"created": 3}
    assert not (project.folder / "nowhere.db").exists()


@both
def test_restore_goes_on_fills_refuses_and_overwrites(make_saving: Make) -> None:
    project = make_saving(rows=3)
    project.pyexpd("run", "--max-experiments", "1")
    assert say(project, "db", "restore") == "3 experiments, as configured\n"
    content = yaml.safe_load(project.config.read_text())
    content["PY_EXPERIMENTER"]["Database"]["table"]["keyfields"]["x"]["values"] = [2, 5]
    project.config.write_text(yaml.safe_dump(content, sort_keys=False))
    error = refusal(project, "db", "restore")
    assert "1 only in the configuration (x=5), 2 only in the table (x=0; x=1)" in error
    assert "this deletes 3 experiments with their results" in refusal(project, "db", "restore", "--overwrite")
    assert project.statuses() == {"done": 1, "created": 2}
    assert say(project, "db", "restore", "--overwrite", "--dry-run").startswith("would delete 3 experiments")
    told = json.loads(say(project, "db", "restore", "--overwrite", "--yes", "--json"))
    assert told == {"dry_run": False, "there": 3, "deleted": 3, "added": 2}
    assert project.database.query("SELECT x, status FROM exp ORDER BY ID") == [(2, "created"), (5, "created")]
    assert project.pyexpd("db", "drop", "--yes").returncode == 0
    assert say(project, "db", "restore") == "added 2\n"


def test_databases_from_python(make_study: Callable[..., Study]) -> None:
    study = make_study(rows=4)
    study.run(
        """
from pyexp_daemon.database import export_db, merge_databases, open_db, restore_from_db
study = experimenter()
study.fill_table_from_config()
study.execute(lambda keyfields: {"y": keyfields["x"] * 0.1}, max_experiments=2)

with open_db("pyexpd.yml") as ours, export_db(ours, "copy.db") as copy, open_db(in_memory=True) as memory:
    assert ours.tables == copy.tables == ["exp"], (ours.tables, copy.tables)
    assert memory.tables == []
    assert [each.results["y"] for each in copy.get_experiments("exp", "done")] == [0.0, 0.1]
    assert copy.completed_ratio("exp") == 0.5
    assert merge_databases(memory, copy) == {"exp": {"added": 4}}
    assert merge_databases(memory, copy) == {"exp": {"same": 2, "kept": 2}}
    assert memory.get_experiment("exp", 2) == copy.get_experiment("exp", 2)
    assert list(memory.get_progress("exp")["done"]) == [True, True, False, False]
    study.execute(lambda keyfields: {"y": keyfields["x"] * 0.1})
    study.complete_experiment(1, {"y": 5.0})
    try:
        merge_databases(copy, ours)
    except exceptions.UsageError as error:
        note(error)
    assert copy.completed_ratio("exp") == 0.5
    assert merge_databases(copy, ours, prefer="secondary") == {"exp": {"taken": 3, "same": 1}}
    assert copy.get_experiment("exp", 1).results["y"] == 5.0
    assert len(copy.get_logtable("exp", "steps")) == 0
    try:
        copy.get_table("nothing")
    except exceptions.SelectorError as error:
        note(error)
assert restore_from_db("pyexpd.yml") == 4
text = pathlib.Path("pyexpd.yml").read_text()
pathlib.Path("pyexpd.yml").write_text(text.replace("- 3\\n", "- 7\\n"))
try:
    restore_from_db("pyexpd.yml")
except exceptions.TableHasWrongStructureError as error:
    note(error)
assert restore_from_db("pyexpd.yml", overwrite=True) == 0
for arguments in ((), ("a.db",)):
    try:
        open_db(*arguments, in_memory=bool(arguments))
    except ValueError as error:
        note(error)
"""
    )
    conflict, missing, differs, *wrong = study.notes()
    assert "1 experiments are done in both with different results" in conflict
    assert "has no experiment table 'nothing'" in missing
    assert "1 only in the configuration (x=7), 1 only in the table (x=3)" in differs
    assert wrong == ["name a file, or in_memory=True"] * 2


@both
def test_python_knows_result_fields_that_were_added_later(make_study: Callable[..., Study]) -> None:
    """And leaves no column behind of which it does not know whether it is one."""
    study = make_study(rows=1)
    study.run(
        """
from pyexp_daemon.database import export_db, open_db
study = experimenter()
study.fill_table_from_config()
text = pathlib.Path("pyexpd.yml").read_text()
pathlib.Path("pyexpd.yml").write_text(text.replace("y: DOUBLE\\n", "y: DOUBLE\\n        z: DOUBLE\\n"))
study = experimenter()
study.fill_table_from_config()
study.execute(lambda keyfields: {"y": 1.0, "z": 2.0})
with open_db("pyexpd.yml") as ours, export_db(ours, "copy.db") as copy:
    assert copy.get_experiment("exp", 1).results == {"y": 1.0, "z": 2.0}
"""
    )
    study.database.query("ALTER TABLE exp ADD COLUMN mine INT")
    study.run(
        """
from pyexp_daemon.database import export_db, open_db
with open_db("pyexpd.yml") as ours:
    try:
        export_db(ours, "other.db")
    except exceptions.TableHasWrongStructureError as error:
        note(error)
assert not pathlib.Path("other.db").exists()
"""
    )
    (refused,) = study.notes()
    assert refused.endswith("has columns of its own at its end: mine")


@both
def test_python_refuses_a_table_of_pyexperimenter_before_it_makes_anything(make_study: Callable[..., Study]) -> None:
    study = make_study(rows=1)
    study.run("experimenter().fill_table_from_config()")
    study.run(
        """
from pyexp_daemon.database import export_db, open_db
import subprocess
subprocess.run([sys.executable, "-m", "pyexp_daemon", "db", "release", "--yes"], check=True, capture_output=True)
with open_db("pyexpd.yml") as ours:
    try:
        export_db(ours, "copy.db")
    except exceptions.SchemaVersionError as error:
        note(error)
assert not pathlib.Path("copy.db").exists()
"""
    )
    assert "has not been adopted yet" in study.notes()[0]


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_a_merge_that_is_killed_is_gone_on_with(make_saving: Make) -> None:
    """By SIGKILL, in the middle of it."""
    project = make_saving(rows=600)
    say(project, "db", "export", "all.db")
    assert project.pyexpd("delete", "all", "--yes").returncode == 0
    for _ in range(2):
        done = project.pyexpd("db", "merge", "all.db", "--yes", PYEXPD_FAILPOINTS="unpack.committed=kill@2")
        assert done.returncode < 0
    assert project.statuses() == {"created": 400}  # the second went no further than the first
    assert say(project, "db", "merge", "all.db", "--yes") == "added 200, took 0, 0 the same, 400 kept\n"
    assert project.database.query("SELECT COUNT(DISTINCT x), MAX(ID) FROM exp") == [(600, 600)]


@both
def test_rows_that_fill_has_not_marked_are_those_of_the_configuration(make_saving: Make) -> None:
    project = make_saving(rows=3)
    project.pyexpd("run", "--until-empty")
    assert project.pyexpd("db", "release", "--yes").returncode == 0  # as PyExperimenter has it
    assert say(project, "db", "restore") == "3 experiments, as configured\n"
    assert say(project, "db", "export", "copy.db") == "added 3, took 0, 0 the same\n"
    project.pyexpd("db", "release", "--yes")
    assert say(project, "db", "merge", "copy.db") == "added 0, took 0, 3 the same\n"
    assert project.statuses() == {"done": 3}


@both
def test_what_is_only_read_stays_as_it_is(make_saving: Make) -> None:
    project = make_saving(rows=3)
    say(project, "db", "export", "other.db")
    other = project.folder / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    before = other.read_bytes()
    assert say(project, "db", "merge", "other.db") == "added 0, took 0, 0 the same, 3 kept\n"
    assert other.read_bytes() == before
    assert not other.with_name("other.db-wal").exists()


@both
def test_restore_refuses_a_table_of_pyexperimenter_without_touching_it(make_saving: Make) -> None:
    project = make_saving(rows=3)
    assert project.pyexpd("db", "release", "--yes").returncode == 0
    tables = "SELECT sql FROM sqlite_master" if project.database.server is None else "SHOW TABLES"
    before = project.database.query(tables)
    content = yaml.safe_load(project.config.read_text())
    content["PY_EXPERIMENTER"]["Database"]["table"]["keyfields"]["x"]["values"] = [2, 5]
    project.config.write_text(yaml.safe_dump(content, sort_keys=False))
    assert "1 only in the configuration (x=5)" in refusal(project, "db", "restore")
    assert "this deletes 3 experiments" in refusal(project, "db", "restore", "--overwrite")
    assert project.database.query(tables) == before
    assert say(project, "db", "restore", "--overwrite", "--yes").startswith("deleted 3 experiments")


@both
def test_dry_runs_and_refusals_make_nothing_of_what_is_not_there(make_saving: Make) -> None:
    project = make_saving(rows=3)
    say(project, "db", "export", "copy.db")
    assert project.pyexpd("db", "drop", "--yes").returncode == 0
    tables = "SELECT COUNT(*) FROM sqlite_master" if project.database.server is None else "SHOW TABLES"
    before = project.database.query(tables)
    assert say(project, "db", "merge", "copy.db", "--dry-run") == "would have added 3, took 0, 0 the same\n"
    assert say(project, "db", "restore", "--dry-run") == "would add 3\n"
    assert "this adds 3 experiments; it was not confirmed" in refusal(project, "db", "merge", "copy.db")
    assert project.database.query(tables) == before
    assert say(project, "db", "merge", "copy.db", "--yes") == "added 3, took 0, 0 the same\n"


@both
def test_a_merge_looks_at_a_table_of_pyexperimenter_before_it_changes_it(make_saving: Make) -> None:
    project = make_saving(rows=3)
    project.pyexpd("run", "--until-empty")
    say(project, "db", "export", "copy.db")
    assert project.pyexpd("db", "release", "--yes").returncode == 0
    project.database.query("UPDATE exp SET y = 7 WHERE x = 1")
    project.database.query("UPDATE exp SET status = 'created', y = NULL WHERE x = 2")
    tables = "SELECT sql FROM sqlite_master" if project.database.server is None else "SHOW TABLES"
    before = project.database.query(tables)
    assert "would have added 0, took 1, 1 the same, 1 in conflict" in say(
        project, "db", "merge", "copy.db", "--dry-run"
    )
    assert "1 experiment done in both with different results" in refusal(project, "db", "merge", "copy.db")
    assert "this replaces 1 experiment" in refusal(project, "db", "merge", "copy.db", "--prefer", "ours")
    assert project.database.query(tables) == before
    merged = say(project, "db", "merge", "copy.db", "--prefer", "ours", "--yes")
    assert merged == "added 0, took 1, 1 the same, 1 kept, 3 snapshots\n"
    assert project.database.query("SELECT y FROM exp ORDER BY x") == [(0.0,), (7.0,), (2 / 3,)]


@both
def test_a_table_that_runs_is_not_overwritten_nor_said_to_be(make_saving: Make) -> None:
    project = make_saving(rows=3)
    content = yaml.safe_load(project.config.read_text())
    content["PY_EXPERIMENTER"]["Database"]["table"]["keyfields"]["x"]["values"] = [5]
    project.config.write_text(yaml.safe_dump(content, sort_keys=False))
    assert say(project, "db", "restore", "--overwrite", "--dry-run").startswith("would delete 3 experiments")
    project.database.query("UPDATE exp SET status = 'running' WHERE x = 1")
    for option in ("--dry-run", "--yes"):
        assert "1 experiments of table exp are running" in refusal(project, "db", "restore", "--overwrite", option)


@both
def test_copies_are_known_again_in_a_table_that_was_released(make_saving: Make) -> None:
    project = make_saving(rows=3)
    content = yaml.safe_load(project.config.read_text())
    content["PY_EXPERIMENTER"]["Database"]["table"]["keyfields"]["x"]["values"] = {"repeat": [1, 4]}
    project.config.write_text(yaml.safe_dump(content, sort_keys=False))
    assert say(project, "db", "restore", "--overwrite", "--yes").endswith("added 4\n")
    before = project.database.query("SELECT ID, pyexpd_fingerprint FROM exp ORDER BY ID")
    assert project.pyexpd("db", "release", "--yes").returncode == 0
    assert say(project, "db", "restore", "--dry-run") == "4 experiments, as configured\n"
    say(project, "db", "create")  # which gives a fingerprint to the first of equal rows
    for _ in range(2):
        assert say(project, "db", "restore") == "4 experiments, as configured\n"
    assert project.database.query("SELECT ID, pyexpd_fingerprint FROM exp ORDER BY ID") == before
    project.database.query("DELETE FROM exp WHERE ID = (SELECT MAX(ID) FROM (SELECT ID FROM exp) e)")
    assert "1 only in the configuration (x=1)" in refusal(project, "db", "restore")
    # It comes back without a fingerprint, beside rows that have theirs.
    insert = "INSERT INTO exp (x, status, creation_date) SELECT x, status, creation_date FROM exp WHERE ID = 4"
    project.database.query(insert.replace("ID = 4", "ID = (SELECT MIN(ID) FROM exp)"))
    assert say(project, "db", "restore") == "4 experiments, as configured\n"


@both
def test_a_dry_run_says_what_would_be_refused(make_saving: Make) -> None:
    project = make_saving(rows=3)
    names = ("snapshot_parts", "snapshots", "attempts")
    for name in ("exp__epochs", *(f"exp__pyexpd_{each}" for each in names), "exp"):
        project.database.query(f"DROP TABLE {name}")
    for option in ("--dry-run", "--yes"):
        assert "table exp is gone, but the tables beside it are" in refusal(project, "db", "restore", option)
