"""A daemon inside a call of another program: a script or a notebook, whose own thread waits and prints.

The daemon's loop has a thread of its own, so the caller may have a running event loop. Interrupts do not break in
anywhere: they are a note to the waiting thread, which has the daemon hand back what runs.
"""

from __future__ import annotations

import codecs
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from pyexp_daemon import exceptions
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.options import Guest, RunOptions
from pyexp_daemon.daemon.supervisor import Supervisor
from pyexp_daemon.model import Attempt
from pyexp_daemon.worker import pickled

_Note = tuple[int, bytes] | signal.Signals | None
"""For the waiting thread: what a slot printed, an interrupt, or that it is over."""


def run_as_guest(
    function: Callable[..., Any],
    options: RunOptions,
    *,
    load: Callable[[], Config],
    ended: Callable[[Attempt], None],
) -> int:
    """Run a daemon until it has done what the options ask for; how many experiments it ran.

    What the experiments print is printed here. Ctrl-C and TERM hand back what runs, uncharged; then they have their
    usual effect.

    Args:
        function: the experiment function; children get it by value when it belongs to `__main__`.
        options: without `guest`, which is made here.
        load: gives the configuration as it is now.
        ended: told, in the daemon's thread, of every attempt when its end is stored.

    Raises:
        FunctionError, ChildrenCannotStart: the function cannot be sent to children or called there; nothing was run.
        DatabaseError: the database could not be used at the start.
        ResultsNotStored: the database was away at the end; some results are in the spool only.
        KeyboardInterrupt: Ctrl-C; what ran was handed back.
    """
    notes: SimpleQueue[_Note] = SimpleQueue()
    config = load()
    with tempfile.TemporaryDirectory(prefix="pyexpd-") as folder:
        file = Path(folder) / "function"
        pickled.write(str(file), function, config.custom)
        guest = Guest(pickled=file, echo=lambda slot, data: notes.put((slot, data)), ended=ended, reload=load)
        daemon = _Daemon(config, replace(options, guest=guest))
        with _interrupts(notes), start_blocking_portal() as portal:
            running = portal.start_task_soon(daemon.run)
            running.add_done_callback(lambda _: notes.put(None))
            _wait(notes, portal, daemon, _Printer(by_line=options.slots > 1))
        return _result(running)


class _Daemon:
    """The supervisor, made and used in the thread of its loop."""

    def __init__(self, config: Config, options: RunOptions) -> None:
        # The watchdog aborts the process of a loop that hangs: not one that is somebody else's.
        daemon = config.daemon.model_copy(update={"watchdog_s": math.inf})
        self._config = config.model_copy(update={"daemon": daemon})
        self._options = options
        self._supervisor: Supervisor | None = None
        self._is_stopped = False

    async def run(self) -> int:
        self._supervisor = Supervisor(self._config, self._options)
        if self._is_stopped:
            self.stop()
        await self._supervisor.run_as_guest()
        return self._supervisor.claiming.count

    def stop(self) -> None:
        """Hand back what runs, and end."""
        self._is_stopped = True
        if self._supervisor is not None:
            self._supervisor.control.drain(deadline_s=0)


@contextmanager
def _interrupts(notes: SimpleQueue[_Note]) -> Iterator[None]:
    """While the block runs, Ctrl-C and TERM are notes; afterwards they do what they would have done.

    Only in the main thread, the others never see them. Whoever handles Ctrl-C has it afterwards (a kernel does, when a
    cell awaits something); a program that handles TERM itself is left to it.
    """
    told: list[signal.Signals] = []

    def note(number: int, frame: object) -> None:
        told.append(signal.Signals(number))
        notes.put(signal.Signals(number))

    before = _handlers() if threading.current_thread() is threading.main_thread() else {}
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGTERM in told:
        os.kill(os.getpid(), signal.SIGTERM)
    if told:
        handler = before.get(signal.SIGINT)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(signal.SIGINT, None)
        raise KeyboardInterrupt


def _handlers() -> dict[signal.Signals, Any]:
    """The handlers that give way for a while."""
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if found[signal.SIGTERM] is not signal.SIG_DFL:
        del found[signal.SIGTERM]
    if found[signal.SIGINT] in (signal.SIG_IGN, None):
        del found[signal.SIGINT]
    return found


def _wait(notes: SimpleQueue[_Note], portal: BlockingPortal, daemon: _Daemon, printer: _Printer) -> None:
    """Print what the slots print, and pass interrupts on, until it is over."""
    while (note := notes.get()) is not None:
        if isinstance(note, signal.Signals):
            portal.call(daemon.stop)
        else:
            printer.print(*note)
    printer.close()


class _Printer:
    """Prints what comes from the slots, in whole lines when there are several: they print at the same time."""

    def __init__(self, *, by_line: bool) -> None:
        self._by_line = by_line
        self._begun: dict[int, bytes] = {}

    def print(self, slot: int, data: bytes) -> None:
        """Print what is whole: characters, or lines (a carriage return ends one, too)."""
        data = self._begun.pop(slot, b"") + data
        end = 1 + max(data.rfind(b"\n"), data.rfind(b"\r")) if self._by_line else _whole_bytes(data)
        self._write(data[:end])
        if data[end:]:
            self._begun[slot] = data[end:]

    def close(self) -> None:
        """Print what was not whole."""
        for data in self._begun.values():
            self._write(data)

    @staticmethod
    def _write(data: bytes) -> None:
        sys.stdout.write(data.decode("utf-8", "replace"))
        sys.stdout.flush()


def _whole_bytes(data: bytes) -> int:
    """How much of it ends with a whole character of UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(data) - len(decoder.getstate()[0])


def _result(running: Future[int]) -> int:
    try:
        return running.result()
    except BaseExceptionGroup as group:
        raise exceptions.cause_of(group) from group
