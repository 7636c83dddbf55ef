"""What a daemon is told, by signal or through the database, and what it does then."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Mapping, Sequence

import anyio

from pyexp_daemon import exceptions
from pyexp_daemon.daemon import doorbell
from pyexp_daemon.daemon.control import Control
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.log import get_logger
from pyexp_daemon.model import Command
from pyexp_daemon.store import commands
from pyexp_daemon.store.tables import Table

log = get_logger()

SIGNALS: Mapping[signal.Signals, str] = {
    signal.SIGTERM: "stop",
    signal.SIGINT: "stop",
    signal.SIGUSR1: "drain",
    signal.SIGUSR2: "reset",
    signal.SIGHUP: "reload",
    signal.SIGTTIN: "dump",
}
"""What each signal asks for. `pause` and `resume` come as commands alone."""

BY_COMMAND = "command"
"""The source of a pause that a person asked for."""


class Orders:
    """Carries out what the daemon is told: a command once, however often it is heard, and with an answer."""

    def __init__(
        self,
        link: Link,
        table: Table,
        control: Control,
        *,
        running: Callable[[], int],
        failure: Callable[[], Exception | None],
        patience_s: Callable[[], float],
        reload: Callable[[], str],
        dump: Callable[[], None],
        incarnations: Collection[str],
        can_break_off: bool = True,
    ) -> None:
        """
        Args:
            running: how many experiments run.
            failure: why none can run.
            can_break_off: whether what runs can be broken off.
            incarnations: every incarnation of this process, as they come.
            patience_s: how long a stop waits for what runs.
            reload: reads the configuration again, and has idle slots replaced, for which nobody waits: an import may
                take its time. Says in words what came of it.
            dump: writes to the log what the daemon is doing.
        """
        self._link = link
        self._table = table
        self._control = control
        self._running = running
        self._failure = failure
        self._patience_s = patience_s
        self._reload = reload
        self._dump = dump
        self._incarnations = incarnations
        self._can_break_off = can_break_off
        self._answers: dict[str, str] = {}
        self._heard: Sequence[Command] = ()
        self._arrived = anyio.Event()

    async def listen_to_signals(self) -> None:
        """Obey signals, until cancelled."""
        with anyio.open_signal_receiver(*SIGNALS, doorbell.SIGNAL) as received:
            async for number in received:
                if number == doorbell.SIGNAL:
                    self._control.wake()
                    continue
                log.info("signal.received", signal=signal.Signals(number).name)
                try:
                    self._carry_out(SIGNALS[signal.Signals(number)], "a signal")
                except Exception:  # a bug must not cost the handlers: the next signal would kill us
                    log.exception("service.failed", service="listen_to_signals")

    def hear(self, asked: Sequence[Command]) -> None:
        """Take what a heartbeat brought: everything that is not answered yet, so the same again and again."""
        if asked:
            self._heard = asked
            self._arrived.set()

    async def obey(self) -> None:
        """Carry out and answer what is heard, in its order, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            for command in self._heard:
                if command.token not in self._answers:
                    self._answers[command.token] = "it failed"  # known from now on, whatever becomes of it
                    log.info("command.received", command=command.name, asked_by=command.asked_by)
                    self._answers[command.token] = self._carry_out(command.name, command.asked_by)
                await self._answer(command)

    async def _answer(self, command: Command) -> None:
        text = self._answers[command.token]
        unit = commands.answer(self._table, token=command.token, incarnations=self._incarnations, text=text)
        try:
            await self._link.run(unit, role="admin")
        except exceptions.DatabaseError as error:  # the next heartbeat brings it again, and only this is repeated
            log.warning("command.not_answered", command=command.name, error=str(error))

    def _carry_out(self, name: str, asked_by: str) -> str:
        """Begin what is asked for; what happens, in a few words."""
        control, running = self._control, f"{self._running()} running"
        match name:
            case "stop" if not self._can_break_off:
                control.drain(deadline_s=None)
                return f"stopping, {running} end by themselves"
            case "stop":
                control.drain(deadline_s=self._patience_s())
                return f"stopping, {running} have {self._patience_s():g} s"
            case "drain":
                control.drain(deadline_s=None)
                return f"draining, {running}"
            case "reset" if not self._can_break_off:
                return "refused: what runs in a script cannot be broken off"
            case "reset" if control.draining:
                return "refused: it is draining"
            case "reset":
                control.reset()
                return f"resetting, {running} are handed back"
            case "reload":
                return self._reload()
            case "pause":
                control.pause(BY_COMMAND, f"paused by {asked_by}")
                return f"paused, {running} go on"
            case "resume":
                control.resume()
                return f"not yet: {self._failure()}" if self._failure() else "resumed"
            case "dump":
                self._dump()
                return "written to the log"
            case _:
                return f"refused: this version knows no {name}"
