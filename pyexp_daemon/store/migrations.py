"""The tables, made, adopted from PyExperimenter, and brought from one version of the schema to the next.

A change of the schema is the next numbered step, with the oldest version of this code that may work on its result.
A new table takes the same steps, so there is one way to every version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pyexp_daemon.store import emissions
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.structure import KEYS, RESULTS, State
from pyexp_daemon.store.tables import (
    CLAIM,
    COMMANDED,
    ENDED,
    FINGERPRINT,
    OWNER,
    RARE,
    RARE_STATUS,
    STATE,
    WAITING,
    Table,
)
from pyexp_daemon.store.unit import Commit, Do, Steps, unit

OURS: Mapping[str, Mapping[str, str]] = {
    "mysql": {
        "pyexpd_fingerprint": "BINARY(16) NULL",
        "pyexpd_queue": "VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'default'",
        "pyexpd_order": "INT NOT NULL DEFAULT 0",
        "pyexpd_not_before": "DATETIME(6) NULL",
        "pyexpd_attempt": "INT NOT NULL DEFAULT 0",
        "pyexpd_tries": "VARCHAR(255) CHARACTER SET ascii NULL",
        "pyexpd_daemon": "INT NULL",
        "pyexpd_token": "CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL",
        "pyexpd_cancel": "TINYINT NOT NULL DEFAULT 0",
    },
    "sqlite": {
        "pyexpd_fingerprint": "BLOB",
        "pyexpd_queue": "TEXT NOT NULL DEFAULT 'default'",
        "pyexpd_order": "INTEGER NOT NULL DEFAULT 0",
        "pyexpd_not_before": "REAL",
        "pyexpd_attempt": "INTEGER NOT NULL DEFAULT 0",
        "pyexpd_tries": "TEXT",
        "pyexpd_daemon": "INTEGER",
        "pyexpd_token": "TEXT",
        "pyexpd_cancel": "INTEGER NOT NULL DEFAULT 0",
    },
}
"""Our columns of the experiment table, after the user's."""

_OURS_IN_LOGS: Mapping[str, str] = {"pyexpd_attempt": "INTEGER NULL", "pyexpd_seq": "INTEGER NULL"}
"""Our columns of a logtable: which attempt wrote the row, and as its how manyeth."""

_INDEXES: Mapping[str, Mapping[str, str]] = {
    "mysql": {
        CLAIM: "INDEX {name} ON {table} (status, pyexpd_queue, pyexpd_order, ID)",
        WAITING: "INDEX {name} ON {table} (status, pyexpd_not_before)",
        OWNER: "INDEX {name} ON {table} (pyexpd_daemon, status)",
        FINGERPRINT: "UNIQUE INDEX {name} ON {table} (pyexpd_fingerprint)",
        ENDED: "INDEX {name} ON {attempts} (ended)",
        COMMANDED: "INDEX {name} ON {commands} (incarnation, answered)",
        STATE: "INDEX {name} ON {daemons} (state)",
    },
    "sqlite": {
        CLAIM: "INDEX {name} ON {table} (pyexpd_queue, pyexpd_order, ID) WHERE status = 'created'",
        WAITING: "INDEX {name} ON {table} (pyexpd_not_before) WHERE status = 'waiting'",
        OWNER: "INDEX {name} ON {table} (pyexpd_daemon) WHERE status = 'running'",
        FINGERPRINT: "UNIQUE INDEX {name} ON {table} (pyexpd_fingerprint) WHERE pyexpd_fingerprint IS NOT NULL",
        RARE: f"INDEX {{name}} ON {{table}} (status) WHERE {RARE_STATUS}",
        ENDED: "INDEX {name} ON {attempts} (ended)",
        COMMANDED: "INDEX {name} ON {commands} (incarnation, answered)",
        STATE: "INDEX {name} ON {daemons} (state)",
    },
}

_TYPES: Mapping[str, Mapping[str, str]] = {
    "mysql": {
        "key": "INT NOT NULL AUTO_INCREMENT PRIMARY KEY",
        "hex": "CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
        "word": "VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
        "name": "VARCHAR(255) NOT NULL",
        "text": "LONGTEXT",
        "time": "DATETIME(6)",
        "big": "BIGINT",
        "bytes": "MEDIUMBLOB",
    },
    "sqlite": {
        "key": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "hex": "TEXT NOT NULL",
        "word": "TEXT NOT NULL",
        "name": "TEXT NOT NULL",
        "text": "TEXT",
        "time": "REAL",
        "big": "INTEGER",
        "bytes": "BLOB",
    },
}

