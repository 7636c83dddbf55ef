"""A place for experiment tables: one SQLite file, or one database on a real server."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.servers import Server

KEYFIELDS: dict[str, Any] = {"x": {"type": "INT", "values": [1, 2, 3]}}
RESULTFIELDS: dict[str, Any] = {"y": "DOUBLE"}


@dataclass(frozen=True, kw_only=True)
class Database:
    """Where the experiment tables of one test live.

    Args:
        provider: what the configuration calls it.
        flavour: which software it really is.
        name: what `Database.database` says: a database of `server`, or the path of the SQLite file without `.db`.
        server: None on SQLite.
    """

    provider: Literal["sqlite", "mysql"]
    flavour: Literal["sqlite", "mariadb", "mysql9"]
    name: str
    server: Server | None = None

    @property
    def path(self) -> Path:
        """The SQLite file."""
        assert self.provider == "sqlite"
        return Path(f"{self.name}.db")

    def connect(self) -> Any:
        """A plain blocking DB-API connection in autocommit mode, to look at tables; close it (`contextlib.closing`)."""
        if self.server:
            return self.server.connect(self.name)
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def query(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows of one statement, its values marked `?` on every database."""
        if self.server:
            return self.server.query(sql.replace("?", "%s") if values else sql, values, database=self.name)
        connection = self.connect()
        try:
            return list(connection.execute(sql, values).fetchall())
        finally:
            connection.close()

    def write_config(
        self,
        folder: Path,
        *,
        table: str = "exp",
        keyfields: dict[str, Any] | None = None,
        resultfields: dict[str, Any] | None = None,
        logtables: dict[str, Any] | None = None,
        result_timestamps: bool = False,
        n_jobs: int | None = None,
        function: str | None = None,
        store: str | None = None,
        daemon: dict[str, Any] | None = None,
        limits: dict[str, Any] | None = None,
        custom: dict[str, Any] | None = None,
        codecarbon: dict[str, Any] | None = None,
    ) -> Path:
        """Write `pyexpd.yml` into the folder, and for a server the credentials beside it; the path of the first.

        What is None is left out of the file, except keyfields and resultfields, which have small defaults.
        """
        described: dict[str, Any] = {
            "name": table,
            "keyfields": KEYFIELDS if keyfields is None else keyfields,
            "resultfields": RESULTFIELDS if resultfields is None else resultfields,
        }
        if result_timestamps:
            described["result_timestamps"] = True
        database = {"provider": self.provider, "database": self.name, "table": described, "logtables": logtables}
        sections = {
            "n_jobs": n_jobs,
            "Function": function,
            "Store": store,
            "Database": {key: value for key, value in database.items() if value is not None},
            "Custom": custom,
            "CodeCarbon": codecarbon,
            "Daemon": daemon,
            "Limits": limits,
        }
        content = {"PY_EXPERIMENTER": {key: value for key, value in sections.items() if value is not None}}
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "pyexpd.yml"
        config.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if self.server:
            self.write_credentials(folder)
        return config

    def write_credentials(self, folder: Path) -> Path:
        """Write `database_credentials.yml`, readable by its owner only."""
        assert self.server
        path = folder / "database_credentials.yml"
        content = {
            "CREDENTIALS": {
                "Database": {"user": self.server.user, "password": self.server.password},
                "Connection": {"Standard": {"server": self.server.host, "port": self.server.port}},
            }
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path
