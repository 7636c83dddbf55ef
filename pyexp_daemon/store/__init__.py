"""The database: units of work and the drivers that run them. The only SQL in the tree is here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyexp_daemon.store.sqlite import BlockingSqlite

if TYPE_CHECKING:
    from pyexp_daemon.config.models import Config
    from pyexp_daemon.store.mysql import BlockingMysql
    from pyexp_daemon.store.mysql_async import AsyncMysql
    from pyexp_daemon.store.mysql_session import Target
    from pyexp_daemon.store.sqlite_async import AsyncSqlite

    Store = AsyncSqlite | AsyncMysql
    BlockingStore = BlockingSqlite | BlockingMysql


def open_store(
    config: Config, *, credentials: Path | None = None, is_crowded: Callable[[], bool] = lambda: False
) -> Store:
    """The driver of a daemon's loop; it connects at the first unit.

    Args:
        is_crowded: whether there are so many daemons now that they take turns (MySQL).
    """
    if config.database.provider == "sqlite":
        from pyexp_daemon.store.sqlite_async import AsyncSqlite

        return AsyncSqlite(config.database_path)
    from pyexp_daemon.store.mysql_async import AsyncMysql

    return AsyncMysql(target(config, credentials), is_crowded=is_crowded)


def open_blocking_store(
    config: Config,
    *,
    credentials: Path | None = None,
    create: bool = False,
    deadline_s: float = 60.0,
    daemon: bool = False,
) -> BlockingStore:
    """The driver of commands and of the heartbeat thread, connected.

    Args:
        create: make the database when it is missing.
        deadline_s: how long one statement may take (MySQL).
        daemon: the session belongs to a daemon, so the server may end it when it sleeps in a transaction.

    Raises:
        ConnectionLost, DatabaseConnectionError: it cannot be reached, or refuses us.
        MissingTable: the database does not exist.
    """
    if config.database.provider == "sqlite":
        return BlockingSqlite(config.database_path, create=create)
    from pyexp_daemon.store.mysql import BlockingMysql

    return BlockingMysql(target(config, credentials), create=create, deadline_s=deadline_s, daemon=daemon)


def close_tunnel(config: Config, *, credentials: Path | None = None) -> bool:
    """Close the SSH tunnel of this process to a configuration's database; whether there was one open.

    What goes through it breaks. Who connects after that has it opened again.
    """
    if config.database.provider == "sqlite" or not config.database.use_ssh:
        return False
    from pyexp_daemon.config.credentials import load_credentials
    from pyexp_daemon.store import tunnel

    ssh = load_credentials(config, credentials).ssh
    return ssh is not None and tunnel.close_tunnel(ssh)


def mark_of(config: Config, *, credentials: Path | None = None) -> str:
    """What stands for a table of a database in the name of a folder."""
    import hashlib

    sqlite = config.database.provider == "sqlite"
    database = str(config.database_path if sqlite else target(config, credentials))
    return hashlib.sha256(f"{database}\n{config.database.table.name}".encode()).hexdigest()[:16]


def target(config: Config, credentials: Path | None) -> Target:
    """Where the MySQL database of a configuration is and how to log in."""
    from pyexp_daemon.config.credentials import load_credentials
    from pyexp_daemon.store.mysql_session import Target

    return Target(lambda: load_credentials(config, credentials), config.database.database)