_ATTEMPTS = (
    "experiment_id INT NOT NULL, attempt INT NOT NULL, token {hex}, daemon INT, host VARCHAR(255), pid INT,"
    " started {time}, ended {time}, outcome {word}, error {text}, exit_code INT, `signal` INT, cpu_seconds DOUBLE,"
    " peak_rss_bytes {big}, code_version VARCHAR(255), log_tail {text}, result {text},"
    " PRIMARY KEY (experiment_id, attempt, token)"
)
_DAEMONS = (
    "id {key}, incarnation {hex} UNIQUE, name {name}, host {name}, host_id {name}, boot_id {name}, pid INT NOT NULL,"
    " pid_start {name}, version {name}, slots INT NOT NULL, state {word}, beat {big} NOT NULL,"
    " lease_s DOUBLE NOT NULL, lease_until {time}, started {time}, beat_at {time}, lock_inode VARCHAR(64)"
)
_COMMANDS = (
    "id {key}, incarnation {hex}, command {word}, token {hex}, asked_by {name}, asked {time}, answered {time},"
    " answer {text}"
)
_SNAPSHOTS = (
    "experiment_id INT NOT NULL, sequence INT NOT NULL, attempt INT NOT NULL, label VARCHAR(255), created {time},"
    " size_bytes {big} NOT NULL, parts INT NOT NULL, state_id {hex}, PRIMARY KEY (experiment_id, sequence)"
)
_SNAPSHOT_PARTS = (
    "experiment_id INT NOT NULL, state_id {hex}, part INT NOT NULL, attempt INT NOT NULL, data {bytes} NOT NULL,"
    " PRIMARY KEY (experiment_id, state_id, part)"
)
_META = "name VARCHAR(64) NOT NULL PRIMARY KEY, value VARCHAR(255) NOT NULL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of the schema.

    Args:
        version: the version that it leads to.
        oldest: the oldest version of this code that may still work on its result; older daemons drain and end.
        summary: what it brings, for people.
        statements: DDL that is still missing; each stands alone and can be repeated from where it stopped, for MySQL
            commits each by itself.
    """

    version: int
    oldest: int
    summary: str
    statements: Callable[[Table, State], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one change of the tables is for, and the statements of it that are still missing."""

    summary: str
    statements: Sequence[str]


def changes(table: Table, state: State) -> list[Change]:
    """What makes, adopts, upgrades or completes the tables, in order; empty when everything is there."""
    steps = [
        Change(summary=f"schema {step.version}: {step.summary}", statements=step.statements(table, state))
        for step in pending(state)
    ]
    gone = Change(summary="what was there and is gone", statements=_gone(table, state))
    completion = Change(
        summary="fields, logtables and emissions of the configuration", statements=_complete(table, state)
    )
    return [*([gone] if gone.statements else []), *steps, *([completion] if completion.statements else [])]


def _gone(table: Table, state: State) -> list[str]:
    """What steps made that were taken, and somebody dropped since. A newer version may have dropped it itself."""
    if state.version is None or state.version > VERSION:
        return []
    taken = [step for step in MIGRATIONS if step.version <= state.version]
    return [statement for step in taken for statement in step.statements(table, state)]


def statements(table: Table, state: State) -> list[str]:
    """The DDL of all changes."""
    return [statement for change in changes(table, state) for statement in change.statements]


def pending(state: State) -> list[Migration]:
    """The steps that a table in this state has not taken."""
    return [step for step in MIGRATIONS if step.version > (state.version or 0)]


def oldest_after(state: State) -> int:
    """The oldest version of this code that may work on the table once it has taken the pending steps."""
    return max([step.oldest for step in pending(state)], default=state.oldest or 0)


@unit
def ddl(statement: str) -> Steps[None]:
    """One statement of `statements`."""
    yield Do(statement)


@unit
def stamp(table: Table) -> Steps[None]:
    """Record the version of the schema; the last act of making or upgrading. A newer version stays."""
    meta = dict((yield Do(f"SELECT name, value FROM {table.meta}")).rows)
    if int(meta.get("version", 0)) > VERSION:
        return
    yield Commit(
        [
            *_fields_not_recorded(table, meta),
            Do(f"DELETE FROM {table.meta} WHERE name IN ('version', 'oldest')"),
            Do(
                f"INSERT INTO {table.meta} (name, value) VALUES ('version', ?), ('oldest', ?)",
                (str(VERSION), str(max(OLDEST, int(meta.get("oldest", 0))))),
            ),
        ]
    )


