"""What attempts print: from their files where these can be seen from here, else the end of it from the database."""

from __future__ import annotations

import re
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace, warn
from pyexp_daemon.cli.daemon_logs import unreadable
from pyexp_daemon.cli.rows import read_one
from pyexp_daemon.export.values import as_text
from pyexp_daemon.model import Daemon, Status
from pyexp_daemon.store import daemons, reads

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.reads import Standing

_FOLLOW_S = 0.3
_BLOCK_BYTES = 256 * 1024
_GAP = re.compile(rb"\n--- (\d+) bytes left out ---\n")
_UNFINISHED = (Status.CREATED, Status.WAITING, Status.RUNNING)


def show(workplace: Workplace, experiment: int, attempt: int | None) -> None:
    """Print what is known of an attempt: the last one, or one that is named.

    Raises:
        UsageError: there is nothing to print.
    """
    with workplace.experiments() as store:
        read_one(store, workplace.table, experiment)
        watch = _Watch(workplace, store, experiment, is_patient=False)
        wanted = attempt or watch.latest()
        if watch.is_here(wanted):
            workplace.announce()
            warn(str(watch.file(wanted)))
            _Printed(watch.file(wanted), workplace.config.limits.log_size_bytes).more()
            return
        if wanted not in watch.receipts():
            raise watch.nothing_there(wanted)
        workplace.announce()
        watch.print_stored(wanted)


def follow(workplace: Workplace, experiment: int, attempt: int | None) -> None:
    """Print an attempt until it is over and, unless one was named, those that follow it until the experiment ends.

    Outages of the database are waited for.

    Raises:
        SelectorError: there is no such experiment.
    """
    with workplace.experiments() as store:
        read_one(store, workplace.table, experiment)
        watch = _Watch(workplace, store, experiment, is_patient=True)
        workplace.announce()
        if attempt is not None:
            watch.wait_for(attempt)
            watch.follow(attempt)
            return
        number = watch.next_from(watch.first())
        while number is not None:
            watch.follow(number)
            number = watch.next_from(number + 1)


