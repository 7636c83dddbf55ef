"""A plain DB-API connection to the database, for scripts that speak SQL themselves, as PyExperimenter's do."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql

from pyexp_daemon import exceptions
from pyexp_daemon.config.models import Config
from pyexp_daemon.store.sqlite import check_place


class DatabaseConnector:
    """Opens connections, and turns what the drivers raise into errors of ours.

    Args:
        load: gives the configuration as it is now.
        credentials: the file with user and password.
    """

    def __init__(self, load: Callable[[], Config], *, credentials: Path | None, logger: logging.Logger) -> None:
        self._load = load
        self._credentials = credentials
        self._logger = logger

    def connect(self) -> Any:
        """A new connection: sqlite3's, or PyMySQL's; the caller closes it.

        Raises:
            DatabaseConnectionError: the database is not there, or refuses us.
        """
        config = self._load()
        with _translated("connecting to the database"):
            if config.database.provider == "sqlite":
                check_place(config.database_path, create=False)
                return sqlite3.connect(config.database_path)
            from pyexp_daemon.store import target
            from pyexp_daemon.store.mysql_connections import BlockingConnection

            return BlockingConnection(**target(config, self._credentials).options() | {"autocommit": False})

    def cursor(self, connection: Any) -> Any:
        """A cursor of a connection."""
        with _translated("creating a cursor"):
            return connection.cursor()

    def execute(self, cursor: Any, sql_statement: str, values: Sequence[Any] | None = None) -> None:
        """Run one statement, with the placeholders of the driver: `?` on SQLite, `%s` on MySQL."""
        self._logger.debug("%s", sql_statement)
        with _translated("executing a statement"):
            cursor.execute(sql_statement, *([] if values is None else [values]))

    def fetchall(self, cursor: Any) -> Any:
        """All rows that a statement gave."""
        with _translated("fetching rows"):
            return cursor.fetchall()

    def commit(self, connection: Any) -> None:
        """Commit what was done since the last commit."""
        with _translated("committing"):
            connection.commit()

    def close_connection(self, connection: Any) -> None:
        """Close a connection."""
        with _translated("closing the connection"):
            connection.close()


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, pymysql.Error, OSError) as error:
        raise exceptions.DatabaseConnectionError(f"{doing}: {error}") from error
    except exceptions.MissingTable as error:
        raise exceptions.DatabaseConnectionError(str(error), hint=error.hint) from error
