"""From one version to the next, and to other fields, on a table that daemons work on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyexp_daemon.store import migrations
from tests.e2e.project import KILL, TERM, Project
from tests.helpers import FIXTURES, wait_until

Make = Callable[..., Project]

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

BEATS = {"heartbeat": "500ms", "lease": "30s"}

FACTS_OF_OLD = "SELECT facts FROM exp__pyexpd_daemons WHERE name = 'old'"
BEATS_OF_OLD = "SELECT beat FROM exp__pyexpd_daemons WHERE name = 'old'"

GATED = """

def gated(keyfields, rp, custom):
    note(custom, "start", rp)
    while keyfields["x"] >= 6 and not os.path.exists(custom["journal"] + ".go"):
        time.sleep(0.02)
    rp.process_results({"y": keyfields["x"] * 2.0})
    note(custom, "end", rp)
"""
"""All but the first six experiments run until they are told to end."""


@pytest.fixture(scope="session")
def version_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as it was when the schema had version 1."""
    folder = tmp_path_factory.mktemp("version-1")
    with zipfile.ZipFile(FIXTURES / "schema-1" / "pyexp_daemon.zip") as package:
        package.extractall(folder)
    return folder


@pytest.fixture
def make_gated(make_project: Make) -> Make:
    def make(**options: Any) -> Project:
        project = make_project(function="gated", daemon=BEATS, **options)
        with (project.folder / "experiments.py").open("a") as functions:
            functions.write(GATED)
        return project

    return make


def open_gate(project: Project) -> None:
    Path(f"{project.journal}.go").touch()


def wait_for_claim(project: Project, daemon: str) -> None:
    """Wait until a daemon of this name holds an experiment; others may have claimed some ahead."""
    claimed = f"SELECT COUNT(*) FROM exp WHERE status = 'running' AND name = '{daemon}'"
    wait_until(lambda: project.database.query(claimed)[0][0], timeout=120, interval=0.05, what=f"a claim of {daemon}")


def as_of(package: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(package)}