class _Watch:
    """One experiment that somebody watches."""

    def __init__(self, workplace: Workplace, store: BlockingStore, experiment: int, *, is_patient: bool) -> None:
        """
        Args:
            is_patient: whether outages of the database are waited for.
        """
        self._is_patient = is_patient
        self._config = workplace.config
        self._table = workplace.table
        self._store = store
        self._experiment = experiment

    def file(self, attempt: int) -> Path:
        """Where the daemon that runs it writes what the attempt prints."""
        return self._config.logs / f"{self._experiment}-{attempt}.log"

    def is_here(self, attempt: int) -> bool:
        """Whether that file can be seen from here.

        Raises:
            UsageError: nothing in its folder can.
        """
        try:
            return self.file(attempt).exists()
        except OSError as error:
            raise unreadable(self.file(attempt), error) from error

    def receipts(self) -> dict[int, dict[str, Any]]:
        """The attempts that are over, by number."""
        return {row["attempt"]: row for row in self._read(reads.attempts(self._table, self._experiment))}

    def latest(self) -> int:
        """The attempt that runs, else the last one that ended, else the number that the experiment stands at."""
        now = self._standing()
        over = self.receipts()
        return now.attempt if now.status == Status.RUNNING or not over else max(over)

    def first(self) -> int:
        """The attempt to begin with: the running or last one, or the first that begins from now on."""
        return self.latest() if self._standing().status == Status.RUNNING or self.receipts() else 1

    def next_from(self, attempt: int) -> int | None:
        """The first attempt of this number or above, waited for; None when the experiment has ended before it."""
        is_said = False
        while True:
            now = self._standing()  # before the receipts: what ends in between is in both
            begun = [number for number in self.receipts() if number >= attempt]
            if now.status == Status.RUNNING and now.attempt >= attempt:
                begun.append(now.attempt)
            if begun:
                return min(begun)
            if now.status not in _UNFINISHED:
                return None
            if not is_said:
                warn(f"experiment {self._experiment} is {now.status}; waiting for its next attempt")
                is_said = True
            time.sleep(_FOLLOW_S)

    def wait_for(self, attempt: int) -> None:
        """Wait until this attempt begins.

        Raises:
            UsageError: it never will.
        """
        found = self.next_from(attempt)
        if found != attempt and not self.is_here(attempt):
            raise self.nothing_there(attempt)

    def follow(self, attempt: int) -> None:
        """Print an attempt until it is over."""
        printed: _Printed | None = None
        is_said = is_over = False
        while not is_over:
            now = self._standing()
            is_over = now.status != Status.RUNNING or now.attempt != attempt
            if printed is None and self.is_here(attempt):
                warn(str(self.file(attempt)))
                printed = _Printed(self.file(attempt), self._config.limits.log_size_bytes)
            if printed is not None:
                printed.more()
            elif not is_over and not is_said and (owner := self._elsewhere(now)):
                warn(f"{self._say_where(attempt, owner)}; the end of it is shown here when it is over")
                is_said = True
            if not is_over:
                time.sleep(_FOLLOW_S)
        if printed is None and attempt in self.receipts():
            self.print_stored(attempt)

    def print_stored(self, attempt: int) -> None:
        """Print what the database has of an attempt that is over."""
        receipt = self.receipts()[attempt]
        tail = as_text(receipt["log_tail"])
        if not tail:
            warn(f"attempt {attempt} of experiment {self._experiment} printed nothing")
            return
        warn(f"the end of the log; all of it is on {receipt['host']}, there in {self.file(attempt)}")
        click.echo(tail, nl=not tail.endswith("\n"))

    def nothing_there(self, attempt: int) -> exceptions.UsageError:
        """Why there is nothing to print of an attempt."""
        now, over = self._standing(), self.receipts()
        if now.status == Status.RUNNING and now.attempt == attempt:
            owner = self._elsewhere(now)
            if owner:
                return exceptions.UsageError(
                    self._say_where(attempt, owner), hint=f"pyexpd logs {self._experiment} -f waits for the end of it"
                )
            return exceptions.UsageError(
                f"attempt {attempt} of experiment {self._experiment} has printed nothing yet",
                hint=f"its log would be {self.file(attempt)}",
            )
        if not over:
            return exceptions.UsageError(
                f"experiment {self._experiment} has not run yet", hint=f"pyexpd show {self._experiment}"
            )
        return exceptions.UsageError(
            f"experiment {self._experiment} has no attempt {attempt}",
            hint=f"pyexpd show {self._experiment} lists its attempts",
        )

    def _say_where(self, attempt: int, owner: Daemon) -> str:
        return (
            f"attempt {attempt} of experiment {self._experiment} runs on {owner.host} (daemon {owner.name});"
            f" its log is there, in {self.file(attempt)}"
        )

    def _elsewhere(self, now: Standing) -> Daemon | None:
        """The daemon that runs it, when that is on another host."""
        live = self._read(daemons.look(self._table))
        return next((row for row in live if row.id == now.daemon and row.host != socket.gethostname()), None)

    def _standing(self) -> Standing:
        """
        Raises:
            SelectorError: the experiment was deleted.
        """
        now: Standing | None = self._read(reads.standing(self._table, self._experiment))
        if now is None:
            raise exceptions.SelectorError(f"experiment {self._experiment} was deleted")
        return now

    def _read(self, unit: Any) -> Any:
        """What a unit reads."""
        is_said = False
        while True:
            try:
                return self._store.read(unit)
            except exceptions.ConnectionLost as error:
                if not self._is_patient:
                    raise
                if not is_said:
                    warn(f"{error}; waiting")
                    is_said = True
                time.sleep(1.0)


class _Printed:
    """The file of an attempt, printed as far as it has come; its middle may be given up meanwhile (Limits.log_size)."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._head = size_bytes // 2
        self._seen = 0
        """So many bytes of the output were printed, or are gone."""

    def more(self) -> None:
        """Print what was added since the last call.

        Raises:
            UsageError: the file cannot be read.
        """
        try:
            file = self._path.open("rb")
        except OSError as error:
            raise unreadable(self._path, error) from error
        with file:
            gone, marker = self._gap(file)
            place = self._seen
            if self._head < self._seen < self._head + gone:
                click.echo(f"\n--- {self._head + gone - self._seen} bytes left out ---")
                place = self._head + marker
            elif gone and self._seen >= self._head + gone:
                place = self._seen - gone + marker
            file.seek(place)
            while block := file.read(_BLOCK_BYTES):
                sys.stdout.buffer.write(block)
            end = file.tell()
        sys.stdout.buffer.flush()
        self._seen = end + gone - marker if end > self._head else end

    def _gap(self, file: BinaryIO) -> tuple[int, int]:
        """How many bytes were left out behind the head, and how long the line is that says so."""
        file.seek(self._head)
        found = _GAP.match(file.read(64))
        return (int(found[1]), len(found[0])) if found else (0, 0)
