"""Every mistake of a user is one line that says what is wrong and one that says what to do; nothing changes."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.databases import Database
from tests.e2e.fuse import FuseMount
from tests.helpers import cannot_run
from tests.servers import Server

Mapping = dict[str, Any]
ROOT = Path(__file__).parents[2]

FUNCTIONS = """
def run(keyfields, result_processor, custom_fields):
    result_processor.process_results({"y": 1.0})

def four(keyfields, result_processor, custom_fields, more):
    pass
"""

GOOD: Mapping = {
    "PY_EXPERIMENTER": {
        "Function": "experiments.py:run",
        "Database": {
            "provider": "sqlite",
            "database": "results",
            "table": {
                "name": "exp",
                "keyfields": {"x": {"type": "INT", "values": [1, 2, 3]}, "lr": {"type": "DOUBLE", "values": [0.1]}},
                "resultfields": {"y": "DOUBLE"},
            },
        },
        "Daemon": {"heartbeat": "500ms", "lease": "3s"},
    }
}


def pyexpd(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "pyexp_daemon", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good configuration and a table of three experiments, the first of them done."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "pyexpd.yml").write_text(yaml.safe_dump(GOOD, sort_keys=False))
    (folder / "experiments.py").write_text(FUNCTIONS)
    done = pyexpd(folder, "fill")
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(folder / "results.db", isolation_level=None)) as connection:
        connection.execute("UPDATE exp SET status = 'done', y = 0.5 WHERE ID = 1")
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(filled, tmp_path / "project"))


def rows(folder: Path) -> list[tuple[Any, ...]]:
    return Database(provider="sqlite", flavour="sqlite", name=str(folder / "results")).query(
        "SELECT * FROM exp ORDER BY ID"
    )


def spoil(folder: Path, place: str, value: Any) -> None:
    """Set (or, with None, remove) one key of the configuration, named from below the root: `Database/table/name`."""
    path = folder / "pyexpd.yml"
    content = yaml.safe_load(path.read_text())
    section = content["PY_EXPERIMENTER"]
    *above, last = place.split("/")
    for key in above:
        section = section.setdefault(key, {})
    if value is None:
        del section[last]
    else:
        section[last] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def check(
    done: subprocess.CompletedProcess[str],
    *,
    first: str | re.Pattern[str],
    hint: str | None,
    code: int,
    secrets: tuple[str, ...] = (),
) -> None:
    """One line, at most one hint, nothing else; the right exit code; no traceback, no secret, nothing on stdout."""
    said = done.stderr.splitlines()
    if isinstance(first, str):
        assert said[:1] == [f"pyexpd: {first}"]
    else:
        assert first.fullmatch(said[0].removeprefix("pyexpd: ")), said[0]
    assert said[1:] == ([] if hint is None else [f"  {hint}"])
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for secret in secrets:
        assert secret not in done.stdout + done.stderr


@dataclass(frozen=True)
class Mistake:
    """One key that is wrong, and what is said about it."""

    name: str
    place: str
    value: Any
    first: str
    hint: str | None = None
    command: tuple[str, ...] = ("fill",)


KEYS = "Database/table/keyfields"
FILE = "pyexpd.yml: PY_EXPERIMENTER"
FREE_TYPE = {"type": "INT", "values": [1]}
NOT_A_NAME = "letters, digits and _ only, and no digit first"
MISTAKES = [
    Mistake("unknown_key", "Daemon/colour", "red", f"{FILE}.Daemon.colour: unknown key"),
    Mistake(
        "misspelt_key", "Daemon/heartbeet", "1s", f"{FILE}.Daemon.heartbeet: unknown key", "did you mean 'heartbeat'?"
    ),
    Mistake("missing_unit", "Daemon/lease", 60, f"{FILE}.Daemon.lease: 60 has no unit", "write 60s"),
    Mistake(
        "lease_too_short",
        "Daemon/lease",
        "1s",
        f"{FILE}.Daemon.lease: lease (1s) must be at least 3 heartbeats (0.5s each)",
        "lease: 1.5s",
    ),
    Mistake("wrong_type", "n_jobs", "many", f"{FILE}.n_jobs: expected a whole number, got 'many'"),
    Mistake("missing_key", "Database/table", None, f"{FILE}.Database.table: required, but missing"),
    Mistake(
        "unknown_provider",
        "Database/provider",
        "mysqll",
        f"{FILE}.Database.provider: expected 'sqlite' or 'mysql', got 'mysqll'",
        "did you mean 'mysql'?",
    ),
    Mistake(
        "empty_grid",
        f"{KEYS}/x/values",
        [],
        f"{FILE}.Database.table.keyfields.x.values: the list is empty",
        "give it values, or leave `values` out to have NULL",
    ),
    Mistake(
        "rules_that_leave_nothing",
        "Database/table/exclude",
        [{"x": 1}, {"x": [2, 3]}, {"lr": 0.1}],
        "pyexpd.yml: exclude[1]: no combination is left",
        "take it out, or let it name more keyfields together",
    ),
    Mistake("value_listed_twice", f"{KEYS}/x/values", [1, 2, 1], "pyexpd.yml: keyfield x: 1 is listed twice"),
    Mistake(
        "values_that_collapse",
        f"{KEYS}/x",
        {"type": "NUMERIC", "values": [1.5, 2]},
        "pyexpd.yml: keyfield x: 1.5 and 2 are the same value in NUMERIC",
        "use NUMERIC(10,1) or DOUBLE",
    ),
    Mistake(
        "value_that_does_not_fit",
        f"{KEYS}/x/values",
        [1, "two"],
        "pyexpd.yml: keyfield x: 'two' is not a number (INT)",
        "use VARCHAR(255)",
    ),
    Mistake(
        "scalar_values",
        f"{KEYS}/x/values",
        5,
        f"{FILE}.Database.table.keyfields.x.values: expected a list or a range, got 5",
        "values: [5]",
    ),
    Mistake(
        "reserved_name",
        f"{KEYS}/status",
        FREE_TYPE,
        f"{FILE}.Database.table.keyfields.status: every experiment table has a column status already",
        "choose another name, such as status_",
    ),
    Mistake(
        "our_prefix",
        f"{KEYS}/pyexpd_x",
        FREE_TYPE,
        f"{FILE}.Database.table.keyfields.pyexpd_x: names beginning with pyexpd_ belong to the daemon",
    ),
    Mistake(
        "hostile_table",
        "Database/table/name",
        "exp; DROP TABLE exp",
        f"{FILE}.Database.table.name: 'exp; DROP TABLE exp' is not a name",
        NOT_A_NAME,
    ),
    Mistake(
        "hostile_column",
        f"{KEYS}/x` INT); DROP TABLE exp; --",
        FREE_TYPE,
        f"{FILE}.Database.table.keyfields.x` INT); DROP TABLE exp; --: 'x` INT); DROP TABLE exp; --' is not a name",
        NOT_A_NAME,
    ),
    Mistake(
        "hostile_type",
        f"{KEYS}/x/type",
        "INT); DROP TABLE exp; --",
        f"{FILE}.Database.table.keyfields.x.type: 'INT); DROP TABLE exp; --' is not a column type",
        "a type such as INT, DOUBLE, VARCHAR(255) or DATETIME",
    ),
    Mistake(
        "our_logtable",
        "Database/logtables",
        {"pyexpd_attempts": {"a": "INT"}},
        f"{FILE}.Database.logtables.pyexpd_attempts: names beginning with pyexpd_ belong to the daemon",
    ),
    Mistake(
        "more_keyfields_than_the_table",
        f"{KEYS}/z",
        FREE_TYPE,
        "table exp has no column z",
        "pyexpd db add-keyfield z --value V adds it, or give the table another name",
    ),
    Mistake(
        "fewer_keyfields_than_the_table",
        f"{KEYS}/lr",
        None,
        "table exp has a column lr that the configuration does not name",
        "add it to the keyfields or resultfields, or give the table another name",
    ),
    Mistake(
        "more_resultfields_than_the_table",
        "Database/table/resultfields/f1",
        "DOUBLE",
        "table exp has no column f1",
        "pyexpd fill adds result fields that the table lacks; --dry-run shows how",
        command=("run",),
    ),
    Mistake(
        "no_function",
        "Function",
        None,
        f"{FILE}.Function: required to run experiments, but missing",
        "Function: my_project.train:run, or --function my_project.train:run",
        command=("run",),
    ),
    Mistake(
        "function_without_a_name",
        "Function",
        "experiments.py",
        f"{FILE}.Function: expected module:function, got 'experiments.py'",
        "my_project.train:run or path/to/file.py:run",
        command=("run",),
    ),
    Mistake(
        "missing_variable",
        "Database/database",
        "${oc.env:PYEXPD_NOT_SET}",
        f"{FILE}.Database.database: Environment variable 'PYEXPD_NOT_SET' not found",
        "export PYEXPD_NOT_SET, or write ${oc.env:PYEXPD_NOT_SET,default}",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistake_in_the_configuration(mistake: Mistake, folder: Path) -> None:
    before = rows(folder)
    spoil(folder, mistake.place, mistake.value)
    check(pyexpd(folder, *mistake.command), first=mistake.first, hint=mistake.hint, code=64)
    assert rows(folder) == before


@dataclass(frozen=True)
class File:
    """A configuration file that cannot even be read, and what is said about it."""

    name: str
    text: str | None
    first: str
    hint: str | None


FILES = [
    File(
        "tab",
        "PY_EXPERIMENTER:\n\tn_jobs: 4\n",
        "pyexpd.yml:2:1: a tab in the indentation",
        "YAML is indented by spaces",
    ),
    File("no_yaml", "PY_EXPERIMENTER: [1, 2\n", "pyexpd.yml:2:1: did not find expected ',' or ']'", None),
    File("empty", "", "pyexpd.yml: is empty", "pyexpd init"),
    File(
        "other_root",
        "PY_EXPERIMENT: {n_jobs: 1}\n",
        "pyexpd.yml: PY_EXPERIMENTER: required, but missing",
        "did you mean 'PY_EXPERIMENTER'?",
    ),
    File(
        "key_twice", "PY_EXPERIMENTER: {n_jobs: 1, n_jobs: 2}\n", "pyexpd.yml:1:30: the key n_jobs appears twice", None
    ),
    File(
        "missing",
        None,
        "no configuration file: PYEXPD_CONFIG is not set, and there is none of ./pyexpd.yml,"
        " ./config/experiment_configuration.yml",
        "pyexpd init makes one, -c FILE names one",
    ),
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_file_that_cannot_be_used(file: File, folder: Path) -> None:
    before = rows(folder)
    if file.text is None:
        (folder / "pyexpd.yml").unlink()
    else:
        (folder / "pyexpd.yml").write_text(file.text)
    check(pyexpd(folder, "status"), first=file.first, hint=file.hint, code=64)
    assert rows(folder) == before


@dataclass(frozen=True)
class Call:
    """A command that cannot be carried out, and what is said about it."""

    arguments: str
    first: str
    hint: str | None = None
    code: int = 64


COLUMNS = "ID, x, lr, creation_date, status, start_date, name, machine, y, end_date, error"
LAYOUT = 'write "dataset x kernel", "dataset,size x kernel", or "dataset" alone'
AGGREGATES = "mean ± std, mean, median, min, max, sum, std, count"

CALLS = [
    Call("filll", "there is no command 'filll'", "did you mean 'fill'?"),
    Call("fill --dryrun", "there is no option '--dryrun'", "did you mean '--dry-run'?"),
    Call("fill 7", "got unexpected extra argument (7)", "pyexpd fill --help shows what it takes"),
    Call(
        "list --limit few",
        "invalid value for '--limit': 'few' is not a valid whole number",
        "pyexpd list --help shows what it takes",
    ),
    Call(
        "export --format xls",
        "invalid value for '--format': 'xls' is not one of 'csv', 'json', 'latex', 'md', 'parquet'",
        "pyexpd export --help shows what it takes",
    ),
    Call("export -o no/such/folder/a.csv", "no/such/folder/a.csv cannot be written: No such file or directory", None),
    Call("export -o .", ". is a folder", "-o exp.csv"),
    Call("export --format parquet", "parquet needs a file", "-o exp.parquet"),
    Call("export --value y", "--value needs --pivot", '--pivot "dataset x kernel"'),
    Call("export --best-of rows", "--best-of needs --pivot", '--pivot "dataset x kernel"'),
    Call("export --pivot x", "--pivot needs --value", "the result fields are y"),
    Call("export --pivot x --value y --best-of rows", "--best-of needs --best", "--best max, or --best min"),
    Call("export --pivot x x lr --value z", "there is no field 'z'", f"fields: {COLUMNS}"),
    Call("export --pivot x x lrr --value y", "there is no field 'lrr'", "did you mean 'lr'?"),
    Call("export --pivot x x x --value y", "'x' is named twice", "rows, columns and values are other fields"),
    Call("export --pivot x x --value y", "'x x' does not say what the rows and columns are", LAYOUT),
    Call("export --pivot lr by x --value y", "'by' is no experiment", "name experiments as 7, 3-9, 1,5 or all"),
    Call("export --pivot x --value y --agg avg", "there is no aggregate 'avg'", f"one of {AGGREGATES}"),
    Call("export --pivot x --value y --digits 99", "99 digits cannot be shown", "0 to 15"),
    Call(
        "export --pivot x --value y -o a.parquet",
        "--pivot is not written as parquet",
        "one of csv, json, latex, md",
    ),
    Call("export --pivot x --value status", "experiment 1: status is 'done', which is no number", None),
    Call(
        "export 2 --pivot x --value y",
        "there is nothing to aggregate: 1 not done, 0 without y",
        "--status and --where say which experiments count",
    ),
    Call(
        "export --pivot x --value y --best good",
        "invalid value for '--best': 'good' is not one of 'max', 'min'",
        "pyexpd export --help shows what it takes",
    ),
    Call("-c elsewhere.yml status", "elsewhere.yml: no such file", "pyexpd init"),
    Call("list 1-", "'1-' is no experiment", "name experiments as 7, 3-9, 1,5 or all"),
    Call("list 9-3", "'9-3' runs backwards", "write 3-9"),
    Call("list --status dne", "there is no status 'dne'", "did you mean 'done'?"),
    Call("list --where y<<3", "--where 'y<<3': <3 is no value", "put text in quotes: \"kernel = 'my kernel'\""),
    Call(
        "list --where loss<3",
        "table exp has no column 'loss'",
        f"columns: {COLUMNS}",
    ),
    Call(
        "list --where x=1;DROP",
        "--where 'x=1;DROP': 1;DROP is no value",
        "put text in quotes: \"kernel = 'my kernel'\"",
    ),
    Call("list --columns x,yy", "table exp has no column 'yy'", "did you mean 'y'?"),
    Call("show 99", "table exp has no experiment 99", "pyexpd list shows what there is"),
    Call(
        "show one",
        "invalid value for 'EXPERIMENT': 'one' is not a valid whole number",
        "pyexpd show --help shows what it takes",
    ),
    Call("logs 1", "experiment 1 has not run yet", "pyexpd show 1"),
    Call("logs 99", "table exp has no experiment 99", "pyexpd list shows what there is"),
    Call("reset", "no experiments are selected", "name them as 7, 3-9, 1,5 or all, or use --status or --where"),
    Call(
        "reset all",
        "this resets 1 experiment: 1 done, clears the results of 1 done experiment; it was not confirmed",
        "add --yes, or --dry-run to look only",
    ),
    Call(
        "cancel 2", "this cancels 1 experiment: 1 created; it was not confirmed", "add --yes, or --dry-run to look only"
    ),
    Call(
        "delete 1-2",
        "this deletes 2 experiments: 1 created, 1 done, with their log rows and attempts,"
        " deletes the results of 1 done experiment; it was not confirmed",
        "add --yes, or --dry-run to look only",
    ),
    Call(
        "set priority=1 all",
        "this sets priority=1 for 3 experiments: 2 created, 1 done; it was not confirmed",
        "add --yes, or --dry-run to look only",
    ),
    Call("set priority=high all", "'high' is no priority", "a whole number; higher ones run first"),
    Call("set queue= all", "'' is no name of a queue", "at most 64 letters, digits and signs, without spaces"),
    Call("set colour=red all", "'colour' cannot be set", "what can be set is queue=NAME and priority=N"),
    Call("set all", "nothing to set", "pyexpd set queue=NAME priority=N EXPERIMENTS"),
    Call("set queue=a", "no experiments are selected", "name them as 7, 3-9, 1,5 or all, or use --status or --where"),
    Call("status --watch", "--watch needs a terminal", "pyexpd status --json is for scripts"),
    Call("status --watch --json", "--watch and --json exclude each other", "call status --json again and again"),
    Call("run --here", "--here and the number of an experiment go together", "pyexpd run 7 --here runs experiment 7"),
    Call("run 2", "--here and the number of an experiment go together", "pyexpd run 7 --here runs experiment 7"),
    Call("run 99 --here", "table exp has no experiment 99", "pyexpd list shows what there is"),
    Call("run 1 --here", "experiment 1 is done, so it cannot be run", "pyexpd reset 1"),
    Call(
        "run 2 --here --slots 2",
        "--here takes none of --slots, --until-empty, --max-experiments, --random-order",
        "pyexpd run 2 --here",
    ),
    Call(
        "run --slots 0",
        "invalid value for '--slots': 0 is not in the range x>=1",
        "pyexpd run --help shows what it takes",
    ),
    Call("run --name ../x", "'../x' is no name for a daemon", "letters, digits and . _ @ + -, up to 100"),
    Call(
        "run --function experiments",
        "--function 'experiments' is not module:function",
        "my_project.train:run or path/to/file.py:run",
    ),
    Call(
        "run 2 --here --function experiments.py:four",
        "experiments.py:four takes 4 positional arguments",
        "it is called with one to three: keyfields, result_processor, custom_fields",
    ),
    Call(
        "run 2 --here --function nowhere:run",
        "nowhere:run cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
        None,
    ),
    Call("db", "missing command", "pyexpd db --help shows what it takes"),
    Call("db drpo", "there is no command 'drpo'", "did you mean 'drop'?"),
    Call("db xyz", "there is no command 'xyz'", "pyexpd db --help lists what there is"),
    Call("db upgrad", "there is no command 'upgrad'", "did you mean 'upgrade'?"),
    Call("logs --attempt 1", "--attempt needs the number of an experiment", "pyexpd logs 7 --attempt 1"),
    Call(
        "db drop",
        "this drops table exp: 3 experiments, 1 with results; it was not confirmed",
        "add --yes, or --dry-run to look only",
    ),
    Call("init", "pyexpd.yml exists already; nothing was written", "pyexpd init ANOTHER_DIR"),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.arguments)
def test_call_that_cannot_be_carried_out(call: Call, folder: Path) -> None:
    before = rows(folder)
    done = pyexpd(folder, *call.arguments.split())
    check(done, first=call.first, hint=call.hint, code=call.code)
    assert rows(folder) == before


def test_password_in_a_broken_call_is_not_repeated(folder: Path) -> None:
    done = pyexpd(folder, "status", PYEXPD_CONFIG="elsewhere.yml", PYEXPD_MYSQL_PASSWORD="s3cret")
    check(
        done, first="elsewhere.yml: no such file (from PYEXPD_CONFIG)", hint="pyexpd init", code=64, secrets=("s3cret",)
    )


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "list",
        "show 1",
        "logs 1",
        "export",
        "wait",
        "db version",
        "db upgrade --yes",
        "db release --yes",
        "db drop --yes",
        "reset all --yes",
        "run",
        "run 1 --here",
    ],
)
def test_missing_database_file_is_not_made(command: str, folder: Path) -> None:
    (folder / "results.db").unlink()
    done = pyexpd(folder, *command.split())
    check(
        done,
        first=f"database {folder}/results.db does not exist",
        hint="pyexpd fill creates and fills it",
        code=74,
    )
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "experiments.py",
        "pyexpd.yml",
    ]


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "list",
        "show 1",
        "logs 1",
        "export",
        "wait",
        "db version",
        "db upgrade --yes",
        "db release --yes",
        "db drop --yes",
        "delete all --yes",
        "run",
        "run 1 --here",
    ],
)
def test_missing_table_is_not_made(command: str, folder: Path) -> None:
    spoil(folder, "Database/table/name", "other")
    check(
        pyexpd(folder, *command.split()),
        first="table other does not exist",
        hint="pyexpd fill creates and fills it",
        code=74,
    )
    assert pyexpd(folder, "db", "version").returncode == 74
    assert len(rows(folder)) == 3


@pytest.fixture
def adoptable(folder: Path) -> Path:
    """The folder with a table that PyExperimenter made."""
    database = Database(provider="sqlite", flavour="sqlite", name=str(folder / "results"))
    database.path.unlink()
    with closing(database.connect()) as connection:
        connection.execute(
            "CREATE TABLE exp (ID INTEGER PRIMARY KEY AUTOINCREMENT, x INT, lr DOUBLE, creation_date DATETIME,"
            " status VARCHAR(255), start_date DATETIME, name LONGTEXT, machine VARCHAR(255), y DOUBLE,"
            " end_date DATETIME, error LONGTEXT)"
        )
        connection.execute("INSERT INTO exp (x, lr, status) VALUES (1, 0.1, 'created'), (1, 0.1, 'running')")
    return folder


@pytest.mark.parametrize("command", ["run", "run 1 --here", "reset all --yes", "logs 1", "set priority=1 all --yes"])
def test_unadopted_table_is_left_alone(command: str, adoptable: Path) -> None:
    before = rows(adoptable)
    check(
        pyexpd(adoptable, *command.split()),
        first="table exp was made by PyExperimenter and has not been adopted yet",
        hint="pyexpd fill (or pyexpd db create) adds the columns a daemon needs",
        code=69,
    )
    assert rows(adoptable) == before


def test_table_of_a_newer_version_is_left_alone(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "results.db", isolation_level=None)) as connection:
        connection.execute("UPDATE exp__pyexpd_meta SET value = '7'")
    before = rows(folder)
    for command in ("fill", "run", "status", "reset all --yes"):
        done = pyexpd(folder, *command.split())
        check(
            done,
            first="table exp has schema 7, this pyexp_daemon knows none newer than 3",
            hint="upgrade pyexp_daemon on this node",
            code=69,
        )
    assert rows(folder) == before


def test_file_that_is_no_database(folder: Path) -> None:
    (folder / "results.db").write_text("no database" * 100)
    done = pyexpd(folder, "status")
    check(
        done,
        first=f"database {folder}/results.db cannot be opened: file is not a database",
        hint=None,
        code=74,
    )


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("experiments.py:nobody", "error   function: experiments.py:nobody: there is no nobody in "),
        ("experiments.py:four", "error   function: experiments.py:four takes 4 positional arguments"),
        ("nowhere:run", "error   function: ModuleNotFoundError: No module named 'nowhere'"),
        ("absent.py:run", "error   function: FileNotFoundError: "),
    ],
)
def test_doctor_names_a_function_that_cannot_be_imported(folder: Path, function: str, text: str) -> None:
    before = rows(folder)
    spoil(folder, "Function", function)
    done = pyexpd(folder, "doctor")
    assert done.returncode == 2
    assert any(line.startswith(text) for line in done.stdout.splitlines()), done.stdout
    assert done.stderr == ""
    assert "Traceback" not in done.stdout
    assert rows(folder) == before


@pytest.fixture
def on_server(mariadb: Server, mariadb_database: str, tmp_path: Path) -> tuple[Server, Database, Path]:
    """A configuration and credentials for an empty database of a server."""
    database = Database(provider="mysql", flavour="mariadb", name=mariadb_database, server=mariadb)
    folder = tmp_path / "project"
    database.write_config(folder)
    return mariadb, database, folder


def credentials(folder: Path, change: Callable[[Mapping], None]) -> None:
    path = folder / "database_credentials.yml"
    content = yaml.safe_load(path.read_text())
    change(content["CREDENTIALS"])
    path.write_text(yaml.safe_dump(content))


def test_unreachable_server(on_server: tuple[Server, Database, Path]) -> None:
    server, database, folder = on_server
    credentials(folder, lambda content: content["Connection"]["Standard"].update(server="127.0.0.1", port=1))
    text = (
        f"database mysql://127.0.0.1:1/{database.name} is not reachable: Can't connect to MySQL server on '127.0.0.1'"
    )
    for command in ("fill", "status", "run --function a:b"):
        done = pyexpd(folder, *command.split())
        check(done, first=re.compile(f"{re.escape(text)}.*"), hint=None, code=74, secrets=(server.password,))


def test_wrong_password(on_server: tuple[Server, Database, Path]) -> None:
    server, database, folder = on_server
    credentials(folder, lambda content: content["Database"].update(password="s3cret-but-wrong"))
    text = f"mysql://{server.host}:{server.port}/{database.name}: the database refuses us: Access denied for user "
    done = pyexpd(folder, "fill")
    secrets = ("s3cret-but-wrong", server.password)
    hint = "check user and password; an account with REQUIRE SSL needs Connection.Standard.ssl in the credentials"
    check(done, first=re.compile(f"{re.escape(text)}.*"), hint=hint, code=74, secrets=secrets)


def test_missing_database_on_the_server(on_server: tuple[Server, Database, Path]) -> None:
    server, database, folder = on_server
    missing = f"{database.name}_missing"
    spoil(folder, "Database/database", missing)
    for command in ("status", "list", "run --function a:b"):
        check(
            pyexpd(folder, *command.split()),
            first=f"mysql://{server.host}:{server.port}/{missing}: Unknown database '{missing}'",
            hint="pyexpd fill (or pyexpd db create) creates it",
            code=74,
        )
    assert server.query("SHOW DATABASES LIKE %s", (missing,)) == []


def test_missing_grant(on_server: tuple[Server, Database, Path]) -> None:
    """An account that may only read: what it may not do is said, and nothing is half done."""
    server, database, folder = on_server
    server.query("CREATE USER IF NOT EXISTS 'reader'@'%' IDENTIFIED BY 'r3ader'")
    server.query(f"GRANT SELECT ON `{database.name}`.* TO 'reader'@'%'")
    try:
        credentials(folder, lambda content: content["Database"].update(user="reader", password="r3ader"))
        refused = re.compile(r"the database refuses us: CREATE command denied to user 'reader'@.*")
        check(pyexpd(folder, "fill"), first=refused, hint=None, code=74, secrets=("r3ader",))
        assert database.query("SHOW TABLES") == []
        done = pyexpd(folder, "doctor")
        assert "error   grants: the account lacks INSERT, UPDATE, DELETE on the tables of exp" in done.stdout
    finally:
        server.query("DROP USER 'reader'@'%'")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("CREDENTIALS: {Database: {user: me, password: s3cret\n", "{file}:2:1: not valid YAML"),
        (
            "CREDENTIALS: {Database: {password: s3cret}, Connection: {Standard: {server: x}}}\n",
            "{file}: CREDENTIALS.Database.user: required, but missing",
        ),
        (
            "CREDENTIALS: {Database: {user: me, pasword: s3cret}}\n",
            "{file}: CREDENTIALS.Database: has an unknown key; possible are user, password",
        ),
    ],
    ids=["no_yaml", "no_user", "unknown_key"],
)
def test_credentials_that_cannot_be_used(text: str, first: str, on_server: tuple[Server, Database, Path]) -> None:
    _, _, folder = on_server
    path = folder / "database_credentials.yml"
    path.write_text(text)
    hint = "put text with special signs in quotes" if "YAML" in first else None
    check(pyexpd(folder, "status"), first=first.format(file=path), hint=hint, code=64, secrets=("s3cret",))


def test_credentials_that_cannot_be_read(on_server: tuple[Server, Database, Path]) -> None:
    _, _, folder = on_server
    path = folder / "database_credentials.yml"
    path.unlink()
    check(
        pyexpd(folder, "status"),
        first=f"no database credentials: neither {path} nor $CREDENTIALS_DIRECTORY/database_credentials.yml exists,"
        " and PYEXPD_MYSQL_USER is not set",
        hint="--credentials FILE names a file",
        code=64,
    )
    path.mkdir()
    check(pyexpd(folder, "status"), first=f"{path}: is a directory, not a file", hint=None, code=64)


def test_credentials_that_everybody_can_read_are_a_warning(on_server: tuple[Server, Database, Path]) -> None:
    server, _, folder = on_server
    path = folder / "database_credentials.yml"
    path.chmod(0o644)
    done = pyexpd(folder, "fill")
    assert done.returncode == 0
    assert f"pyexpd: warning: {path} can be read by everybody on this host; chmod 600 {path}" in done.stderr
    assert server.password not in done.stderr
    assert f"warning credentials: {path} can be read by everybody" in pyexpd(folder, "doctor").stdout


def test_sqlite_on_a_network_file_system(folder: Path) -> None:
    """A real FUSE mount, such as sshfs makes: the kernel does not tell what is behind it, so it is refused."""
    share = folder / "share"
    share.mkdir()
    try:
        mounted = FuseMount(share)
    except OSError as error:
        cannot_run("fuse", f"no file system can be mounted here: {error}")
    spoil(folder, "Database/database", "share/results")
    with mounted:
        check(
            pyexpd(folder, "fill"),
            first=f"database {folder}/share/results.db lies on a network file system (fuse), where SQLite loses data",
            hint="put it on a local disk (Database.database), or use provider mysql for several machines",
            code=74,
        )
