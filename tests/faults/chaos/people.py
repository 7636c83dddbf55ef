"""The people who use the table meanwhile: they add experiments, cancel, reset, and edit by hand."""

from __future__ import annotations

import queue
import random
import sqlite3
import subprocess
import threading
from collections import Counter
from typing import Self

import pymysql

from tests.e2e.project import Project
from tests.faults.chaos.plan import Action, Kind

BUSY = (pymysql.MySQLError, sqlite3.OperationalError, OSError)
"""What people see of a database that is away; they try again later, or give up."""

WAITING = 300
"""So many experiments wait at least, all the time."""
MORE = 150
"""So many are added at once."""


class People:
    """One thread in which people do one thing after the other, so that a database that hangs holds up them alone."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._errands: queue.Queue[Action] = queue.Queue()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work, name="people", daemon=True)
        self._next_x = project.rows
        self.experiments: set[int] = set()
        """Every experiment there must be."""
        self.touched: set[int] = set()
        """Experiments that somebody cancelled, reset or edited, or tried to."""
        self.did: Counter[Kind] = Counter()
        """How many experiments were concerned by what they did."""
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self.experiments = {number for (number,) in self._project.database.query("SELECT ID FROM exp")}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def do(self, action: Action) -> None:
        """Have it done when its turn comes."""
        self._errands.put(action)

    def rest(self) -> None:
        """Do nothing more from now on; what was begun is done when this returns."""
        self._enough.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def add(self, count: int) -> None:
        """Insert experiments by hand, with values that the configuration does not have."""
        first, end = self._next_x, self._next_x + count
        there = self._experiments_of(first, end)
        if not there:  # else an earlier call, whose answer was lost, has added them
            values = ", ".join(f"({x}, 'created')" for x in range(first, end))
            self._project.database.query(f"INSERT INTO exp (x, status) VALUES {values}")
            there = self._experiments_of(first, end)
        self.experiments |= there
        self._next_x = end

    def _experiments_of(self, first: int, end: int) -> set[int]:
        found = self._project.database.query("SELECT ID FROM exp WHERE x >= ? AND x < ?", (first, end))
        return {number for (number,) in found}

    def _work(self) -> None:
        try:
            while not self._enough.is_set():
                try:
                    self._work_once()
                except BUSY:
                    self._enough.wait(0.3)
        except BaseException as error:  # noqa: BLE001  said where the fleet is led
            self.failure = error

    def _work_once(self) -> None:
        ((waiting,),) = self._project.database.query("SELECT COUNT(*) FROM exp WHERE status = 'created'")
        if waiting < WAITING:
            self.add(MORE)
        try:
            action = self._errands.get(timeout=0.3)
        except queue.Empty:
            return
        match action.kind:
            case Kind.CANCEL:
                self._order("cancel", self._choose(action, "created", "running", "waiting"), action.kind)
            case Kind.RESET:
                self._order("reset", self._choose(action, "done", "running", "cancelled", "error"), action.kind)
            case Kind.EDIT:
                # Many: on a loaded machine most have ended before they are edited, and nothing is superseded then.
                self._edit(self._choose(action, *["running"] * 4, "done"))

    def _choose(self, action: Action, *statuses: str) -> list[int]:
        """A few of the latest experiments of these statuses; of one named twice about twice as many."""
        dice = random.Random(action.seed)
        chosen: set[int] = set()
        for status in statuses:
            found = self._project.database.query(
                "SELECT ID FROM exp WHERE status = ? ORDER BY ID DESC LIMIT 100", (status,)
            )
            chosen |= {number for (number,) in dice.sample(found, min(len(found), dice.randint(0, 2)))}
        self.touched |= chosen
        return sorted(chosen)

    def _order(self, command: str, chosen: list[int], kind: Kind) -> None:
        if not chosen:
            return
        options = ["--running"] if command == "reset" else []
        try:
            done = self._project.pyexpd(command, "--yes", *options, ",".join(map(str, chosen)))
        except subprocess.TimeoutExpired:
            return
        if done.returncode == 0:
            self.did[kind] += len(chosen)
        elif done.returncode != 74:  # the database is away
            raise RuntimeError(f"pyexpd {command} ended with {done.returncode}: {done.stderr}")

    def _edit(self, chosen: list[int]) -> None:
        for number in chosen:
            self._project.database.query("UPDATE exp SET status = 'created' WHERE ID = ?", (number,))
            self.did[Kind.EDIT] += 1
