"""The SSH tunnel as the drivers use it: from threads, from a loop, after it broke, after a fork, under TLS."""

from __future__ import annotations

import gc
import importlib
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from pyexp_daemon import exceptions
from pyexp_daemon.config.credentials import Ssh
from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.store import close_tunnel, open_blocking_store, open_store, reads, tunnel
from pyexp_daemon.store import server as server_store
from pyexp_daemon.store.tables import Table
from pyexp_daemon.store.unit import Unit
from tests.authority import Authority
from tests.databases import Database
from tests.e2e.project import Project
from tests.helpers import wait_until
from tests.servers import Software
from tests.sshd import Sshd, go_through

on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


@pytest.fixture(autouse=True)
def _no_tunnel_stays_open() -> Iterator[None]:
    yield
    tunnel._close_all()


@pytest.fixture
def project(database: Database, tmp_path: Path, sshd: Sshd) -> Project:
    project = Project(database, tmp_path / "project")
    go_through(sshd, project)
    return project


@pytest.fixture
def config(project: Project) -> Config:
    return load_config(project.config)


def clock(config: Config) -> Unit[float]:
    return reads.clock(Table.of(config.database))


class Silent:
    """Accepts connections and says nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def ssh(self) -> Ssh:
        return Ssh(address="127.0.0.1", port=self._socket.getsockname()[1])

    @property
    def accepted(self) -> int:
        return len(self._open)

    def _accept(self) -> None:
        while True:
            try:
                self._open.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for each in (self._socket, *self._open):
            each.close()


OPEN_S = 3.0


@pytest.fixture
def silent(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    """A gateway that never answers; it is waited for only a moment."""
    importlib.import_module("asyncssh")  # which may take as long
    monkeypatch.setattr(tunnel, "OPEN_S", OPEN_S)
    made = Silent()
    yield made
    made.close()


@on_mariadb
async def test_a_loop_goes_on_while_a_tunnel_is_opened(project: Project, silent: Silent, sshd: Sshd) -> None:
    go_through(sshd, project, address="127.0.0.1", port=silent.ssh.port)
    config = load_config(project.config)
    store = open_store(config)
    longest, last = 0.0, time.monotonic()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:

            async def tick() -> None:
                nonlocal longest, last
                while True:
                    await anyio.sleep(0.01)
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()

            tasks.start_soon(tick)
            with pytest.raises(exceptions.SshTunnelError, match="no answer in time"):
                await store.read(clock(config))
            tasks.cancel_scope.cancel()
    await store.close()
    assert silent.accepted == 1
    assert longest < 0.7 * OPEN_S


def test_all_who_ask_wait_for_the_same_attempt(silent: Silent) -> None:
    errors: list[Exception] = []

    def ask() -> None:
        try:
            tunnel.tunnel_to(silent.ssh).local_end()
        except exceptions.SshTunnelError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(errors), silent.accepted) == (5, 1)
    assert time.monotonic() - began < 4 * OPEN_S


@on_mariadb
async def test_both_drivers_share_a_tunnel_and_have_it_opened_again(config: Config, sshd: Sshd) -> None:
    blocking, store = open_blocking_store(config, create=True), open_store(config)
    assert blocking.read(clock(config)) <= await store.read(clock(config))
    assert sshd.log.count("Accepted publickey") == 1
    sshd.kill()
    for _ in range(2):
        with pytest.raises(exceptions.ConnectionLost):
            blocking.read(clock(config))
        with pytest.raises(exceptions.ConnectionLost):
            await store.read(clock(config))
    sshd.start()
    assert blocking.read(clock(config)) <= await store.read(clock(config))
    assert sshd.log.count("Accepted publickey") == 2
    blocking.close()
    await store.close()


@on_mariadb
def test_a_tunnel_that_was_closed_is_opened_when_it_is_needed(config: Config) -> None:
    assert not close_tunnel(config)
    store = open_blocking_store(config, create=True)
    assert close_tunnel(config)
    assert not close_tunnel(config)
    assert not [thread for thread in threading.enumerate() if thread.name == "ssh-tunnel"]
    with pytest.raises(exceptions.ConnectionLost):
        store.read(clock(config))
    store.read(clock(config))
    store.close()


@on_mariadb
@pytest.mark.slow
def test_a_gateway_that_hangs_is_left(config: Config, sshd: Sshd) -> None:
    """Its processes are stopped, so that nobody says that the connection is gone."""
    store = open_blocking_store(config, create=True, deadline_s=2)
    session = sshd.sessions()[0]
    session.suspend()
    began = time.monotonic()

    def answers() -> bool:
        try:
            return store.read(clock(config)) > 0
        except exceptions.ConnectionLost:
            return False

    wait_until(answers, timeout=40)
    print(f"through another connection after {time.monotonic() - began:.1f} s")
    session.kill()
    store.close()


FORKING = """
import os, sys
from pathlib import Path
from pyexp_daemon.config.load import load_config
from pyexp_daemon.store import open_blocking_store, reads
from pyexp_daemon.store.tables import Table

config = load_config(Path(sys.argv[1]))
unit = reads.clock(Table.of(config.database))
parent = open_blocking_store(config, create=True)
child = os.fork()
if not child:
    store = open_blocking_store(config)
    store.read(unit)
    store.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
parent.read(unit)
"""


@on_mariadb
def test_a_forked_process_opens_a_tunnel_of_its_own(project: Project, sshd: Sshd) -> None:
    command = [sys.executable, "-c", FORKING, str(project.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert sshd.log.count("Accepted publickey") == 2


def test_tls_is_with_the_server_itself(mariadb_software: Software, tmp_path: Path, sshd: Sshd) -> None:
    """Its certificate has the name that it has without a tunnel, not that of the tunnel's end."""
    authority = Authority(tmp_path / "pki", "pyexpd tests")
    certificate, key = authority.issue("server", host="db.example.org")
    options = (f"--ssl-ca={authority.ca}", f"--ssl-cert={certificate}", f"--ssl-key={key}")
    with replace(mariadb_software, command=(*mariadb_software.command, *options)).server() as server:
        database = Database(provider="mysql", flavour="mariadb", name=server.create_database(), server=server)
        project = Project(database, tmp_path / "project")
        go_through(sshd, project)
        credentials = project.folder / "database_credentials.yml"
        content: dict[str, Any] = yaml.safe_load(credentials.read_text())
        for name, connect in (("db.example.org", True), ("another.example.org", False)):
            content["CREDENTIALS"]["Connection"]["Standard"] = {"server": name, "ssl": {"ca": str(authority.ca)}}
            credentials.write_text(yaml.safe_dump(content))
            config = load_config(project.config)
            for use in (use_blocking, use_async):
                if connect:
                    assert use(config).startswith("TLS")
                else:
                    with pytest.raises(exceptions.ConnectionLost, match="certificate is not trusted"):
                        use(config)


VERSION = "Ssl_version"


def use_blocking(config: Config) -> str:
    store = open_blocking_store(config)
    try:
        return store.read(server_store.state(Table.of(config.database), (VERSION,)))[VERSION.lower()]
    finally:
        store.close()


def use_async(config: Config) -> str:
    async def use() -> str:
        store = open_store(config)
        try:
            return (await store.read(server_store.state(Table.of(config.database), (VERSION,))))[VERSION.lower()]
        finally:
            await store.close()
            await anyio.wait_all_tasks_blocked()  # asyncio closes a connection whose TLS failed in a later turn

    try:
        return anyio.run(use)
    finally:
        with warnings.catch_warnings(action="ignore"):  # the driver leaves the copy of a socket behind when TLS fails
            gc.collect()
