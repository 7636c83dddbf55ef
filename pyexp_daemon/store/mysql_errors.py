"""What each error of MySQL and MariaDB means for the caller; docs/protocol.md has the table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pymysql

from pyexp_daemon import exceptions

if TYPE_CHECKING:
    from pyexp_daemon.store.mysql_session import Target

_CONFLICT = frozenset({1213, 1205, 1020, 3572, 3058})
_LOST = frozenset({2002, 2003, 2006, 2013, 2014, 2055, 1927, 4031, 1053, 1152, 1158, 1159, 1160, 1161})
_READ_ONLY = frozenset({1290, 1792, 1836, 1047})
_TOO_MANY = frozenset({1040, 1203, 1226, 1041, 1021, 1030, 1114})
_ROW = frozenset(
    {1048, 1062, 1118, 1153, 1264, 1265, 1292, 1364, 1366, 1367, 1406, 1411, 1452, 1644, 1690}
    | {3140, 3819, 3854, 3988, 4025}
)
_REFUSED = frozenset({1044, 1045, 1049, 1142, 1143, 1227, 1698, 1251, 1130, 1129, 2026, 2059, 3159})


DEAD_SERVER = (OSError, EOFError, TimeoutError)


class Conflict(Exception):
    """The server rolled us back in favour of another session; the whole unit may simply run again."""


def translated(error: BaseException, *, session: object | None, commit_sent: bool) -> Exception:
    """What an error from the driver means for the caller; see protocol.md."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else None
    text = str(error.args[1]) if len(error.args) > 1 else str(error) or type(error).__name__
    if code in _CONFLICT:
        return Conflict(text)
    if code in _ROW:
        return exceptions.RowRefused(cleaned(text))
    if code == 1146:
        return exceptions.MissingTable(cleaned(text), hint="pyexpd fill creates and fills it")
    if code == 1049:
        return exceptions.MissingTable(cleaned(text), hint="pyexpd fill (or pyexpd db create) creates it")
    if code in _REFUSED:
        return exceptions.DatabaseConnectionError(f"the database refuses us: {cleaned(text)}")
    if code in _READ_ONLY | _TOO_MANY:
        return exceptions.ConnectionLost(f"the database does not serve us now: {cleaned(text)}", session=session)
    if code in _LOST or code == 0 or isinstance(error, (*DEAD_SERVER, pymysql.InterfaceError)):
        reason = "no answer in time" if isinstance(error, TimeoutError) else cleaned(text)
        return exceptions.ConnectionLost(
            f"connection to the database lost: {reason}",
            session=session,
            unknown=commit_sent,
            timed_out=isinstance(error, TimeoutError),
        )
    return exceptions.DatabaseQueryError(f"the database refused a statement: {cleaned(text)} ({code})")


def cleaned(text: str) -> str:
    """A message of the server in one line."""
    return re.sub(r"\s+", " ", text).strip()


def usable_after(error: BaseException) -> bool:
    """Whether the connection is in a known state after this error, so that a ROLLBACK puts it right."""
    code = error.args[0] if error.args and isinstance(error.args[0], int) else None
    if isinstance(error, exceptions.PyExperimenterError | Conflict):
        return True
    return (
        isinstance(error, pymysql.MySQLError)
        and code is not None
        and 1000 <= code < 2000
        and code not in _LOST | _READ_ONLY | _TOO_MANY
    )


def unreachable(target: Target, error: BaseException) -> Exception:
    """What an error while connecting means."""
    meaning = translated(error, session=None, commit_sent=False)
    if isinstance(meaning, exceptions.ConnectionLost):
        hint = _TRUST if _UNTRUSTED.search(_text(error)) else _REMOTE if target.credentials.ssh else None
        return exceptions.ConnectionLost(f"database {target} is not reachable: {_reason(error)}", hint=hint)
    if isinstance(meaning, exceptions.MissingTable):
        return exceptions.MissingTable(f"{target}: {meaning}", hint=meaning.hint)
    hint = getattr(meaning, "hint", None) or (None if target.is_encrypted else _hint_about_tls(error))
    return exceptions.DatabaseConnectionError(f"{target}: {meaning}", hint=hint)


_UNTRUSTED = re.compile(r"certificate verify failed: (.+?)\s*\(_ssl", re.IGNORECASE)
_TRUST = "Connection.Standard.ssl.ca in the credentials: the certificate of the CA that signed the server's"

_REMOTE = "Connection.Ssh.remote_address and remote_port in the credentials: the database, as that host sees it"


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    untrusted = _UNTRUSTED.search(_text(error))
    return f"the server's certificate is not trusted: {untrusted[1]}" if untrusted else _text(error)


def _text(error: BaseException) -> str:
    text = str(error.args[1] if len(error.args) > 1 else error)
    why = error.__cause__  # aiomysql does not say it
    return cleaned(f"{text} ({why})" if isinstance(why, OSError) and str(why) not in text else text)


def _hint_about_tls(error: BaseException) -> str | None:
    """A server tells an account with REQUIRE SSL no more than that its login is wrong."""
    if error.args and error.args[0] == 1045:
        return "check user and password; an account with REQUIRE SSL needs Connection.Standard.ssl in the credentials"
    if "insecure transport" in _text(error):
        return "Connection.Standard.ssl in the credentials"
    return None
