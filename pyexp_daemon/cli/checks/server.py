"""The MySQL or MariaDB server: what it allows, what it is set to, and what slows it down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pyexp_daemon import exceptions
from pyexp_daemon.cli.checks.finding import Finding, error, ok, warning
from pyexp_daemon.cli.sizes import show_size
from pyexp_daemon.cli.times import show_duration
from pyexp_daemon.config.credentials import Credentials, Ssh
from pyexp_daemon.store import server
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.tunnel import tunnel_to

if TYPE_CHECKING:
    from pyexp_daemon.store.mysql import BlockingMysql

CONNECTIONS_PER_DAEMON = 4
LEAST_PACKET = 16 * 2**20
LONG_HISTORY = 1_000_000
LONG_TRANSACTION_S = 600.0
_VARIABLES = (
    "max_connections", "max_user_connections", "max_allowed_packet", "read_only", "log_bin", "binlog_format",
    "transaction_isolation", "tx_isolation", "innodb_flush_log_at_trx_commit", "wsrep_on",
)  # fmt: skip
_HERE = ("localhost", "127.0.0.1", "::1")


def examine(store: BlockingMysql, table: Table, credentials: Credentials, *, live: int) -> Iterator[Finding]:
    """Everything that can be asked of the server.

    Args:
        live: how many daemons of this table are registered now.
    """
    variables = store.read(server.variables(table, _VARIABLES))
    tls = store.read(server.state(table, ("Ssl_cipher", "Ssl_version")))
    yield encryption(tls, credentials)
    if variables.get("read_only", "OFF") not in ("OFF", "0"):
        yield error("read_only", "the server is read-only, so no daemon can work", "connect to the primary server")
    yield connections(variables, live=live)
    yield packet(variables)
    yield isolation(variables)
    yield from durability(variables)
    yield history(store, table)


def tunnel(ssh: Ssh) -> Finding:
    """Where an open tunnel begins and ends."""
    host, port = tunnel_to(ssh).local_end()
    text = f"through {ssh} to {ssh.remote_address}:{ssh.remote_port} there; our end is {host}:{port}"
    return ok("tunnel", text if port == ssh.local_port else f"{text}, for {ssh.local_port} is taken")


def encryption(status: Mapping[str, str], credentials: Credentials) -> Finding:
    """Whether others can read what travels."""
    cipher = status.get("ssl_cipher")
    if cipher and credentials.ssl is not None and not credentials.ssl.verify:
        return warning(
            "encryption",
            f"{status.get('ssl_version')}, {cipher}; but the server's certificate is not checked",
            "Connection.Standard.ssl.ca in the credentials, and verify: true",
        )
    if cipher:
        return ok("encryption", f"{status.get('ssl_version')}, {cipher}")
    hint = "Connection.Standard.ssl in the credentials"
    if credentials.ssh is not None:
        far = credentials.ssh.remote_address
        if far in _HERE:
            return ok("encryption", f"by ssh, to {credentials.ssh}")
        return warning("encryption", f"by ssh as far as {credentials.ssh}; from there to {far} there is none", hint)
    if credentials.unix_socket or credentials.server in _HERE:
        return ok("encryption", "none, within this host")
    return warning("encryption", f"the connection to {credentials.server} is not encrypted", hint)


def connections(variables: Mapping[str, str], *, live: int) -> Finding:
    """Whether the daemons that live, and one more, have room."""
    allowed = [int(variables.get(name, 0)) for name in ("max_connections", "max_user_connections")]
    most = min(count for count in allowed if count)
    text = f"{most} are allowed, enough for {most // CONNECTIONS_PER_DAEMON} daemons; {live} are live"
    if CONNECTIONS_PER_DAEMON * (live + 1) > most:
        return warning("connections", text, f"max_connections: {CONNECTIONS_PER_DAEMON} for each daemon")
    return ok("connections", text)


def packet(variables: Mapping[str, str]) -> Finding:
    """How large a result may be."""
    most = int(variables["max_allowed_packet"])
    text = f"max_allowed_packet is {show_size(most)}; one result may have about half of it"
    if most < LEAST_PACKET:
        return warning("packets", text, f"max_allowed_packet: {show_size(LEAST_PACKET)} or more")
    return ok("packets", text)


def isolation(variables: Mapping[str, str]) -> Finding:
    """READ COMMITTED, which we set, and a binary log that can be written under it (error 1665 otherwise)."""
    level = variables.get("transaction_isolation") or variables.get("tx_isolation") or "unknown"
    logged = variables.get("log_bin") in ("ON", "1")
    binlog = variables.get("binlog_format", "ROW") if logged else "off"
    text = f"{level}, binary log {binlog}"
    if level != "READ-COMMITTED":
        return error("isolation", f"{text}; sessions stay at that level", "something between changes our settings")
    if binlog == "STATEMENT":
        return error("isolation", f"{text}: the server refuses every write (error 1665)", "binlog_format: ROW")
    return ok("isolation", text)


def durability(variables: Mapping[str, str]) -> Iterator[Finding]:
    """Settings under which a committed result may be gone, or a claim may not hold; nothing when all is well."""
    flush = variables.get("innodb_flush_log_at_trx_commit", "1")
    if flush in ("0", "2"):
        yield warning(
            "durability",
            f"innodb_flush_log_at_trx_commit is {flush}: a crash of the server loses results of the last second",
            "innodb_flush_log_at_trx_commit: 1",
        )
    if variables.get("wsrep_on", "OFF") in ("ON", "1"):
        yield warning(
            "galera",
            "a Galera cluster: all daemons must write through one and the same node",
            "one server in all files",
        )


def history(store: BlockingMysql, table: Table) -> Finding:
    """How much of the past the server keeps for its oldest transaction; every claim has to step over it."""
    try:
        length = store.read(server.history(table))
    except exceptions.DatabaseConnectionError:
        length = None
    try:
        oldest = store.read(server.oldest_transaction(table))
    except exceptions.DatabaseConnectionError:
        holder, too_old = "who holds it is not visible without the privilege PROCESS", False
    else:
        too_old = oldest is not None and oldest.age_s > LONG_TRANSACTION_S
        holder = (
            f"the oldest transaction is {show_duration(oldest.age_s)} old, session {oldest.session}"
            f" of {oldest.user}@{oldest.host}"
            if oldest
            else "no open transaction"
        )
    text = f"history list length {'not visible' if length is None else length}; {holder}"
    if too_old or (length or 0) > LONG_HISTORY:
        return warning("history", text, "end the oldest transaction (a forgotten client, a backup): KILL SESSION")
    return ok("history", text)
