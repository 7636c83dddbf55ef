"""What the account may do on the tables of one experiment table, read from the lines of SHOW GRANTS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pyexp_daemon.cli.checks.finding import Finding, error, ok, warning
from pyexp_daemon.store.tables import Table

DAEMON = ("SELECT", "INSERT", "UPDATE", "DELETE")
"""What a daemon needs on every table of its own, and what all commands need that make no tables."""

OPERATOR = ("CREATE", "ALTER", "INDEX")
"""What `fill`, `db create` and `db upgrade` need besides, when there is something to make."""

FOREIGN_KEY = "REFERENCES"
"""And this on MySQL, not on MariaDB, where there are logtables or emissions: they refer to the experiments."""

_NAME = r"\*|`(?:[^`]|``)+`"
_GRANT = re.compile(rf"GRANT (?P<privileges>.+?) ON (?P<database>{_NAME})\.(?P<table>{_NAME}) TO ")
_PRIVILEGE = re.compile(r"([A-Za-z ]+?)\s*(\([^)]*\))?\s*(?:,|$)")


def judge(lines: Sequence[str], *, database: str, table: Table, is_made: bool, mariadb: bool) -> Iterator[Finding]:
    """Whether the account is enough for a daemon, and whether it is for the one who fills.

    Args:
        lines: of SHOW GRANTS, roles included.
        is_made: the tables are there, in the present version.
        mariadb: the server is MariaDB, not MySQL.
    """
    lacking = _lacking(lines, DAEMON, database=database, tables=table.names)
    who = f"ON `{database}`.* TO …"
    if lacking:
        missed = "; ".join(f"{', '.join(names)} on {place}" for place, names in lacking.items())
        yield error("grants", f"the account lacks {missed}", f"GRANT {', '.join(DAEMON)} {who}")
    else:
        yield ok("grants", f"the account has {', '.join(DAEMON)} on all tables of {table.name}: enough for a daemon")
    wanted = (*OPERATOR, FOREIGN_KEY) if (table.logtables or table.codecarbon) and not mariadb else OPERATOR
    found = _lacking(lines, wanted, database=database, tables=table.names)
    missing = sorted({name for names in found.values() for name in names})
    if not missing:
        yield ok("grants to fill", f"the account has {', '.join(wanted)}, so it may make and upgrade the tables")
    elif is_made:
        yield ok(
            "grants to fill", f"the account lacks {', '.join(missing)}; it needs them only to make or upgrade tables"
        )
    else:
        yield warning(
            "grants to fill",
            f"the account lacks {', '.join(missing)}, so it can neither make nor upgrade the tables",
            f"pyexpd fill with another account, or GRANT {', '.join(missing)} {who}",
        )


def _lacking(
    lines: Sequence[str], needed: Sequence[str], *, database: str, tables: Sequence[str]
) -> dict[str, list[str]]:
    """The privileges that are missing, by table; of all tables as `all tables`."""
    missing = {}
    for table in tables:
        given = privileges(lines, database=database, table=table)
        missing[table] = [name for name in needed if name not in given and "ALL PRIVILEGES" not in given]
    distinct = {tuple(names) for names in missing.values()}
    if len(distinct) == 1:
        (names,) = distinct
        return {f"the tables of {tables[0]}": list(names)} if names else {}
    return {table: names for table, names in missing.items() if names}


def privileges(lines: Sequence[str], *, database: str, table: str) -> set[str]:
    """What lines of SHOW GRANTS allow on a table as a whole; what they allow on some columns counts as nothing."""
    given: set[str] = set()
    for line in lines:
        found = _GRANT.match(line)
        if found and _covers(found, database=database, table=table):
            given |= {name.strip().upper() for name, columns in _PRIVILEGE.findall(found["privileges"]) if not columns}
    return given


def _covers(found: re.Match[str], *, database: str, table: str) -> bool:
    if found["database"] == "*":
        return True
    schema = _unquoted(found["database"])
    if found["table"] == "*":
        return bool(_like(schema).fullmatch(database))
    return schema == database and _unquoted(found["table"]) == table


def _unquoted(name: str) -> str:
    return name[1:-1].replace("``", "`")


def _like(pattern: str) -> re.Pattern[str]:
    r"""A database in a grant is a pattern: `%`, `_`, and `\_` for a plain one."""
    parts = re.findall(r"\\.|.", pattern, flags=re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return re.compile("".join(wild.get(part) or re.escape(part.removeprefix("\\") or part) for part in parts))
