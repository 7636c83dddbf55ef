"""Every mistake is one line: the file, the path of the key, what is wrong; and at most one line of hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.config.load import load_config
from tests.unit.config.factories import MINIMAL, write_config

Expected = tuple[type[exceptions.ConfigError], str, str | None]

CONFIG = exceptions.InvalidConfigError
COLUMN = exceptions.InvalidColumnError
LOGTABLE = exceptions.InvalidLogtableError
VALUES = exceptions.InvalidValuesInConfiguration

REPLACED: list[tuple[str, str, type[exceptions.ConfigError], str, str | None]] = [
    # the database
    ("provider:", "provder:", CONFIG, "Database.provder: unknown key", "did you mean 'provider'?"),
    ("    provider: sqlite\n", "", CONFIG, "Database.provider: required, but missing", None),
    ("provider: sqlite", "provider:", CONFIG, "Database.provider: required, but missing", None),
    (
        "sqlite",
        "mysq",
        CONFIG,
        "Database.provider: expected 'sqlite' or 'mysql', got 'mysq'",
        "did you mean 'mysql'?",
    ),
    ("database: results", "database: 2024", CONFIG, "Database.database: expected text, got 2024", "put it in quotes"),
    ("database: results", "database: ''", CONFIG, "Database.database: must not be empty", None),
    ("name: runs", "name: my-runs", CONFIG, "Database.table.name: 'my-runs' is not a name", "NAME"),
    (
        "name: runs",
        "name: " + "x" * 41,
        CONFIG,
        "Database.table.name: the name has 41 characters; 40 are possible",
        None,
    ),
    (
        "name: runs",
        "name: sqlite_x",
        CONFIG,
        "Database.table.name: names beginning with sqlite_ belong to SQLite",
        None,
    ),
    (
        "resultfields:",
        "resultfield:",
        CONFIG,
        "Database.table.resultfield: unknown key",
        "did you mean 'resultfields'?",
    ),
    (
        "    logtables:\n      epochs: {loss: DOUBLE}",
        "      logtables: {epochs: {loss: DOUBLE}}",
        CONFIG,
        "Database.table.logtables: unknown key",
        "it belongs under PY_EXPERIMENTER.Database",
    ),
    # columns
    (
        "lr:",
        "ID:",
        COLUMN,
        "keyfields.ID: every experiment table has a column ID already",
        "choose another name, such as ID_",
    ),
    (
        "accuracy",
        "Status",
        COLUMN,
        "resultfields.Status: every experiment table has a column status already",
        "choose another name, such as Status_",
    ),
    ("lr:", "pyexpd_lr:", COLUMN, "keyfields.pyexpd_lr: names beginning with pyexpd_ belong to the daemon", None),
    ("lr:", "learning rate:", COLUMN, "keyfields.learning rate: 'learning rate' is not a name", "NAME"),
    ("lr:", "1st:", COLUMN, "keyfields.1st: '1st' is not a name", "NAME"),
    ("lr:", "lr`:", COLUMN, "keyfields.lr`: 'lr`' is not a name", "NAME"),
    ("lr:", '"l\\nr":', COLUMN, "keyfields.'l\\nr': 'l\\nr' is not a name", "NAME"),
    ("lr:", "lernrate_ä:", COLUMN, "keyfields.lernrate_ä: 'lernrate_ä' is not a name", "NAME"),
    ("lr:", "on:", COLUMN, "keyfields.True: a name must be text, got true", "put the name in quotes"),
    ("lr:", "Seed:", COLUMN, "keyfields.seed: the name seed is there already, spelt Seed", None),
    ("accuracy", "LR", COLUMN, "resultfields.LR: the name LR is there already, spelt lr", None),
    (
        "{accuracy: DOUBLE}",
        "{a: INT, a_timestamp: INT}\n      result_timestamps: true",
        COLUMN,
        "resultfields.a: the name a_timestamp is there already",
        None,
    ),
    (
        "{type: DOUBLE, values: [0.1, 0.2]}",
        "DOUBLE",
        COLUMN,
        "keyfields.lr: expected a mapping, got 'DOUBLE'",
        "write {type: DOUBLE}",
    ),
    ("{type: DOUBLE, values: [0.1, 0.2]}", "", COLUMN, "keyfields.lr.type: required, but missing", None),
    ("lr: {type:", "lr: {typ:", COLUMN, "keyfields.lr.typ: unknown key", "did you mean 'type'?"),
    (
        "{accuracy: DOUBLE}",
        "{accuracy: {type: INT}}",
        COLUMN,
        "resultfields.accuracy: expected a type, got a mapping",
        "write the type alone: INT",
    ),
    ("{accuracy: DOUBLE}", "[accuracy]", COLUMN, "resultfields: expected a mapping, got ['accuracy']", None),
    ("accuracy", "lr", COLUMN, "resultfields.lr: the name lr is there already", None),
    # types
    ("type: INT", "type: 5", COLUMN, "keyfields.seed.type: expected text, got 5", "put it in quotes"),
    (
        "type: INT",
        "type: 'INT; DROP TABLE x'",
        COLUMN,
        "keyfields.seed.type: 'INT; DROP TABLE x' is not a column type",
        "TYPE",
    ),
    ("type: INT", "type: 'INT -- x'", COLUMN, "keyfields.seed.type: 'INT -- x' is not a column type", "TYPE"),
    ("type: INT", "type: ''", COLUMN, "keyfields.seed.type: '' is not a column type", "TYPE"),
    (
        "type: INT",
        "type: INT NOT NULL",
        COLUMN,
        "keyfields.seed.type: 'INT NOT NULL' is more than a column type: NOT does not belong there",
        "TYPE",
    ),
    (
        "accuracy: DOUBLE",
        "accuracy: \"ENUM('a')\"",
        COLUMN,
        "resultfields.accuracy: ENUM('a') is not possible on SQLite",
        "TEXT",
    ),
    # values
    ("[0.1, 0.2]", "5", COLUMN, "keyfields.lr.values: expected a list or a range, got 5", "values: [5]"),
    ("[0.1, 0.2]", "abc", COLUMN, "keyfields.lr.values: expected a list or a range, got 'abc'", "values: ['abc']"),
    (
        "[0.1, 0.2]",
        "[]",
        VALUES,
        "keyfields.lr.values: the list is empty",
        "give it values, or leave `values` out to have NULL",
    ),
    ("start: 0", "strt: 0", COLUMN, "keyfields.seed.values.strt: unknown key", "did you mean 'start'?"),
    (
        ", stop: 3",
        "",
        COLUMN,
        "keyfields.seed.values.stop: required, but missing",
        "a range is {start: 0, stop: 10, step: 1}; stop is left out",
    ),
    (
        "stop: 3",
        "stop: 0",
        VALUES,
        "keyfields.seed.values: no values from 0 to 0 in steps of 1; stop is left out",
        None,
    ),
    (
        "[0.1, 0.2]",
        "{linear: [0, 1]}",
        COLUMN,
        "keyfields.lr.values.linear: expected a list of 3, got [0, 1]",
        "{linear: [0, 1, 5]} is 5 numbers from 0 to 1, both included",
    ),
    (
        "[0.1, 0.2]",
        "{log: [0, 1, 5]}",
        VALUES,
        "keyfields.lr.values.log: min has no logarithm: 0",
        "both bounds have to be above zero",
    ),
    (
        "[0.1, 0.2]",
        "{repeat: [0.1, 0]}",
        VALUES,
        "keyfields.lr.values.repeat: there are no values",
        "{repeat: [0, 3]} is 0, and every combination three times",
    ),
    (
        "[0.1, 0.2]",
        "{repeat: [0.1, 2], stop: 3}",
        COLUMN,
        "keyfields.lr.values.stop: nothing else can stand beside repeat",
        "{repeat: [0, 3]} is 0, and every combination three times",
    ),
    (
        "[0.1, 0.2]",
        "{match: 0.1}",
        COLUMN,
        "keyfields.lr.values.match: expected a list, got 0.1",
        "{match: [a, b]} has one value for each combination",
    ),
    ("stop: 3", "stop: 3, step: 0", VALUES, "keyfields.seed.values: step is 0", None),
    ("stop: 3", "stop: x", VALUES, "keyfields.seed.values: stop is not a number: 'x'", None),
    ("stop: 3", "stop: .inf", VALUES, "keyfields.seed.values: stop is not finite: inf", None),
    (
        "stop: 3",
        "stop: 1e12",
        VALUES,
        "keyfields.seed.values: more than 100000000 values from 0 to 1000000000000.0 in steps of 1",
        None,
    ),
    # logtables
    ("epochs: {loss: DOUBLE}", "epochs: 3", LOGTABLE, "Database.logtables.epochs: expected a mapping, got 3", None),
    ("epochs: {loss: DOUBLE}", "epochs:", LOGTABLE, "Database.logtables.epochs: expected a mapping, got nothing", None),
    ("epochs: {loss: DOUBLE}", "epochs: {}", LOGTABLE, "Database.logtables.epochs: the logtable has no columns", None),
    (
        "epochs:",
        "pyexpd_x:",
        LOGTABLE,
        "Database.logtables.pyexpd_x: names beginning with pyexpd_ belong to the daemon",
        None,
    ),
    (
        "loss:",
        "Timestamp:",
        LOGTABLE,
        "Database.logtables.epochs.Timestamp: every logtable has a column timestamp already",
        "choose another name, such as Timestamp_",
    ),
    (
        "loss: DOUBLE",
        "loss: DOUBLE, LOSS: INT",
        LOGTABLE,
        "Database.logtables.epochs.LOSS: the name LOSS is there already, spelt loss",
        None,
    ),
    (
        "epochs: {loss: DOUBLE}",
        "a: {x: INT}\n      A: {x: INT}",
        LOGTABLE,
        "Database.logtables.A: the name A is there already, spelt a",
        None,
    ),
    (
        "epochs:",
        "e" * 59 + ":",
        LOGTABLE,
        f"Database.logtables.{'e' * 59}: its table would be runs__{'e' * 59}, which is longer than 64 characters",
        None,
    ),
    # the root
    ("n_jobs: 4", "n_jobs: 0", CONFIG, "n_jobs: must be at least 1, got 0", None),
    ("n_jobs: 4", "n_jobs: yes", CONFIG, "n_jobs: expected a whole number, got true", None),
    ("n_jobs: 4", "n_jobs: 1.5", CONFIG, "n_jobs: expected a whole number, got 1.5", None),
    ("n_jobs: 4", "n_jobs: many", CONFIG, "n_jobs: expected a whole number, got 'many'", None),
    ("n_jobs: 4", "slots: 4", CONFIG, "slots: unknown key", "it belongs under PY_EXPERIMENTER.Daemon"),
    ("n_jobs: 4", "function: a:b", CONFIG, "function: unknown key", "did you mean 'Function'?"),
    ("n_jobs: 4", "whatever:", CONFIG, "whatever: unknown key", None),
    ("n_jobs: 4", "path: x", CONFIG, "path: unknown key", None),
    (
        "n_jobs: 4",
        "Function: run",
        CONFIG,
        "Function: expected module:function, got 'run'",
        "my_project.train:run or path/to/file.py:run",
    ),
    ("n_jobs: 4", "Custom: 5", CONFIG, "Custom: expected a mapping, got 5", None),
    (
        "n_jobs: 4",
        "CodeCarbon: {offline_mode: true}",
        CONFIG,
        "CodeCarbon.country_iso_code: offline_mode needs it",
        "country_iso_code: DEU",
    ),
    (
        "n_jobs: 4",
        "n_jobs: ${oc.env:NOPE}",
        CONFIG,
        "n_jobs: Environment variable 'NOPE' not found",
        "export NOPE, or write ${oc.env:NOPE,default}",
    ),
    ("n_jobs: 4", "n_jobs: ${nope}", CONFIG, "n_jobs: Interpolation key 'nope' not found", None),
]

SECTIONS = [
    ("Daemon: {slot: 3}", "Daemon.slot: unknown key", "did you mean 'slots'?"),
    ("Daemon: 3", "Daemon: expected a mapping, got 3", None),
    ("Daemon: {heartbeat: 10}", "Daemon.heartbeat: 10 has no unit", "write 10s"),
    ("Daemon: {heartbeat_s: 10s}", "Daemon.heartbeat_s: unknown key", "did you mean 'heartbeat'?"),
    ("Daemon: {heartbeat: 0s}", "Daemon.heartbeat: must be more than 0, got '0s'", None),
    (
        "Daemon: {heartbeat: 30s}",
        "Daemon.lease: lease (60s) must be at least 3 heartbeats (30s each)",
        "lease: 90s",
    ),
    ("Daemon: {poll: {longest: 10ms}}", "Daemon.poll: longest (0.01s) must not be below shortest (0.1s)", None),
    (
        "Daemon: {isolation: fresch}",
        "Daemon.isolation: expected 'reuse' or 'fresh', got 'fresch'",
        "did you mean 'fresh'?",
    ),
    ("Daemon: {gpus: all}", "Daemon.gpus: expected auto, a number or a list of GPUs, got 'all'", "gpus: [0, 1]"),
    ("Daemon: {gpus: [0, -1]}", "Daemon.gpus[1]: expected a number or an identifier of a GPU, got -1", None),
    ("Daemon: {queues: gpu}", "Daemon.queues: expected a list, got 'gpu'", "queues: [gpu]"),
    ("Daemon: {queues: []}", "Daemon.queues: the list is empty", "queues: [default]"),
    ("Daemon: {queues: [a, a]}", "Daemon.queues[1]: 'a' is listed twice", None),
    ("Daemon: {logs: ''}", "Daemon.logs: must not be empty", None),
    ("Daemon: {state: 5}", "Daemon.state: expected a path, got 5", None),
    ("Limits: {tries: {eror: 1}}", "Limits.tries.eror: unknown key", "did you mean 'error'?"),
    ("Limits: {tries: {error: 0}}", "Limits.tries.error: must be at least 1, got 0", None),
    ("Limits: {tries: 3}", "Limits.tries: expected a mapping, got 3", None),
    (
        "Limits: {memory: 8G}",
        "Limits.memory: expected a size such as 64MiB or 8GB, got '8G'",
        "units are B, KB, MB, GB, TB, KiB, MiB, GiB and TiB",
    ),
    ("Limits: {backoff: {first: 2h}}", "Limits.backoff: longest (3600s) must not be below first (7200s)", None),
]

HINTS = {
    "NAME": "letters, digits and _ only, and no digit first",
    "TYPE": "a type such as INT, DOUBLE, VARCHAR(255) or DATETIME",
}

FILES: list[tuple[str, str, str | None]] = [
    ("", ": is empty", "pyexpd init"),
    ("# nothing\n", ": is empty", "pyexpd init"),
    ("5", ": expected a mapping with the key PY_EXPERIMENTER, got 5", None),
    ("[1]", ": expected a mapping with the key PY_EXPERIMENTER, got [1]", None),
    ("PY_EXPERIMENTER:", ": PY_EXPERIMENTER: required, but missing", "everything belongs under PY_EXPERIMENTER"),
    ("n_jobs: 4", ": PY_EXPERIMENTER: required, but missing", "everything belongs under PY_EXPERIMENTER"),
    (
        MINIMAL.replace("PY_EXPERIMENTER", "PY_EXPERIMENTR"),
        ": PY_EXPERIMENTER: required, but missing",
        "did you mean 'PY_EXPERIMENTER'?",
    ),
    (MINIMAL + "Daemon: {slots: 2}\n", ": Daemon: unknown key", "it belongs under PY_EXPERIMENTER"),
    ("PY_EXPERIMENTER:\n\tn_jobs: 4\n", ":2:1: a tab in the indentation", "YAML is indented by spaces"),
    ("PY_EXPERIMENTER:\n  \tn_jobs: 4\n", ":2:3: a tab in the indentation", "YAML is indented by spaces"),
    ("a: 1\nb: 2\na: 3\n", ":3:1: the key a appears twice", None),
    ("a: &a [*a]\n", ":1:4: a value contains itself", None),
    ("a: !!python/object:x.Y {}\n", ":1:4: could not determine a constructor", None),
    ("a: 1\n---\nb: 1\n", ":2:1: but found another document", None),
    ("a: b: c\n", ":1:5: mapping values are not allowed", None),
    ("a: [1,\n", ":2:1: did not find", None),
    ("a: \x01\n", ":1: a control character, which YAML does not allow", None),
]


def load_error(file: Path) -> exceptions.ConfigError:
    with pytest.raises(exceptions.ConfigError) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)
    assert "\n" not in (caught.value.hint or "")
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 64
    return caught.value


def full(message: str) -> str:
    above = "Database.table." if message.startswith(("keyfields", "resultfields")) else ""
    return f"PY_EXPERIMENTER.{above}{message}"


@pytest.mark.parametrize(("old", "new", "error", "message", "hint"), REPLACED)
def test_a_wrong_key_is_one_line(
    tmp_path: Path, old: str, new: str, error: type[Exception], message: str, hint: str | None
) -> None:
    file = write_config(tmp_path, replace=(old, new))
    caught = load_error(file)
    assert (str(caught), caught.hint) == (f"{file}: {full(message)}", HINTS.get(hint or "", hint))
    assert type(caught) is error


@pytest.mark.parametrize(("extra", "message", "hint"), SECTIONS)
def test_a_wrong_key_of_a_section_is_one_line(tmp_path: Path, extra: str, message: str, hint: str | None) -> None:
    file = write_config(tmp_path, extra=extra)
    caught = load_error(file)
    assert (str(caught), caught.hint) == (f"{file}: {full(message)}", hint)
    assert type(caught) is CONFIG


@pytest.mark.parametrize(("text", "message", "hint"), FILES)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path: Path, text: str, message: str, hint: str | None) -> None:
    file = tmp_path / "exp.yml"
    file.write_text(text)
    caught = load_error(file)
    assert str(caught).startswith(f"{file}{message}")
    assert caught.hint == hint


@pytest.mark.parametrize(
    ("sql_type", "message", "hint"),
    [
        ("VARCHAR", "VARCHAR needs a length on MySQL", "VARCHAR(255)"),
        ("varchar", "varchar needs a length on MySQL", "VARCHAR(255)"),
        ("str", "str is not a MySQL type", "VARCHAR(255)"),
        ("STRING", "STRING is not a MySQL type", "VARCHAR(255)"),
    ],
)
@pytest.mark.parametrize("old", ["type: INT", "accuracy: DOUBLE", "loss: DOUBLE"])
def test_mysql_needs_lengths(tmp_path: Path, old: str, sql_type: str, message: str, hint: str) -> None:
    file = write_config(tmp_path, replace=(old, f"{old.partition(':')[0]}: {sql_type}"))
    load_config(file)
    file.write_text(file.read_text().replace("sqlite", "mysql"))
    caught = load_error(file)
    assert str(caught).endswith(f": {message}")
    assert caught.hint == hint


def test_of_several_mistakes_the_first_in_the_file_is_told(tmp_path: Path) -> None:
    file = write_config(
        tmp_path, extra="Limits: {memory: 8G}\nDaemon: {slots: 0}", replace=("seed: {type: INT", "seed: {typ: INT")
    )
    assert ".seed.typ:" in str(load_error(file))
    file = write_config(tmp_path, extra="Limits: {memory: 8G}\nDaemon: {slots: 0}")
    assert "Limits.memory:" in str(load_error(file))
    file = write_config(tmp_path, extra="Daemon: {slots: 0}\nLimits: {memory: 8G}")
    assert "Daemon.slots:" in str(load_error(file))


def test_a_mistake_in_an_override_names_its_key(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    with pytest.raises(CONFIG, match=r"exp\.yml: PY_EXPERIMENTER\.Daemon\.slots: must be at least 1, got 0$"):
        load_config(file, overrides={"Daemon.slots": 0})
    with pytest.raises(CONFIG, match=r"exp\.yml: PY_EXPERIMENTER\.Daemon\.slot: unknown key$"):
        load_config(file, overrides={"Daemon.slot": 3})
    file.write_text("x: 1")
    with pytest.raises(CONFIG, match=r"PY_EXPERIMENTER: required, but missing$"):
        load_config(file, overrides={"Daemon.slots": 3})


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    caught = load_error(tmp_path / "none.yml")
    assert isinstance(caught, exceptions.NoConfigFileError)
    assert str(caught) == f"{tmp_path / 'none.yml'}: no such file"
    assert str(load_error(write_config(tmp_path) / "below.yml")).endswith(": no such file")


def test_a_directory_is_one_line(tmp_path: Path) -> None:
    assert str(load_error(tmp_path)) == f"{tmp_path}: is a directory, not a file"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    file = write_config(tmp_path)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert str(load_error(file)) == f"{file}: cannot be read: Permission denied"


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "exp.yml"
    file.write_bytes(b"PY_EXPERIMENTER: \xff")
    assert str(load_error(file)) == f"{file}: is not UTF-8 text (byte 18)"