@unit
def record_fields(table: Table) -> Steps[None]:
    """Record the keyfields that fingerprints are made of, and the result fields, where that was not done before."""
    meta = dict((yield Do(f"SELECT name, value FROM {table.meta}")).rows)
    yield Commit(_fields_not_recorded(table, meta))


def _fields_not_recorded(table: Table, meta: Mapping[str, str]) -> list[Do]:
    rows = []
    if not any(name.startswith(KEYS) for name in meta):
        rows += [(f"{KEYS}{number}", name) for number, name in enumerate(table.keyfields, 1)]
    results = [value for name, value in meta.items() if name.startswith(RESULTS)]
    new = [name for name in table.resultfields if name not in results]
    rows += [(f"{RESULTS}{number}", name) for number, name in enumerate(new, len(results) + 1)]
    return [Do(f"INSERT INTO {table.meta} (name, value) VALUES (?, ?)", rows, many=True)] if rows else []


def _first(table: Table, state: State) -> list[str]:
    """The experiment table and what a daemon needs beside it; a table of PyExperimenter is adopted."""
    if state.exists:
        ours = OURS[table.dialect.provider]
        made = [
            *_forget_snapshots(table, state),
            *_add_hidden_columns(table, table.name, _not_there(ours, state.columns)),
        ]
    else:
        made = [_create_main(table)]
    return [
        *made,
        *_create_indexes(table, state, (CLAIM, WAITING, OWNER, FINGERPRINT)),
        *_create_beside(table, state, {"pyexpd_attempts": _ATTEMPTS, "pyexpd_daemons": _DAEMONS, "pyexpd_meta": _META}),
    ]


def _forget_snapshots(table: Table, state: State) -> list[str]:
    """A table that was made anew by others has other experiments under the same IDs: they must not go on from these."""
    if "pyexpd_attempt" in state.columns:
        return []
    names = ("pyexpd_snapshots", "pyexpd_snapshot_parts")
    return [f"DELETE FROM {table.beside(name)}" for name in names if name in state.beside]


def _second(table: Table, state: State) -> list[str]:
    """Commands to daemons, what daemons say of themselves with each beat, attempts by the time they ended.

    And on SQLite an index of the statuses that had none.
    """
    rare = (RARE,) if table.dialect.provider == "sqlite" else ()
    facts = {} if "facts" in state.beside.get("pyexpd_daemons", ()) else {"facts": "LONGTEXT"}
    return [
        *_create_beside(table, state, {"pyexpd_commands": _COMMANDS}),
        *_add_columns(table, f"{table.name}__pyexpd_daemons", facts),
        *_create_indexes(table, state, (ENDED, COMMANDED, STATE, *rare)),
    ]


def _third(table: Table, state: State) -> list[str]:
    """Snapshots, and the parts of their states."""
    return _create_beside(table, state, {"pyexpd_snapshots": _SNAPSHOTS, "pyexpd_snapshot_parts": _SNAPSHOT_PARTS})


MIGRATIONS = (
    Migration(version=1, oldest=1, summary="the tables of a daemon", statements=_first),
    Migration(version=2, oldest=1, summary="commands to daemons, and what they say of themselves", statements=_second),
    Migration(version=3, oldest=1, summary="snapshots of experiments", statements=_third),
)
"""Every step, oldest first."""

VERSION = MIGRATIONS[-1].version
"""The version of the schema this code makes and works on."""

OLDEST = MIGRATIONS[-1].oldest
"""The oldest version of this code's schema number that may still work on tables of VERSION."""


def _suffix(table: Table) -> str:
    return " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4" if table.dialect.provider == "mysql" else ""


def _invisible(table: Table, sql_type: str) -> str:
    return f"{sql_type} INVISIBLE" if table.dialect.provider == "mysql" else sql_type


def _create_main(table: Table) -> str:
    mysql = table.dialect.provider == "mysql"
    key = "INTEGER PRIMARY KEY AUTO_INCREMENT" if mysql else "INTEGER PRIMARY KEY AUTOINCREMENT"
    columns = [
        f"ID {key}",
        *(f"{quote(name)} {sql_type} DEFAULT NULL" for name, sql_type in table.keyfields.items()),
        "creation_date DATETIME DEFAULT NULL",
        "status VARCHAR(255) DEFAULT NULL",
        "start_date DATETIME DEFAULT NULL",
        "name LONGTEXT DEFAULT NULL",
        "machine VARCHAR(255) DEFAULT NULL",
        *(f"{quote(name)} {sql_type} DEFAULT NULL" for name, sql_type in table.result_columns.items()),
        "end_date DATETIME DEFAULT NULL",
        "error LONGTEXT DEFAULT NULL",
        *(f"{name} {_invisible(table, kind)}" for name, kind in OURS[table.dialect.provider].items()),
    ]
    return f"CREATE TABLE IF NOT EXISTS {table.main} ({', '.join(columns)}){_suffix(table)}"


