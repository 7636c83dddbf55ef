"""With `ssl` in the credentials, a server that announces no TLS learns nothing: no user, no password in any form."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from pyexp_daemon import exceptions
from pyexp_daemon.config.load import load_config
from pyexp_daemon.store import open_blocking_store, open_store, reads
from pyexp_daemon.store.tables import Table

PASSWORD = "correct horse battery staple"

LONG_PASSWORD, CONNECT_WITH_DB, PROTOCOL_41, SECURE, PLUGIN_AUTH = 0x1, 0x8, 0x200, 0x8000, 0x80000
NO_TLS = LONG_PASSWORD | CONNECT_WITH_DB | PROTOCOL_41 | SECURE | PLUGIN_AUTH

GREETING = (
    b"\x0a8.0.36\0" + struct.pack("<I", 7) + b"saltsalt\0" + struct.pack("<HBHH", NO_TLS & 0xFFFF, 45, 2, NO_TLS >> 16)
    + bytes([21]) + b"\0" * 10 + b"saltsaltsalt\0" + b"mysql_native_password\0"
)  # fmt: skip


class Thief:
    """Greets without TLS, asks for the password in clear, and keeps every byte that it is sent."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.connections = 0
        self.heard = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(5)
            with connection:
                try:
                    connection.sendall(_packet(0, GREETING))
                    sequence = 2
                    while said := connection.recv(4096):
                        self.heard += said
                        connection.sendall(_packet(sequence, b"\xfemysql_clear_password\0"))
                        sequence += 2
                except OSError:
                    continue

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


def _packet(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number]) + body


@pytest.fixture
def thief() -> Iterator[Thief]:
    made = Thief()
    yield made
    made.close()


def write(folder: Path, thief: Thief, *, ssl: dict[str, Any] | None) -> Path:
    standard = {"server": "127.0.0.1", "port": thief.port, **({"ssl": ssl} if ssl else {})}
    credentials = {"Database": {"user": "me", "password": PASSWORD}, "Connection": {"Standard": standard}}
    path = folder / "database_credentials.yml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump({"CREDENTIALS": credentials}))
    table = {"name": "exp", "keyfields": {"x": {"type": "INT", "values": [1]}}, "resultfields": {"y": "DOUBLE"}}
    database = {"provider": "mysql", "database": "results", "table": table}
    config = folder / "pyexpd.yml"
    config.write_text(yaml.safe_dump({"PY_EXPERIMENTER": {"Database": database}}))
    return config


ENCRYPTED = {"verify": False}


@pytest.mark.parametrize("create", [False, True])
def test_the_blocking_driver_sends_nothing(thief: Thief, tmp_path: Path, *, create: bool) -> None:
    config = load_config(write(tmp_path, thief, ssl=ENCRYPTED))
    with pytest.raises(exceptions.DatabaseConnectionError, match="offers no encryption"):
        open_blocking_store(config, create=create)
    assert (thief.connections, thief.heard) == (1, b"")


async def test_the_async_driver_sends_nothing(thief: Thief, tmp_path: Path) -> None:
    config = load_config(write(tmp_path, thief, ssl=ENCRYPTED))
    store = open_store(config)
    with anyio.fail_after(60), pytest.raises(exceptions.DatabaseConnectionError, match="offers no encryption"):
        await store.read(reads.clock(Table.of(config.database)))
    await store.close()
    assert (thief.connections, thief.heard) == (1, b"")


def test_the_thief_is_one(thief: Thief, tmp_path: Path) -> None:
    """Without `ssl` it gets what it asks for, so that the tests above say something."""
    config = load_config(write(tmp_path, thief, ssl=None))
    with pytest.raises(exceptions.DatabaseError):
        open_blocking_store(config)
    assert PASSWORD.encode() in thief.heard


@pytest.mark.parametrize("command", ["status", "fill", "run"])
def test_commands_say_so_in_a_line(thief: Thief, tmp_path: Path, command: str) -> None:
    write(tmp_path, thief, ssl=ENCRYPTED)
    done = subprocess.run(
        [sys.executable, "-m", "pyexp_daemon", command, *(["--function", "m:f"] if command == "run" else [])],
        cwd=tmp_path,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (74, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("pyexpd: ") and "warning" not in line]
    assert "the server offers no encryption (TLS), and the credentials demand it" in line
    assert thief.heard == b""
