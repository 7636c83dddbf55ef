"""A child as its daemon sees it: started, talked to, watched, and ended with all it brought about."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskGroup

from pyexp_daemon import exceptions
from pyexp_daemon.log import get_logger
from pyexp_daemon.worker import channel, limits, strays
from pyexp_daemon.worker.channel import Message
from pyexp_daemon.worker.output import BoundedLog, Output

log = get_logger()

_PROGRAM = Path(__file__).with_name("child.py")
_DUMP_S = 2.0
_KILL_S = 5.0
_LEAVE_S = 10.0
_DYING_S = 0.5
"""A dying process closes its files shortly before it counts as dead; the family of a dead child gets no grace."""
_MESSAGES_PER_TURN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a child ended, and what it used in its whole life. `peak_rss_bytes` is None where it cannot be known."""

    exit_code: int | None
    signal: int | None
    cpu_seconds: float
    peak_rss_bytes: int | None

    def __str__(self) -> str:
        if self.signal is None:
            return f"child exited with code {self.exit_code}"
        try:
            return f"child killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"child killed by signal {self.signal}"


class ChildProcess:
    """One child process. Made in the thread that runs the event loop: the child dies with the thread that made it.

    `fault` says what was wrong with its last words, `has_left_unread` that it ended before it read ours.

    Args:
        settings: what it runs.
        slot: the number of its slot.

    Raises:
        ChildrenCannotStart: the interpreter cannot be executed.
    """

    def __init__(self, settings: limits.SlotSettings, *, slot: int) -> None:
        mark = {limits.INCARNATION: settings.incarnation, limits.SLOT: str(slot)}
        environment = limits.make_environment(settings, slot=slot, inherited=os.environ)
        self._smallest_peak_bytes = _peak_bytes(resource.getrusage(resource.RUSAGE_SELF))
        self._socket, self._popen, pipe = _start(settings, environment)
        self.pid = self._popen.pid
        self.output = Output(pipe, BoundedLog(None, size_bytes=0))
        self.fault: str | None = None
        self.has_left_unread = False
        self._pidfd = os.pidfd_open(self.pid)
        self._family = strays.Family(self.pid, mark)
        self._frames = channel.FrameBuffer(limit_bytes=settings.max_message_bytes)
        self._outgoing = bytearray()
        self._limit_bytes = settings.max_message_bytes
        self._grace_s = settings.grace_s
        self._messages = 0
        self._has_hung_up = False
        self.gone = anyio.Event()
        self._dead = anyio.Event()
        self._attendance = anyio.CancelScope(shield=True)
        self._ending = anyio.Lock()
        self._end: End | None = None
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """While this is entered, the output is read and the death of the child noticed. Leaving it ends the child.

        However it is left, all processes of the child are gone then, or the log says which survived KILL.
        """
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._attend)
                try:
                    yield
                finally:
                    with anyio.move_on_after(self._grace_s + _LEAVE_S, shield=True):
                        await self.end()
                    self._attendance.cancel()
                    self._tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            self._socket.close()
            self.output.close()
            os.close(self._pidfd)

    @property
    def is_dead(self) -> bool:
        """Whether the process itself has ended."""
        return self._dead.is_set()

    def send(self, message: Message) -> None:
        """Send a message; what does not fit into the socket now follows by itself. A dead child gets nothing.

        Raises:
            MessageTooLong, TypeError: the message cannot be sent; nothing was.
        """
        is_behind = bool(self._outgoing)
        self._outgoing += channel.encode(message, limit_bytes=self._limit_bytes)
        if not is_behind and not self._push():
            assert self._tasks is not None
            self._tasks.start_soon(self._push_rest)

    async def receive(self) -> Message | None:
        """The next message of the child; None when there will be no more: it is dead, or `hang_up` was called."""
        self._messages += 1
        if self._messages % _MESSAGES_PER_TURN == 0:
            await anyio.lowlevel.checkpoint()
        while True:
            try:
                message = self._frames.next()
                if message is not None:
                    return message
                data = self._socket.recv(channel.RECEIVE_BYTES)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except channel.ChannelError as error:
                self.fault = f"child broke the channel: {error}"
                return None
            except ConnectionResetError:
                self.has_left_unread = True
                data = b""
            if not data:
                if not self._has_hung_up:  # else it lives, and does not know yet that it is to end
                    with anyio.move_on_after(_DYING_S):
                        await self._dead.wait()
                return None
            self._frames.feed(data)

    def hang_up(self) -> None:
        """Read what has been sent, and no more."""
        self._has_hung_up = True
        self._socket.shutdown(socket.SHUT_RD)

    async def dump_stacks(self) -> None:
        """Have the child write its stacks to the output; wait half a second at most until they are there."""
        before = count = self.output.target.count_bytes
        self._signal(channel.DUMP_SIGNAL)
        with anyio.move_on_after(_DUMP_S):
            while not self.is_dead:
                await anyio.sleep(0.02)
                count, last = self.output.target.count_bytes, count
                if count == last > before:
                    return

    async def end(self, *, ask: bool = False, dump: bool = False) -> End:
        """End the child with all it brought about, and verify; several callers at once are fine.

        TERM to the group, KILL after the grace, then KILL to whoever left the group. A dead child's family gets
        KILL at once.

        Args:
            ask: close the channel first, and leave the child the grace to come to its own end.
            dump: have the stacks written before.
        """
        async with self._ending:
            if self._end is None:
                if dump:
                    await self.dump_stacks()
                await self._stop(ask=ask)
                await self._kill_family()
                self._end = self._reap()
                self.gone.set()
            return self._end

    async def _stop(self, *, ask: bool) -> None:
        """End the child itself, and give its group the time that TERM gives."""
        if ask:
            self._socket.shutdown(socket.SHUT_WR)
            with anyio.move_on_after(self._grace_s):
                await self._dead.wait()
        if self.is_dead:
            return
        await anyio.to_thread.run_sync(self._family.members)  # whoever is a descendant now will be found later
        self._signal_group(signal.SIGTERM)
        with anyio.move_on_after(self._grace_s):
            await self._dead.wait()
            while await anyio.to_thread.run_sync(self._family.members):  # noqa: ASYNC110 only /proc can tell
                await anyio.sleep(0.02)
        self._signal_group(signal.SIGKILL)

    async def _kill_family(self) -> None:
        """KILL until everybody is gone; until then the experiment is not over, however long that takes."""
        while True:
            try:
                await anyio.to_thread.run_sync(lambda: self._family.kill(deadline_s=_KILL_S))
                await self._dead.wait()
            except TimeoutError as error:
                log.error("child.survived", pid=self.pid, error=str(error))
            else:
                return

    def end_soon(self, *, dump: bool = False) -> None:
        """`end`, without waiting for it; `gone` is set when it is done."""
        assert self._tasks is not None
        self._tasks.start_soon(lambda: self.end(dump=dump))

    async def _attend(self) -> None:
        """Read the output and await the death, however the rest is cancelled: ending the child relies on both."""
        with self._attendance:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.output.run)
                tasks.start_soon(self._notice_death)

    async def _notice_death(self) -> None:
        await anyio.wait_readable(self._pidfd)
        self._dead.set()
        self.hang_up()

    def _push(self) -> bool:
        """Send what the socket takes; whether that was all."""
        try:
            sent = self._socket.send(self._outgoing)
        except BlockingIOError:
            return False
        except OSError:
            self.has_left_unread = True  # its end is noticed elsewhere
            sent = len(self._outgoing)
        del self._outgoing[:sent]
        return not self._outgoing

    async def _push_rest(self) -> None:
        while not self._push():
            await anyio.wait_writable(self._socket)

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    def _signal_group(self, number: int) -> None:
        """Signal the group; its number is ours as long as the leader is not reaped."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return

    def _reap(self) -> End:
        _, status, usage = os.wait4(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self._popen.returncode = code
        peak_bytes = _peak_bytes(usage)
        return End(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            # exec carries over the peak of the process that forked: below ours, it says nothing about the child
            peak_rss_bytes=peak_bytes if peak_bytes > self._smallest_peak_bytes else None,
        )


def _start(
    settings: limits.SlotSettings, environment: Mapping[str, str]
) -> tuple[socket.socket, subprocess.Popen[bytes], int]:
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    ours.setblocking(False)
    try:
        popen = subprocess.Popen(
            [settings.python, str(_PROGRAM), str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            env=environment,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        os.close(reading)
        raise exceptions.ChildrenCannotStart(
            f"cannot start {settings.python}: {error.strerror}", hint="see Daemon.python in the configuration"
        ) from error
    finally:
        theirs.close()
        os.close(writing)
    return ours, popen, reading


def _peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * 1024
