"""A Unix socket in front of a database server that notes which process knocks, and when."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

from tests.servers import PrivateServer

_BLOCK = 65536


class Doorman(socketserver.ThreadingUnixStreamServer):
    """Hands every connection on to the server; when that is down, the connection is closed at once."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, path: Path, server: PrivateServer) -> None:
        super().__init__(str(path), _Visit)
        self.server_path = server.socket
        self.knocks: list[tuple[float, int]] = []
        """Monotonic time and process id of every connection."""
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def count(self, *, since: float, until: float) -> Counter[int]:
        """How often each process knocked in that time."""
        return Counter(pid for moment, pid in self.knocks if since <= moment <= until)


class _Visit(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Doorman)
        visitor: socket.socket = self.request
        pid, _, _ = struct.unpack("3i", visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self.server.knocks.append((time.monotonic(), pid))
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as host:
            host.connect(self.server.server_path)
            _carry(visitor, host)


def _carry(one: socket.socket, other: socket.socket) -> None:
    """Carry what either says to the other, until one of them has nothing more to say."""
    partner = {one: other, other: one}
    while True:
        readable, _, _ = select.select([one, other], [], [])
        for speaker in readable:
            said = speaker.recv(_BLOCK)
            if not said:
                return
            partner[speaker].sendall(said)
