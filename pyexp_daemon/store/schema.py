"""The tables: made, adopted from PyExperimenter, checked, and brought from one version of the schema to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyexp_daemon import exceptions
from pyexp_daemon.store.names import quote
from pyexp_daemon.store.tables import CLAIM, FINGERPRINT, OWNER, WAITING, Table
from pyexp_daemon.store.unit import Commit, Do, Steps, unit

VERSION = 1
"""The version of the schema this code makes and works on."""

OLDEST = 1
"""The oldest version of this code's schema number that may still work on tables of VERSION."""

_OURS: Mapping[str, Mapping[str, str]] = {
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
    },
    "sqlite": {
        CLAIM: "INDEX {name} ON {table} (pyexpd_queue, pyexpd_order, ID) WHERE status = 'created'",
        WAITING: "INDEX {name} ON {table} (pyexpd_not_before) WHERE status = 'waiting'",
        OWNER: "INDEX {name} ON {table} (pyexpd_daemon) WHERE status = 'running'",
        FINGERPRINT: "UNIQUE INDEX {name} ON {table} (pyexpd_fingerprint) WHERE pyexpd_fingerprint IS NOT NULL",
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
    },
    "sqlite": {
        "key": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "hex": "TEXT NOT NULL",
        "word": "TEXT NOT NULL",
        "name": "TEXT NOT NULL",
        "text": "TEXT",
        "time": "REAL",
        "big": "INTEGER",
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
_META = "name VARCHAR(64) NOT NULL PRIMARY KEY, value VARCHAR(255) NOT NULL"


@dataclass(frozen=True, slots=True)
class State:
    """What the database holds under the table's name."""

    columns: Sequence[str]
    """Columns of the experiment table in order; empty when there is none."""
    indexes: frozenset[str]
    tables: frozenset[str]
    """Names of the tables beside it, without its prefix."""
    log_columns: Mapping[str, Sequence[str]]
    version: int | None
    oldest: int | None

    @property
    def exists(self) -> bool:
        return bool(self.columns)


NOTHING = State(columns=(), indexes=frozenset(), tables=frozenset(), log_columns={}, version=None, oldest=None)
"""A database without the table."""


@unit
def inspect(table: Table) -> Steps[State]:
    """Read what is there; changes nothing."""
    mysql = table.dialect.provider == "mysql"
    columns = yield from _columns(table, table.name)
    if mysql:
        found = yield Do(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name LIKE ?",
            (_pattern(table),),
        )
        indexes = yield Do(
            "SELECT DISTINCT index_name FROM information_schema.statistics"
            " WHERE table_schema = DATABASE() AND table_name = ?",
            (table.name,),
        )
    else:
        found = yield Do(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE ? ESCAPE '\\'", (_pattern(table),)
        )
        indexes = yield Do("SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?", (table.name,))
    beside = frozenset(row[0][len(table.name) + 2 :] for row in found.rows)
    logs = {}
    for logtable in table.logtables:
        if logtable in beside:
            logs[logtable] = yield from _columns(table, f"{table.name}__{logtable}")
    meta = {}
    if "pyexpd_meta" in beside:
        rows = yield Do(f"SELECT name, value FROM {table.meta}")
        meta = dict(rows.rows)
    return State(
        columns=columns,
        indexes=frozenset(row[0] for row in indexes.rows),
        tables=beside,
        log_columns=logs,
        version=int(meta["version"]) if "version" in meta else None,
        oldest=int(meta["oldest"]) if "oldest" in meta else None,
    )


def _pattern(table: Table) -> str:
    return table.name.replace("_", "\\_") + "\\_\\_%"


def _columns(table: Table, name: str) -> Steps[list[str]]:
    if table.dialect.provider == "mysql":
        found = yield Do(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = DATABASE() AND table_name = ? ORDER BY ordinal_position",
            (name,),
        )
    else:
        found = yield Do("SELECT name FROM pragma_table_info(?)", (name,))
    return [row[0] for row in found.rows]


def check(table: Table, state: State) -> None:
    """Whether this code may work on the table as it is.

    Raises:
        MissingTable: there is none.
        TableHasWrongStructureError: keyfields or result fields differ from the configuration's.
        SchemaVersionError: it has to be adopted or upgraded first, or is too new.
    """
    check_readable(table, state)
    if state.version is None:
        raise exceptions.SchemaVersionError(
            f"table {table.name} was made by PyExperimenter and has not been adopted yet",
            hint="pyexpd fill (or pyexpd db create) adds the columns a daemon needs",
        )
    missing = [name for name in table.logtables if name not in state.log_columns]
    if state.version < VERSION or missing:
        what = f"logtable {missing[0]} does not exist yet" if missing else f"schema {state.version} is older"
        raise exceptions.SchemaVersionError(
            f"table {table.name}: {what}", hint="pyexpd fill brings the table up to date"
        )


def check_readable(table: Table, state: State) -> None:
    """Whether the user's own columns can be read: true of a table that PyExperimenter made, too.

    Raises:
        MissingTable: there is no table.
        TableHasWrongStructureError: keyfields or result fields differ from the configuration's.
        SchemaVersionError: the table needs a newer version of this code.
    """
    if not state.exists:
        raise exceptions.MissingTable(f"table {table.name} does not exist", hint="pyexpd fill creates and fills it")
    check_completable(table, state)


def check_completable(table: Table, state: State) -> None:
    """Whether `statements` may make, adopt or complete the tables.

    Raises:
        TableHasWrongStructureError: keyfields or result fields differ from the configuration's.
        SchemaVersionError: the table needs a newer version of this code.
    """
    if state.exists:
        check_structure(table, state)
    if state.oldest is not None and state.oldest > VERSION:
        raise exceptions.SchemaVersionError(
            f"table {table.name} has schema {state.version}, this pyexp_daemon knows none newer than {VERSION}",
            hint="upgrade pyexp_daemon on this node",
        )


def check_structure(table: Table, state: State) -> None:
    """Compare keyfields and result fields with the configuration; columns that the user added at the end are free.

    Raises:
        TableHasWrongStructureError: naming the columns and where they are missing.
    """
    there = {column.lower() for column in state.columns}
    wanted = [*table.keyfields, *table.result_columns]
    missing = [column for column in wanted if column.lower() not in there]
    if missing:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has no column {', '.join(missing)}",
            hint="give the table another name, or make the keyfields and resultfields those of the table",
        )
    known = {column.lower() for column in (*table.columns, *_OURS["mysql"])}
    end = next((place for place, name in enumerate(state.columns) if name.lower() == "error"), len(state.columns))
    unknown = [column for column in state.columns[:end] if column.lower() not in known]
    if unknown:
        raise exceptions.TableHasWrongStructureError(
            f"table {table.name} has a column {', '.join(unknown)} that the configuration does not name",
            hint="add it to the keyfields or resultfields, or give the table another name",
        )


