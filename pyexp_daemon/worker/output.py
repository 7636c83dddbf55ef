"""What children print: each attempt's output in its own bounded file, its last lines in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import anyio

from pyexp_daemon.log import get_logger

log = get_logger()

TAIL_BYTES = 4096
"""How much of the end of an output is kept in memory, for the attempts table."""

_PIPE_BYTES = 1024 * 1024
_READ_BYTES = 32 * 1024


class BoundedLog:
    """A file that keeps the beginning and the end of an output of any length.

    The first half of `size_bytes` is never given up. When the rest is full, its older half goes: so the end of the
    file is always the last quarter to half of the output, behind a line saying how many bytes are missing. The file
    can be read at any time, and is opened at the first byte. Without a path only the tail is kept.

    Args:
        echo: told of every piece as it comes.
    """

    def __init__(self, path: str | None, *, size_bytes: int, echo: Callable[[bytes], None] | None = None) -> None:
        self.path = path
        self._echo = echo
        self.count_bytes = 0
        self._head_bytes = size_bytes // 2
        self._part_bytes = max(1, size_bytes // 4)
        self._file: FileIO | None = None
        self._seen_bytes = 0
        self._kept_bytes = 0
        self._tail = bytearray()

    @property
    def tail(self) -> str | None:
        """The last 4 KiB as text; None when nothing was printed."""
        if not self.count_bytes:
            return None
        return bytes(self._tail[-TAIL_BYTES:]).decode("utf-8", "replace").replace("\0", "\\0")

    def write(self, data: bytes) -> None:
        """Append; a file that cannot be written is given up with a warning, the tail in memory goes on."""
        self.count_bytes += len(data)
        if self._echo is not None:
            self._echo(data)
        self._tail += data[-TAIL_BYTES:]
        if len(self._tail) > 4 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
        if self.path is None:
            return
        try:
            self._append(data)
        except OSError as error:
            log.warning("log.unwritable", path=self.path, error=str(error))
            self.close()
            self.path = None

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, data: bytes) -> None:
        file = self._file = self._file or self._open()
        for start in range(0, len(data), self._part_bytes):
            piece = data[start : start + self._part_bytes]
            if self._kept_bytes + len(piece) > self._head_bytes + 2 * self._part_bytes:
                self._drop_older_part(file)
            file.write(piece)
            self._seen_bytes += len(piece)
            self._kept_bytes += len(piece)

    def _open(self) -> FileIO:
        assert self.path is not None
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(self.path, "r+" if self._kept_bytes else "w+")
        file.seek(0, os.SEEK_END)
        return file

    def _drop_older_part(self, file: FileIO) -> None:
        """Move the newest part to where the head ends, behind a line that counts what is missing."""
        file.seek(-self._part_bytes, os.SEEK_END)
        newest = file.read(self._part_bytes)
        self._kept_bytes = self._head_bytes + len(newest)
        file.seek(self._head_bytes)
        file.write(b"\n--- %d bytes left out ---\n" % (self._seen_bytes - self._kept_bytes) + newest)
        file.truncate()


class Output:
    """The reading end of the pipe into which a child and all its descendants print."""

    def __init__(self, pipe: int, target: BoundedLog) -> None:
        os.set_blocking(pipe, False)
        self.target = target
        self._pipe = pipe

    async def run(self) -> None:
        """Carry over what arrives, until nobody holds the other end any more."""
        while True:
            await anyio.wait_readable(self._pipe)
            if self._carry() == 0:
                return

    def catch_up(self) -> None:
        """Carry over what is in the pipe now, without waiting, and no more than a pipe can hold."""
        left = _PIPE_BYTES
        while left > 0:
            count = self._carry()
            if not count:
                return
            left -= count

    def turn_to(self, target: BoundedLog) -> None:
        """From now on, write there."""
        self.target.close()
        self.target = target

    def close(self) -> None:
        """Take what is there still, and close."""
        self.catch_up()
        self.target.close()
        os.close(self._pipe)

    def _carry(self) -> int | None:
        """How many bytes were carried over; None when there is nothing now, 0 when there never will be."""
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return None
        if data:
            self.target.write(data)
        return len(data)
