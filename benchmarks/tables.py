"""Large experiment tables, made by the server itself: filling them through a daemon would take hours."""

from __future__ import annotations

from benchmarks.places import Place
from pyexp_daemon.config.load import load_config
from pyexp_daemon.store import filling, migrations, open_blocking_store
from pyexp_daemon.store.tables import Table

CHUNK = 250_000
WAITING = 1000

_NUMBERS = {
    "mariadb": "SELECT seq AS n FROM seq_{first}_to_{last}",
    "sqlite": "WITH RECURSIVE s(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s WHERE n < {last}) SELECT n FROM s",
}
_PRINT = {"mariadb": "UNHEX(LPAD(HEX(n), 32, '0'))", "sqlite": "CAST(printf('%016d', n) AS BLOB)"}
_ENDED = {
    "mariadb": "UTC_TIMESTAMP(6) - INTERVAL (({done} - n) / 10) SECOND",  # ten a second, the last of them now
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0) - ({done} - n) / 10.0",
}

_NOT_BEFORE = {"mariadb": "'2099-01-01'", "sqlite": "4e9"}


def make_table(here: Place, *, rows: int, done: int, waiting: int = WAITING, function: str = "noop") -> Table:
    """A table of so many experiments, the first `done` of which are done and have their receipts.

    The last `waiting` of them wait for a later try; what is between is created.
    """
    config = load_config(here.write(rows=1, function=function))
    table = Table.of(config.database)
    store = open_blocking_store(config, create=True)
    try:
        filling.ensure_tables(store, table)
        store.run(migrations.stamp(table))
    finally:
        store.close()
    for first in range(1, rows + 1, CHUNK):
        _insert(here, first, min(rows, first + CHUNK - 1), rows=rows, done=done, waiting=waiting)
    here.query("ANALYZE TABLE exp, exp__pyexpd_attempts" if here.database.server else "ANALYZE")
    return table


def _insert(here: Place, first: int, last: int, *, rows: int, done: int, waiting: int) -> None:
    flavour = "mariadb" if here.database.server else "sqlite"
    numbers = _NUMBERS[flavour].format(first=first, last=last)
    status = f"CASE WHEN n <= {done} THEN 'done' WHEN n > {rows - waiting} THEN 'waiting' ELSE 'created' END"
    here.query(
        "INSERT INTO exp (ID, x, creation_date, status, a, pyexpd_fingerprint, pyexpd_attempt, pyexpd_not_before)"
        f" SELECT n, n, '2026-01-01 00:00:00', {status}, n, {_PRINT[flavour]}, n <= {done},"
        f" CASE WHEN n > {rows - waiting} THEN {_NOT_BEFORE[flavour]} END"
        f" FROM ({numbers}) AS numbers"
    )
    if first <= done:
        here.query(
            "INSERT INTO exp__pyexpd_attempts (experiment_id, attempt, token, daemon, host, started, ended, outcome,"
            " code_version) SELECT n, 1, '0123456789abcdef0123456789abcdef', 1, 'host',"
            f" {_ENDED[flavour].format(done=done)}, {_ENDED[flavour].format(done=done)}, 'done',"
            f" CASE WHEN n <= {done // 3} THEN 'git 1234567' ELSE 'git 89abcde' END"
            f" FROM ({numbers}) AS numbers WHERE n <= {done}"
        )