def then(project: Project, package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the package of then."""
    return subprocess.run(
        [sys.executable, "-m", "pyexp_daemon", *arguments],
        cwd=project.folder,
        env=as_of(package),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@contextmanager
def daemon_of_then(project: Project, package: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon of the package of then, killed in the end if it still runs."""
    with (project.folder / "daemon-of-then").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pyexp_daemon", "run", *arguments],
            cwd=project.folder,
            env=as_of(package),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def version_of(project: Project) -> dict[str, str]:
    return dict(project.database.query("SELECT name, value FROM exp__pyexpd_meta WHERE name IN ('version', 'oldest')"))


def change_config(project: Project, change: Callable[[dict[str, Any]], None]) -> None:
    content = yaml.safe_load(project.config.read_text())
    change(content["PY_EXPERIMENTER"])
    project.config.write_text(yaml.safe_dump(content, sort_keys=False))


def say(project: Project, *arguments: str, code: int = 0) -> str:
    done = project.pyexpd(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def refusal(project: Project, *arguments: str, code: int) -> list[str]:
    """The line and the hint with which a command is refused."""
    done = project.pyexpd(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    return done.stderr.removeprefix("pyexpd: ").splitlines()


@both
def test_table_is_upgraded_under_an_old_daemon_and_emptied_by_an_old_and_a_new_one(
    make_gated: Make, version_1: Path
) -> None:
    """Each experiment runs once, some under each daemon, and the upgrade stops neither."""
    project = make_gated(rows=200, n_jobs=2)
    filled = then(project, version_1, "fill")
    assert filled.returncode == 0, filled.stderr
    assert version_of(project) == {"version": "1", "oldest": "1"}
    with daemon_of_then(project, version_1, "--until-empty", "--name", "old") as old:
        project.wait_for(done=6, running=2, timeout=120)
        assert refusal(project, "run", code=69) == [
            f"table exp has schema 1, this pyexp_daemon needs {migrations.VERSION}",
            "  pyexpd db upgrade (or pyexpd fill) brings it up to date; daemons of older versions go on working",
        ]
        shown = say(project, "db", "upgrade", "--dry-run")
        assert shown.splitlines()[0] == f"upgrades table exp from schema 1 to schema {migrations.VERSION}"
        assert "  schema 2: commands to daemons, and what they say of themselves\n    CREATE TABLE" in shown
        assert "too old" not in shown
        assert shown.endswith("dry run: nothing was changed\n")
        assert version_of(project)["version"] == "1"
        count = shown.count(";\n")

        done = say(project, "db", "upgrade", "--yes")

        assert done == f"upgraded table exp from schema 1 to schema {migrations.VERSION} ({count} statements)\n"
        assert version_of(project) == {"version": str(migrations.VERSION), "oldest": "1"}
        assert old.poll() is None
        with project.daemon("--until-empty", "--name", "new") as new:
            wait_for_claim(project, "new")
            open_gate(project)
            assert project.end(new, timeout=120) == 0
            assert old.wait(60) == 0
    assert project.statuses() == {"done": 200}
    assert {experiment: len(times) for experiment, times in project.runs().items()} == dict.fromkeys(range(1, 201), 1)
    names = dict(project.database.query("SELECT name, COUNT(*) FROM exp GROUP BY name"))
    assert set(names) == {"old", "new"}
    assert [(number, outcome) for number, _, outcome in project.attempts()] == [(n, "done") for n in range(1, 201)]
    assert say(project, "db", "upgrade") == f"table exp has schema {migrations.VERSION}: nothing to do\n"
    assert "up to date" not in say(project, "db", "version")


@both
def test_upgrade_asks_first(make_project: Make, version_1: Path) -> None:
    project = make_project()
    assert refusal(project, "db", "upgrade", code=74)[1] == "  pyexpd fill creates and fills it"
    assert then(project, version_1, "fill").returncode == 0
    assert refusal(project, "db", "upgrade", code=64) == [
        f"this upgrades table exp from schema 1 to schema {migrations.VERSION}; it was not confirmed",
        "  add --yes, or --dry-run to look only",
    ]
    assert version_of(project)["version"] == "1"
    assert "pyexpd db upgrade (or pyexpd fill) brings it up to date" in say(project, "db", "version")
    assert say(project, "fill") == "added 0, 5 already there\n"
    assert version_of(project)["version"] == str(migrations.VERSION)
    document = json.loads(say(project, "db", "version", "--json"))
    assert (document["schema"], document["up_to_date"]) == (migrations.VERSION, True)


@both
@pytest.mark.parametrize("command", ["status", "show 1", "logs 1", "daemon list", "metrics"])
def test_commands_on_an_old_table_say_what_to_do(make_project: Make, version_1: Path, command: str) -> None:
    project = make_project()
    assert then(project, version_1, "fill").returncode == 0
    assert refusal(project, *command.split(), code=69) == [
        f"table exp has schema 1, this pyexp_daemon needs {migrations.VERSION}",
        "  pyexpd db upgrade (or pyexpd fill) brings it up to date; daemons of older versions go on working",
    ]


@both
def test_table_that_is_too_new_is_refused_and_one_that_is_newer_is_not(make_project: Make) -> None:
    """What counts is the oldest version that may work on it."""
    project = make_project(rows=2)
    project.fill()
    project.database.query("UPDATE exp__pyexpd_meta SET value = '99' WHERE name = 'version'")
    change_config(project, lambda content: content["Database"]["table"]["keyfields"]["x"].update(values=[0, 1, 2]))
    assert say(project, "fill") == "added 1, 2 already there\n"
    assert say(project, "db", "upgrade") == "table exp has schema 99: nothing to do\n"
    assert project.pyexpd("run", "--until-empty").returncode == 0
    assert version_of(project) == {"version": "99", "oldest": "1"}
    project.database.query("UPDATE exp__pyexpd_meta SET value = '99' WHERE name = 'oldest'")
    for command in ("run", "fill", "db upgrade --yes", "db drop --yes"):
        assert refusal(project, *command.split(), code=69) == [
            f"table exp has schema 99, this pyexp_daemon knows none newer than {migrations.VERSION}",
            "  upgrade pyexp_daemon on this node",
        ]
    assert project.statuses() == {"done": 3}


@both
def test_fields_are_added_beside_a_daemon_that_does_not_know_them(make_gated: Make) -> None:
    """The statements are shown before they run; a daemon that needs the fields says so until they are there."""
    project = make_gated(rows=100, n_jobs=1)
    project.fill()
    with project.daemon("--until-empty", "--name", "old") as old:
        project.wait_for(done=6, running=1)

        def extend(content: dict[str, Any]) -> None:
            content["Database"]["table"]["resultfields"]["z"] = "INT"

        change_config(project, extend)
        assert refusal(project, "run", "--name", "new", code=64) == [
            "table exp has no column z",
            "  pyexpd fill adds result fields that the table lacks; --dry-run shows how",
        ]
        dry = say(project, "fill", "--dry-run").splitlines()
        assert dry[0].startswith("ALTER TABLE `exp` ADD COLUMN `z` INT")
        done = project.pyexpd("fill")
        assert done.stdout == "added 0, 100 already there\n"
        assert done.stderr.splitlines() == [
            f"configuration {project.config}, database {_database(done.stderr)}, table exp",
            f"pyexpd: table exp is changed: {dry[0]}",
        ]
        change_config(project, lambda content: content["Database"].update(logtables={"epochs": {"loss": "DOUBLE"}}))
        assert refusal(project, "run", "--name", "new", code=64) == [
            "table exp has no logtable epochs",
            "  pyexpd fill adds logtables that are missing; --dry-run shows how",
        ]
        assert "pyexpd: table exp is changed: CREATE TABLE IF NOT EXISTS `exp__epochs`" in project.pyexpd("fill").stderr
        with project.daemon("--until-empty", "--name", "new") as new:
            wait_for_claim(project, "new")
            open_gate(project)
            assert project.end(new) == 0
        assert project.end(old) == 0
    assert project.statuses() == {"done": 100}
    assert {len(times) for times in project.runs().values()} == {1}
    assert set(project.database.query("SELECT name FROM exp")) == {("old",), ("new",)}


def _database(stderr: str) -> str:
    return stderr.partition("database ")[2].partition(", table")[0]


def add_keyfield_to_config(project: Project, values: list[Any], *, sql_type: str = "DOUBLE") -> None:
    def extend(content: dict[str, Any]) -> None:
        content["Database"]["table"]["keyfields"]["k"] = {"type": sql_type, "values": values}

    change_config(project, extend)


@both
def test_keyfield_is_added_beside_a_daemon_that_does_not_know_it(make_gated: Make) -> None:
    """What runs goes on; what others than it would run as if it had the keyfield, it leaves to them."""
    project = make_gated(rows=30, n_jobs=1)
    project.fill()
    with project.daemon("--name", "old") as daemon:
        project.wait_for(done=6, running=1)
        add_keyfield_to_config(project, [0.5, 1.5])
        assert refusal(project, "fill", code=64) == [
            "table exp has no column k",
            "  pyexpd db add-keyfield k --value V adds it, or give the table another name",
        ]
        assert refusal(project, "db", "add-keyfield", "k", "--value", "0.5", code=64) == [
            "this gives 30 experiments of table exp k = 0.5; it was not confirmed",
            "  add --yes, or --dry-run to look only",
        ]
        wait_until(lambda: project.database.query(FACTS_OF_OLD) != [(None,)], timeout=120, what="facts")
        shown = say(project, "db", "add-keyfield", "k", "--value", "0.5", "--dry-run")
        assert shown.startswith(
            "gives 30 experiments of table exp k = 0.5\n  ALTER TABLE `exp` ADD COLUMN `k` DOUBLE DEFAULT NULL"
        )
        assert "\n  claims nothing more until it is restarted: daemon old on " in shown
        done = say(project, "db", "add-keyfield", "k", "--value", "0.5", "--yes")
        assert done == "added keyfield k: 30 experiments got 0.5\n"
        assert daemon.poll() is None
        assert say(project, "fill") == "added 30, 30 already there\n"
        reason = "the table has a new keyfield k: restart this daemon with the present configuration"
        wait_until(lambda: reason in say(project, "status"), timeout=120, interval=0.2, what="the pause in status")
        open_gate(project)  # not before: what was claimed ahead of the new keyfield would begin until it is noticed
        wait_until(lambda: project.statuses() == {"done": 7, "created": 53}, timeout=120, what="the end of what runs")
        assert project.pyexpd("daemon", "resume", "--all").returncode == 0
        ((beats,),) = project.database.query(BEATS_OF_OLD)
        wait_until(lambda: project.database.query(BEATS_OF_OLD)[0][0] > beats + 4, timeout=120, what="more heartbeats")
        wait_until(lambda: reason in say(project, "status"), interval=0.2, what="the pause again")
        assert project.statuses() == {"done": 7, "created": 53}
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    assert project.database.query("SELECT DISTINCT k FROM exp WHERE status = 'done'") == [(0.5,)]
    assert project.pyexpd("run", "--until-empty").returncode == 0
    assert project.statuses() == {"done": 60}
    assert {len(times) for times in project.runs().values()} == {1}
    assert project.database.query("SELECT k, COUNT(*) FROM exp GROUP BY k ORDER BY k") == [(0.5, 30), (1.5, 30)]


@on_sqlite
def test_daemons_that_do_not_notice_a_new_keyfield_are_named_before(make_gated: Make, version_1: Path) -> None:
    project = make_gated(rows=10)
    assert then(project, version_1, "fill").returncode == 0
    with daemon_of_then(project, version_1, "--name", "old"):
        wait_for_claim(project, "old")
        assert say(project, "db", "upgrade", "--yes")
        add_keyfield_to_config(project, [0.5])
        shown = say(project, "db", "add-keyfield", "k", "--value", "0.5", "--dry-run")
        assert "\n  too old to notice (or just started), end it before pyexpd fill: daemon old on " in shown


@on_sqlite
def test_value_with_a_line_break_stays_in_one_line(make_project: Make) -> None:
    project = make_project(rows=2)
    project.fill()
    add_keyfield_to_config(project, ["a\nb"], sql_type="VARCHAR(20)")
    done = say(project, "db", "add-keyfield", "k", "--value", '"a\\nb"', "--yes")
    assert done.count("\n") == 1
    done = say(project, "fill")
    assert project.statuses() == {"created": 2}, done


@both
def test_drop_is_refused_whole_while_a_users_table_refers_to_the_experiments(make_project: Make) -> None:
    project = make_project(rows=3, logtables={"epochs": {"loss": "DOUBLE"}})
    project.fill()
    project.database.query(
        "CREATE TABLE notes (ID INTEGER PRIMARY KEY, of INTEGER, FOREIGN KEY (of) REFERENCES exp (ID))"
    )
    assert refusal(project, "db", "drop", "--yes", code=64) == [
        "notes refers to table exp by a foreign key, so it cannot be dropped",
        "  drop the foreign key first, or that table",
    ]
    assert say(project, "fill") == "added 0, 3 already there\n"
    project.database.query("DROP TABLE notes")
    project.database.query("CREATE TABLE exp__notes (ID INTEGER PRIMARY KEY)")
    shown = say(project, "db", "drop", "--dry-run")
    assert "  stays, for it is none of its tables: exp__notes\n" in shown
    project.database.query("DROP TABLE exp__epochs")
    project.database.query("DROP TABLE exp")
    assert say(project, "db", "drop", "--yes") == "dropped table exp: 0 experiments, 0 with results\n"
    assert refusal(project, "db", "drop", "--yes", code=74)[0] == "table exp does not exist"
    assert project.database.query("SELECT * FROM exp__notes") == []
    project.fill()


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "first", "hint"),
    [
        ("kk --value 1", "has no keyfield 'kk'", "did you mean 'k'?"),
        ("other --value 1", "has no keyfield 'other'", "add it to the keyfields first, with its type"),
        ("k --value big", "--value big: keyfield k: 'big' is not a number (DOUBLE)", "use VARCHAR(255)"),
        ("k --value {", "--value {: '{' is no value", "as in the configuration: 3, 0.1, true, null, text, or"),
        ("x --value 1", "table exp has a keyfield x already", "pyexpd fill fills the table as it is"),
        ("k", "missing option '--value'", "pyexpd db add-keyfield --help shows what it takes"),
    ],
)
def test_keyfield_that_cannot_be_added(make_project: Make, arguments: str, first: str, hint: str) -> None:
    project = make_project(rows=2)
    project.fill()
    add_keyfield_to_config(project, [1])
    before = project.database.query("SELECT * FROM exp")
    said = refusal(project, "db", "add-keyfield", *arguments.split(), "--yes", code=64)
    assert len(said) == 2
    assert first in said[0]
    assert hint in said[1]
    assert project.database.query("SELECT * FROM exp") == before


@on_sqlite
def test_fill_of_version_1_is_refused_once_a_keyfield_was_added(make_project: Make, version_1: Path) -> None:
    """It knows nothing of it, and its configuration lacks it: it would add every experiment a second time."""
    project = make_project(rows=3)
    project.fill()
    before = project.config.read_text()
    assert then(project, version_1, "fill").returncode == 0
    assert version_of(project)["version"] == "1"  # so it did: it wrote its own version, whatever was there
    assert say(project, "db", "upgrade", "--yes").endswith(f"to schema {migrations.VERSION} (0 statements)\n")
    add_keyfield_to_config(project, [1])
    assert say(project, "db", "add-keyfield", "k", "--value", "1", "--yes")
    project.config.write_text(before)
    assert then(project, version_1, "fill").returncode == 69
    assert refusal(project, "fill", code=64) == [
        "table exp has a keyfield k that the configuration does not name",
        "  add it to the keyfields, or give the table another name",
    ]
    assert project.statuses() == {"created": 3}


@on_sqlite
def test_value_that_the_configuration_does_not_list_is_a_warning(make_project: Make) -> None:
    project = make_project(rows=2)
    project.fill()
    add_keyfield_to_config(project, [1.5, 2.5])
    done = project.pyexpd("db", "add-keyfield", "k", "--value", "null", "--yes")
    assert done.returncode == 0
    assert "null is not among the values of k, so fill adds experiments anew" in done.stderr
    assert say(project, "fill") == "added 4, 0 already there\n"


@both
def test_keyfield_whose_adding_was_killed_is_completed_by_the_same_command(make_project: Make) -> None:
    """In between the table is refused, for a half of its experiments has no value."""
    project = make_project(rows=20_000)
    project.fill()
    add_keyfield_to_config(project, [7], sql_type="INT")
    command = ("db", "add-keyfield", "k", "--value", "7", "--yes")
    killed = project.pyexpd(*command, PYEXPD_FAILPOINTS="_give_value.committed=kill@2")
    assert killed.returncode == -KILL
    ((given,),) = project.database.query("SELECT COUNT(*) FROM exp WHERE k = 7")
    assert 0 < given < 20_000
    for refused in ("fill", "run", "db upgrade"):
        assert refusal(project, *refused.split(), code=69) == [
            "table exp: keyfield k is being added, and not all experiments have it yet",
            "  pyexpd db add-keyfield k --value 7 goes on where it was stopped",
        ]
    assert say(project, *command) == "added keyfield k: 20000 experiments got 7\n"
    assert project.database.query("SELECT COUNT(*) FROM exp WHERE k = 7") == [(20_000,)]
    assert say(project, "fill") == "added 0, 20000 already there\n"


@both
def test_drop_says_what_is_lost_and_spares_tables_in_use(make_project: Make) -> None:
    project = make_project(rows=3, n_jobs=1, logtables={"epochs": {"loss": "DOUBLE"}}, daemon=BEATS)
    project.fill()
    with project.daemon("--name", "me") as daemon:
        project.wait_for(done=3)
        (line, hint) = refusal(project, "db", "drop", "--yes", code=64)
        assert line.startswith("daemon me on ")
        assert f"(process {daemon.pid}, last beat " in line
        assert line.endswith(" works on table exp")
        assert hint == "  end them first, or add --force if they are gone for good"
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    what = "table exp: 3 experiments, 3 with results"
    assert refusal(project, "db", "drop", code=64)[0] == f"this drops {what}; it was not confirmed"
    shown = say(project, "db", "drop", "--dry-run")
    assert shown.splitlines()[0] == f"drops {what}"
    assert "DROP TABLE IF EXISTS `exp__epochs`" in shown
    assert project.statuses() == {"done": 3}
    project.database.query("UPDATE exp__pyexpd_daemons SET state = 'live'")
    assert project.pyexpd("db", "drop", "--yes").returncode == 64
    assert say(project, "db", "drop", "--yes", "--force") == f"dropped {what}\n"
    assert refusal(project, "status", code=74)[0] == "table exp does not exist"
    assert refusal(project, "db", "drop", "--yes", code=74)[0] == "table exp does not exist"
    project.fill()
