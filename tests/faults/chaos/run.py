"""One run of chaos: the plan carried out, everything healed, and what is found then."""

from __future__ import annotations

import heapq
import itertools
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from pyexp_daemon.model import Status
from tests.databases import Database
from tests.e2e.project import Project
from tests.faults import fleet
from tests.faults.chaos.hosts import DRAINED, Hosts, Place, has_started
from tests.faults.chaos.people import People
from tests.faults.chaos.plan import PEOPLE, Action, Kind
from tests.faults.checker import Circumstances, Records, read, violations
from tests.faults.fleet import Node
from tests.helpers import wait_until
from tests.servers import PrivateServer

ROWS = 400
STEPS = 3
"""So many rows every fourth experiment logs."""
FUNCTION = """
import random, signal


def chaotic(keyfields, rp, custom):
    \"\"\"Mostly short; some store results midway, some log, some crash the first time, some fail.\"\"\"
    note(custom, "start", rp)
    x = keyfields["x"]
    dice = random.Random(x)
    if x % 50 == 7 and rp.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if x % 100 == 13:
        raise ValueError("no such luck")
    seconds = dice.uniform(1, 3) if dice.random() < 0.03 else dice.uniform(0.02, 0.2)
    for step in range(custom["steps"]):
        time.sleep(seconds / custom["steps"])
        if x % 4 == 0:
            rp.process_logs({"steps": {"step": step}})
    if x % 3 == 0:
        rp.process_results(result(keyfields, rp))
    note(custom, "end", rp)
    return result(keyfields, rp)
"""

QUIET_S = 180.0
"""In so many seconds without faults everything must be done."""


def make_project(database: Database, folder: Path) -> Project:
    """A project whose experiments are short."""
    return fleet.make_project(
        database,
        folder,
        rows=ROWS,
        function="chaotic",
        code=FUNCTION,
        custom={"steps": STEPS},
        daemon={"drain_timeout": "1s"},
        logtables={"steps": {"step": "INT"}},
    )