def _create_beside(table: Table, state: State, wanted: Mapping[str, str]) -> list[str]:
    types = _TYPES[table.dialect.provider]
    return [
        f"CREATE TABLE IF NOT EXISTS {table.beside(name)} ({columns.format_map(types)}){_suffix(table)}"
        for name, columns in wanted.items()
        if name not in state.beside
    ]


def _create_logtable(table: Table, logtable: str, columns: Mapping[str, str]) -> list[str]:
    ours = {column: _invisible(table, sql_type) for column, sql_type in _OURS_IN_LOGS.items()}
    described = {"timestamp": "DATETIME", **_absent(columns, ()), **ours}
    return _create_of_experiments(table, f"{table.name}__{logtable}", described)


def _create_of_experiments(table: Table, name: str, columns: Mapping[str, str]) -> list[str]:
    """A table of rows that belong to experiments and go with them."""
    mysql = table.dialect.provider == "mysql"
    parts = [
        f"ID INTEGER PRIMARY KEY {'AUTO_INCREMENT' if mysql else 'AUTOINCREMENT'}",
        "experiment_id INTEGER",
        *(f"{quote(column)} {sql_type}" for column, sql_type in columns.items()),
        f"FOREIGN KEY (experiment_id) REFERENCES {table.main} (ID) ON DELETE CASCADE",
    ]
    ddl = [f"CREATE TABLE IF NOT EXISTS {quote(name)} ({', '.join(parts)}){_suffix(table)}"]
    if not mysql:  # InnoDB makes this index with the foreign key
        ddl.append(f"CREATE INDEX IF NOT EXISTS {quote(f'{name}__of')} ON {quote(name)} (experiment_id)")
    return ddl


def _complete(table: Table, state: State) -> list[str]:
    """The fields and logtables of the configuration that the tables lack, and the table of emissions."""
    made = _add_columns(table, table.name, _absent(table.result_columns, state.columns)) if state.exists else []
    for logtable, columns in table.logtables.items():
        there = state.beside.get(logtable)
        if there is None:
            made += _create_logtable(table, logtable, columns)
        else:
            made += _add_columns(table, f"{table.name}__{logtable}", _absent(columns, there))
            made += _add_hidden_columns(table, f"{table.name}__{logtable}", _not_there(_OURS_IN_LOGS, there))
    if table.codecarbon and not state.emissions:
        made += _create_of_experiments(table, f"{table.name}_codecarbon", _absent(emissions.COLUMNS, ()))
    elif table.codecarbon:
        made += _add_columns(table, f"{table.name}_codecarbon", _absent(emissions.COLUMNS, state.emissions))
    return made


def _not_there(wanted: Mapping[str, str], there: Sequence[str]) -> dict[str, str]:
    """The columns (name -> type) that are not there, whatever their capitals."""
    known = {column.lower() for column in there}
    return {name: kind for name, kind in wanted.items() if name.lower() not in known}


def _absent(wanted: Mapping[str, str], there: Sequence[str]) -> dict[str, str]:
    return {name: f"{kind} DEFAULT NULL" for name, kind in _not_there(wanted, there).items()}


def _add_hidden_columns(table: Table, name: str, missing: Mapping[str, str]) -> list[str]:
    return _add_columns(table, name, {column: _invisible(table, kind) for column, kind in missing.items()})


def _add_columns(table: Table, name: str, missing: Mapping[str, str]) -> list[str]:
    """Online: MySQL and SQLite change what they know of the table and copy no row."""
    if not missing:
        return []
    added = [f"ADD COLUMN {quote(column)} {sql_type}" for column, sql_type in missing.items()]
    if table.dialect.provider == "mysql":
        return [f"ALTER TABLE {quote(name)} {', '.join(added)}, ALGORITHM=INSTANT"]
    return [f"ALTER TABLE {quote(name)} {column}" for column in added]


def _create_indexes(table: Table, state: State, wanted: Sequence[str]) -> list[str]:
    online = " ALGORITHM=INPLACE LOCK=NONE" if table.dialect.provider == "mysql" else ""
    shapes = _INDEXES[table.dialect.provider]
    tables = {"table": table.main, "attempts": table.attempts, "commands": table.commands, "daemons": table.daemons}
    return [
        f"CREATE {shapes[index].format(name=quote(table.index(index)), **tables)}{online}"
        for index in wanted
        if table.index(index) not in state.indexes
    ]