def statements(table: Table, state: State) -> list[str]:
    """What makes, adopts or completes the tables: DDL in order, empty when everything is there.

    Every statement stands alone and can be repeated from where it stopped: MySQL commits each by itself.
    """
    if not state.exists:
        ddl = [_create_main(table)]
    else:
        ddl = _add_columns(table, table.name, _OURS[table.dialect.provider], state.columns)
    ddl += _create_indexes(table, state)
    ddl += [
        _create(table, name, columns)
        for name, columns in (("pyexpd_attempts", _ATTEMPTS), ("pyexpd_daemons", _DAEMONS), ("pyexpd_meta", _META))
        if name not in state.tables
    ]
    for logtable, columns in table.logtables.items():
        if logtable in state.tables:
            ddl += _add_columns(table, f"{table.name}__{logtable}", _OURS_IN_LOGS, state.log_columns[logtable])
        else:
            ddl += _create_logtable(table, logtable, columns)
    return ddl


@unit
def stamp(table: Table) -> Steps[None]:
    """Record the version of the schema; the last step of making or upgrading."""
    yield Commit(
        [
            Do(f"DELETE FROM {table.meta} WHERE name IN ('version', 'oldest')"),
            Do(
                f"INSERT INTO {table.meta} (name, value) VALUES ('version', ?), ('oldest', ?)",
                (str(VERSION), str(OLDEST)),
            ),
        ]
    )


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
        *(f"{name} {_invisible(table, kind)}" for name, kind in _OURS[table.dialect.provider].items()),
    ]
    return f"CREATE TABLE IF NOT EXISTS {table.main} ({', '.join(columns)}){_suffix(table)}"


def _create(table: Table, name: str, columns: str) -> str:
    types = _TYPES[table.dialect.provider]
    return f"CREATE TABLE IF NOT EXISTS {table.beside(name)} ({columns.format_map(types)}){_suffix(table)}"


def _create_logtable(table: Table, logtable: str, columns: Mapping[str, str]) -> list[str]:
    mysql = table.dialect.provider == "mysql"
    name = table.beside(logtable)
    parts = [
        f"ID INTEGER PRIMARY KEY {'AUTO_INCREMENT' if mysql else 'AUTOINCREMENT'}",
        "experiment_id INTEGER",
        "timestamp DATETIME",
        *(f"{quote(column)} {sql_type} DEFAULT NULL" for column, sql_type in columns.items()),
        *(f"{column} {_invisible(table, sql_type)}" for column, sql_type in _OURS_IN_LOGS.items()),
        f"FOREIGN KEY (experiment_id) REFERENCES {table.main} (ID) ON DELETE CASCADE",
    ]
    ddl = [f"CREATE TABLE IF NOT EXISTS {name} ({', '.join(parts)}){_suffix(table)}"]
    if not mysql:  # InnoDB makes this index with the foreign key
        index = quote(f"{table.name}__{logtable}__of")
        ddl.append(f"CREATE INDEX IF NOT EXISTS {index} ON {name} (experiment_id)")
    return ddl


def _add_columns(table: Table, name: str, columns: Mapping[str, str], there: Sequence[str]) -> list[str]:
    missing = {column: sql_type for column, sql_type in columns.items() if column not in there}
    if not missing:
        return []
    added = [f"ADD COLUMN {column} {_invisible(table, sql_type)}" for column, sql_type in missing.items()]
    if table.dialect.provider == "mysql":
        return [f"ALTER TABLE {quote(name)} {', '.join(added)}, ALGORITHM=INSTANT"]
    return [f"ALTER TABLE {quote(name)} {column}" for column in added]


def _create_indexes(table: Table, state: State) -> list[str]:
    online = " ALGORITHM=INPLACE LOCK=NONE" if table.dialect.provider == "mysql" else ""
    return [
        f"CREATE {shape.format(name=quote(table.index(index)), table=table.main)}{online}"
        for index, shape in _INDEXES[table.dialect.provider].items()
        if table.index(index) not in state.indexes
    ]


@unit
def ddl(statement: str) -> Steps[None]:
    """One statement of `statements`."""
    yield Do(statement)
