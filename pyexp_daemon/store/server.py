"""What a MySQL or MariaDB server says of itself and of our account, for `pyexpd doctor`. Only looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Do, Steps, marks, unit


@unit
def variables(table: Table, names: Sequence[str]) -> Steps[dict[str, str]]:
    """The server's variables of these names, as this session sees them; a version that lacks one leaves it out."""
    found = yield Do(f"SHOW SESSION VARIABLES WHERE Variable_name IN ({marks(names)})", names)
    return {str(row[0]).lower(): str(row[1]) for row in found.rows}


@unit
def state(table: Table, names: Sequence[str]) -> Steps[dict[str, str]]:
    """The status variables of these names, as this session sees them; a version that lacks one leaves it out."""
    found = yield Do(f"SHOW SESSION STATUS WHERE Variable_name IN ({marks(names)})", names)
    return {str(row[0]).lower(): str(row[1]) for row in found.rows}


@unit
def grants(table: Table) -> Steps[list[str]]:
    """What the account may do, as the server puts it, the roles in force included."""
    found = yield Do("SHOW GRANTS")
    lines = [str(row[0]) for row in found.rows]
    who = yield Do("SELECT VERSION(), CURRENT_ROLE()")
    version, role = (str(value or "NONE") for value in who.rows[0])
    if role != "NONE" and "mariadb" not in version.lower():  # MariaDB's SHOW GRANTS has them already
        found = yield Do(f"SHOW GRANTS FOR CURRENT_USER() USING {role}")
        lines += [str(row[0]) for row in found.rows]
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """An open transaction, which keeps the server from forgetting old versions of rows."""

    session: int
    user: str
    host: str
    age_s: float


@unit
def history(table: Table) -> Steps[int | None]:
    """How many old versions of rows InnoDB has not forgotten yet; None when the server does not say.

    Raises:
        DatabaseError: the account may not know (MySQL demands PROCESS).
    """
    found = yield Do("SHOW GLOBAL STATUS LIKE 'Innodb_history_list_length'")  # MariaDB, for everybody
    if not found.rows:
        found = yield Do(
            "SELECT name, count FROM information_schema.innodb_metrics WHERE name = 'trx_rseg_history_len'"
        )
    return int(found.rows[0][1]) if found.rows else None


@unit
def oldest_transaction(table: Table) -> Steps[Transaction | None]:
    """The transaction that has been open for longest, except our own; None when there is none.

    Raises:
        DatabaseError: the account lacks PROCESS.
    """
    # InnoDB tells times in the server's own zone, our sessions live in UTC.
    age = "TIMESTAMPDIFF(SECOND, t.trx_started, CONVERT_TZ(UTC_TIMESTAMP(), '+00:00', 'SYSTEM'))"
    found = yield Do(
        f"SELECT p.id, p.user, p.host, {age} FROM information_schema.innodb_trx t"
        " JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id"
        " WHERE t.trx_mysql_thread_id <> CONNECTION_ID() ORDER BY t.trx_started LIMIT 1"
    )
    if not found.rows:
        return None
    session, user, host, age = found.rows[0]
    return Transaction(session=int(session), user=str(user), host=str(host), age_s=max(0.0, float(age)))
