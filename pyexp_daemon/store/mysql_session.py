"""A session with MySQL or MariaDB: where to, how to log in, what is set, what the server says of itself."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pymysql
from pymysql.constants import CLIENT

from pyexp_daemon import exceptions
from pyexp_daemon.config.credentials import Credentials, Ssl


class Target:
    """A database on a server and how to get there. Its repr shows no password.

    Args:
        load: reads the credentials; again for each connection, so that a password may be changed while we work.
    """

    def __init__(self, load: Callable[[], Credentials], database: str) -> None:
        """
        Raises:
            ConfigError: there are no credentials, or they are wrong.
        """
        self._load = load
        self.credentials = load()
        self.database = database

    def __str__(self) -> str:
        c = self.credentials
        if c.ssh:
            return f"mysql://{c.ssh.remote_address}:{c.ssh.remote_port}/{self.database} via {c.ssh}"
        where = c.unix_socket or f"{c.server}:{c.port}"
        return f"mysql://{where}/{self.database}"

    def options(self, *, with_database: bool = True) -> dict[str, Any]:
        """What the drivers need to connect, by the credentials as they are now; opens the tunnel, if there is one.

        Raises:
            ConnectionLost: the tunnel cannot be opened, or the files for TLS cannot be used.
        """
        with contextlib.suppress(exceptions.ConfigError):  # they are just being written: those of before, once more
            self.credentials = self._load()
        c = self.credentials
        options: dict[str, Any] = {
            "user": c.user,
            "password": c.password.get_secret_value(),
            "charset": "utf8mb4",
            "autocommit": True,
            "client_flag": CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS,
            "connect_timeout": 10,
        }
        if c.ssh:
            from pyexp_daemon.store.tunnel import tunnel_to  # with a loop for the few who need it

            host, port = tunnel_to(c.ssh).local_end()
            options |= {"host": host, "port": port, "server_name": c.server}
        elif c.unix_socket:
            options["unix_socket"] = c.unix_socket
        else:
            options |= {"host": c.server, "port": c.port}
        if with_database:
            options["db"] = self.database
        if self.is_encrypted:
            options["ssl"] = self.tls
        return options

    @property
    def is_encrypted(self) -> bool:
        """Whether connections must be encrypted."""
        return self.credentials.ssl is not None

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The one context of this process, made anew when its files were replaced.

        Raises:
            ConnectionLost: the files cannot be used.
        """
        wanted = self.credentials.ssl
        if wanted is None:
            return None
        try:
            files = [path for path in (wanted.ca, wanted.cert, wanted.key) if path]
            return _tls_context(wanted, tuple(path.stat().st_mtime_ns for path in files))
        except OSError as error:  # ssl.SSLError is one
            raise _unusable(wanted, error) from error


@functools.lru_cache(maxsize=1)
def _tls_context(wanted: Ssl, changed: tuple[int, ...]) -> ssl.SSLContext:
    """Kept, for making one costs as much as hundreds of statements; `changed` is when its files were."""
    context = ssl.create_default_context(cafile=wanted.ca)
    # Python 3.13 refuses the certificates of many a private CA, for want of extensions that nobody reads.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not wanted.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if wanted.cert:
        context.load_cert_chain(wanted.cert, wanted.key)
    return context


def _unusable(wanted: Ssl, error: OSError) -> exceptions.ConnectionLost:
    names = ", ".join(f"{name} {path}" for name in ("ca", "cert", "key") if (path := getattr(wanted, name)))
    reason = f"{error.filename}: {error.strerror}" if error.filename else f"{names}: {error.strerror or error}"
    lost = exceptions.ConnectionLost(f"no encrypted connection to the database can be made: {reason}")
    lost.hint = "Connection.Standard.ssl in the credentials; relative paths belong to the project directory"
    return lost


@dataclass(frozen=True, slots=True)
class Server:
    """What a server said of itself when a session began."""

    version: str
    read_only: bool
    max_packet: int
    connection_id: int
    started: float
    """When the server started, by our own monotonic clock: after a restart it counts connections from 1 again."""

    def is_same_run(self, other: Server) -> bool:
        """Whether the server has not been restarted between the two sessions."""
        return abs(self.started - other.started) < 3.0

    @property
    def mariadb(self) -> bool:
        return "mariadb" in self.version.lower()


WHO = "SELECT VERSION(), @@global.read_only, @@max_allowed_packet, CONNECTION_ID()"


UPTIME = "SHOW GLOBAL STATUS LIKE 'Uptime'"


def session_settings(server: Server, *, daemon: bool) -> str:
    """What every session of ours sets first."""
    statements = [
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = 4",
        "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
    ]
    if daemon:
        # A session that sleeps inside a transaction holds its rows: the server ends it soon.
        limit = "idle_transaction_timeout = 10" if server.mariadb else "wait_timeout = 60"
        statements.append(f"SET SESSION {limit}")
    return "; ".join(statements)


def check_server(row: Sequence[Any], uptime: Sequence[Any]) -> Server:
    """What the server says of itself.

    Raises:
        DatabaseConnectionError: it is too old for SKIP LOCKED.
    """
    started = time.monotonic() - float(uptime[1])
    server = Server(str(row[0]), str(row[1]) in ("1", "ON"), int(row[2]), int(row[3]), started)
    numbers = tuple(int(part) for part in re.findall(r"\d+", server.version)[:2])
    oldest = (10, 6) if server.mariadb else (8, 0)
    if numbers < oldest:
        kind = "MariaDB" if server.mariadb else "MySQL"
        raise exceptions.DatabaseConnectionError(
            f"{kind} {server.version} is too old: {'.'.join(map(str, oldest))} or newer is needed (SKIP LOCKED)"
        )
    return server


def keep_alive(sock: socket.socket | None, *, deadline_s: float) -> None:
    """Have the kernel notice a peer that is gone, also while we only wait."""
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(deadline_s * 1000))


def hang_up(close: Callable[[], object]) -> None:
    """Close a connection that may be broken already; nothing is expected of it any more."""
    with contextlib.suppress(pymysql.Error, OSError):
        close()
