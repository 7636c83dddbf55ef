"""SSH tunnels to databases: one for each gateway and process, opened when it is needed, and again when it was lost."""

from __future__ import annotations

import atexit
import errno
import os
import threading
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from anyio.from_thread import BlockingPortal

from pyexp_daemon import exceptions
from pyexp_daemon.config.credentials import Ssh
from pyexp_daemon.log import get_logger

if TYPE_CHECKING:
    from asyncssh import SSHClientConnection, SSHListener

log = get_logger()

OPEN_S = 15.0
"""How long it may take to open a tunnel: gateways are slow to let people in, and a beat must not wait for a minute."""

CLOSE_S = 2.0
"""How long closing may take."""

_NOT_OURS = (errno.EADDRINUSE, errno.EACCES)


class Tunnel:
    """Carries connections from a port of this host to the database, in a thread and an event loop of its own.

    So it serves blocking drivers and any loop alike. What it carries breaks together with it; who connects then has it
    opened again, and is told soon when that fails.
    """

    def __init__(self, ssh: Ssh) -> None:
        self._ssh = ssh
        self._lock = threading.Lock()
        self._opening: Future[tuple[str, int]] | None = None
        self._connection: SSHClientConnection | None = None
        started: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(target=anyio.run, args=(_serve, started), name="ssh-tunnel", daemon=True)
        self._thread.start()
        self._portal = started.result()

    def local_end(self) -> tuple[str, int]:
        """Where to connect to, host and port; all who ask while it is opened wait for the same attempt.

        Raises:
            SshTunnelError: it cannot be opened.
        """
        try:
            with self._lock:
                if self._opening is None or (self._opening.done() and not self._is_open):
                    self._opening = self._portal.start_task_soon(self._open)
                opening = self._opening
            return opening.result(2 * OPEN_S)
        except (TimeoutError, CancelledError, RuntimeError) as error:  # a home directory that hangs; closed meanwhile
            raise exceptions.SshTunnelError(f"no ssh connection to {self._ssh}: it does not open") from error

    @property
    def _is_open(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def _open(self) -> tuple[str, int]:
        try:
            from pyexp_daemon.store.gateway import log_in
        except ImportError as error:
            raise exceptions.SshTunnelError(
                f"no ssh connection to {self._ssh}: asyncssh is needed, and cannot be imported: {error}",
                hint="pip install 'pyexp-daemon[ssh]'",
            ) from error
        try:
            with anyio.fail_after(OPEN_S):
                connection = await log_in(self._ssh)
        except TimeoutError as error:
            raise exceptions.SshTunnelError(f"no ssh connection to {self._ssh}: no answer in time") from error
        try:
            port = (await self._listen(connection)).get_port()
        except OSError as error:
            connection.abort()
            raise exceptions.SshTunnelError(
                f"the ssh tunnel has no end here, at {self._ssh.local_address}: {os.strerror(error.errno or 0)}",
                hint="Connection.Ssh.local_address in the credentials; 127.0.0.1 is right nearly always",
            ) from error
        self._connection = connection
        log.info("tunnel.opened", gateway=str(self._ssh), host=self._ssh.local_address, port=port)
        return self._ssh.local_address, port

    async def _listen(self, connection: SSHClientConnection) -> SSHListener:
        """At `local_port`, where others on this host may expect it; at any port while somebody else has that one.

        The daemons of one host have a tunnel each, and it is a port on which a server may listen.
        """
        s = self._ssh
        try:
            return await connection.forward_local_port(s.local_address, s.local_port, s.remote_address, s.remote_port)
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            return await connection.forward_local_port(s.local_address, 0, s.remote_address, s.remote_port)

    def close(self) -> None:
        """End it, and what it carries; never raises."""
        with suppress(TimeoutError, CancelledError, RuntimeError):
            self._portal.start_task_soon(self._close).result(CLOSE_S)
        self._thread.join(CLOSE_S)

    async def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            with anyio.move_on_after(CLOSE_S / 2):
                await self._connection.wait_closed()
        await self._portal.stop(cancel_remaining=True)


async def _serve(started: Future[BlockingPortal]) -> None:
    async with BlockingPortal() as portal:
        started.set_result(portal)
        await portal.sleep_until_stopped()


_tunnels: dict[Ssh, Tunnel] = {}
_lock = threading.Lock()


def tunnel_to(ssh: Ssh) -> Tunnel:
    """The tunnel of this process; it may have to be opened yet."""
    with _lock:
        if ssh not in _tunnels:
            _tunnels[ssh] = Tunnel(ssh)
        return _tunnels[ssh]


def close_tunnel(ssh: Ssh) -> bool:
    """Close the tunnel of this process, if there is one; whether there was. Who connects later has it opened again."""
    with _lock:
        tunnel = _tunnels.pop(ssh, None)
    if tunnel is not None:
        tunnel.close()
    return tunnel is not None


@atexit.register
def _close_all() -> None:
    """The server hears from every session that it ends: otherwise it would count aborted connections."""
    for ssh in list(_tunnels):
        close_tunnel(ssh)


def _forget() -> None:
    """A forked process has the tunnels of its parent, and not the threads that serve them."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _tunnels.clear()


os.register_at_fork(after_in_child=_forget)