class Chaos:
    """Carries out a plan on a fleet, and looks what is left of it."""

    def __init__(
        self,
        project: Project,
        plan: Sequence[Action],
        *,
        daemons: int,
        more: Sequence[Action] = (),
        is_enough: Callable[[Chaos], bool] = lambda chaos: True,
    ) -> None:
        """
        Args:
            more: how the plan goes on as long as what happened is not enough to prove anything.
        """
        self._project = project
        self._plan = plan
        self._more = more
        self._is_enough = is_enough
        self.hosts = Hosts(project, daemons)
        self.people = People(project)
        self.happened: Counter[Kind] = Counter()
        """What was really done, by kind; of what people did, see `people`."""
        self.recovered_s = 0.0
        """How long it took to get everything done when there were no faults any more."""
        self._endings: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._lock: sqlite3.Connection | None = None

    def run(self) -> list[str]:
        """Everything from the first daemon to the last; the violations that were found."""
        try:
            with self.people:
                self._start()
                self._carry_out()
            healed = time.monotonic()
            self._heal()
            found = [*self._everybody_claims(), *self._everything_ends()]
            self.recovered_s = time.monotonic() - healed
            found += self._everybody_drains()
        finally:
            self.hosts.close()
        circumstances = Circumstances(experiments=self.people.experiments, edited=self.people.touched)
        records = read(self._project.database, self._project.journal)
        return [*found, *self.hosts.odd_exits, *violations(records, circumstances), *self._logs(records)]

    def _logs(self, records: Records) -> list[str]:
        """What the accepted attempt logged is there, once and in its order."""
        logged: dict[tuple[int, int], list[int]] = defaultdict(list)
        for experiment, attempt, step in self._project.database.query(
            "SELECT experiment_id, pyexpd_attempt, step FROM exp__steps ORDER BY ID"
        ):
            logged[experiment, attempt].append(step)
        return [
            f"I2: attempt {row.attempt} logged {logged[number, row.attempt]} (experiment {number})"
            for number, row in records.rows.items()
            if row.status == Status.DONE
            if logged[number, row.attempt] != (list(range(STEPS)) if row.x % 4 == 0 else [])
        ]

    def _start(self) -> None:
        self.hosts.look(time.monotonic())
        self._wait_until_all_run()

    def _wait_until_all_run(self) -> None:
        """One that was told to end, and is still at it, does not count: the next one at its place does."""

        def all_run() -> bool:
            self.hosts.look(time.monotonic())
            return all(
                place.node is not None and not place.is_told and has_started(place.node) for place in self.hosts.places
            )

        wait_until(all_run, timeout=QUIET_S, interval=0.1, what="every daemon runs")

    def _carry_out(self) -> None:
        began = time.monotonic()
        more = itertools.takewhile(lambda _: not self._is_enough(self), self._more)
        for action in itertools.chain(self._plan, more):
            self._pass_time(until=began + action.at_s)
            if action.kind in PEOPLE:
                self.people.do(action)
            else:
                self._do(action)

    def _pass_time(self, *, until: float) -> None:
        """See after everything until then: what has lasted long enough ends, who ended is started again."""
        while (now := time.monotonic()) < until:
            while self._endings and self._endings[0][0] <= now:
                heapq.heappop(self._endings)[2]()
            self.hosts.look(now)
            time.sleep(0.05)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._endings, (time.monotonic() + seconds, next(self._numbers), call))

    def _do(self, action: Action) -> None:
        if action.kind is Kind.SERVER_KILL:
            done = self._kill_server(action)
        elif action.kind is Kind.PARTITION and self._project.database.server is None:
            done = self._hold_write_lock(action)
        else:
            place = self.hosts.target(action)
            done = place is not None and self._do_at(place, action)
        self.happened[action.kind] += done

    def _do_at(self, place: Place, action: Action) -> bool:
        """Something happens to one daemon; False when it cannot."""
        node = place.node
        assert node is not None
        match action.kind:
            case Kind.KILL:
                self.hosts.kill(place, node, action, time.monotonic())
            case Kind.FREEZE:
                node.process.send_signal(signal.SIGSTOP)
                self._later(action.lasts_s, lambda: node.process.send_signal(signal.SIGCONT))
            case Kind.TERM | Kind.DRAIN:
                node.process.send_signal(signal.SIGTERM if action.kind is Kind.TERM else signal.SIGUSR1)
                self.hosts.leave(place, action, time.monotonic())
            case Kind.RESTART:
                node.process.send_signal(signal.SIGUSR2)
            case Kind.PARTITION:
                if place.is_silent:
                    return False
                node.way.black_hole()
                self._later(action.lasts_s, lambda: self.hosts.heal(node.way, cut=action.seed % 2 == 0))
            case Kind.CUT:
                node.way.cut()
        return True

    def _kill_server(self, action: Action) -> bool:
        server = self._project.database.server
        assert isinstance(server, PrivateServer)
        if server.pid is None:
            return False
        server.kill()
        self._later(action.lasts_s, server.start)
        return True

    def _hold_write_lock(self, action: Action) -> bool:
        if self._lock is not None:
            return False
        connection = sqlite3.connect(self._project.database.path, timeout=2, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            connection.close()
            return False
        self._lock = connection
        self._later(action.lasts_s, self._release_write_lock)
        return True

    def _release_write_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _heal(self) -> None:
        """Whatever lasts ends now, and every place has a daemon."""
        while self._endings:
            heapq.heappop(self._endings)[2]()
        self._wait_until_all_run()

    def _everybody_claims(self) -> list[str]:
        """No daemon has given up, whatever it went through; the first one went through everything."""
        idle = {node.name: node for node in self.hosts.nodes()}
        before = {name: self._attempts_of(node) for name, node in idle.items()}
        deadline = time.monotonic() + QUIET_S
        while idle and time.monotonic() < deadline:
            self.people.add(20 * len(before))
            time.sleep(1)
            self.hosts.look(time.monotonic())
            idle = {name: node for name, node in idle.items() if self._attempts_of(node) <= before[name]}
        return [f"I9: daemon {name} lives and claims nothing" for name in idle]

    def _attempts_of(self, node: Node) -> int:
        joined = "exp__pyexpd_attempts a JOIN exp__pyexpd_daemons d ON d.id = a.daemon"
        ((count,),) = self._project.database.query(f"SELECT COUNT(*) FROM {joined} WHERE d.name = ?", (node.name,))
        return int(count)

    def _everything_ends(self) -> list[str]:
        left: dict[str, int] = {}

        def is_over() -> bool:
            statuses = self._project.statuses()
            left.clear()
            left.update(
                {status: statuses[status] for status in ("created", "waiting", "running") if status in statuses}
            )
            return not left

        try:
            wait_until(is_over, timeout=QUIET_S, interval=0.2)
        except TimeoutError:
            return [f"I1: not finished within {QUIET_S:g} s without faults: {left}"]
        return []

    def _everybody_drains(self) -> list[str]:
        nodes = list(self.hosts.nodes())
        for node in nodes:
            node.process.terminate()
        codes = {node.name: node.process.wait(60) for node in nodes}
        return [f"I1: {name} ended with {code}" for name, code in codes.items() if code != DRAINED]
