"""The hosts: each runs one daemon after the other, and breaks in many ways."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.e2e.project import Project
from tests.faults.chaos.plan import ENDS, Action, Kind
from tests.faults.fleet import Node, node
from tests.faults.proxy import Proxy

SLOTS = 4
SILENT_S = 8.0
"""So long the server believes that the connections of a host that lost its power are open."""

DRAINED, DATABASE_AWAY, IN_THE_SPOOL = 0, 74, 75
_MAY_END_SO = (DRAINED, DATABASE_AWAY, IN_THE_SPOOL, -signal.SIGKILL)


@dataclass
class Place:
    """A place in the fleet: the host that stands there now, and the daemon on it."""

    number: int
    hosts: int = 1
    """How many have stood there."""
    lives: int = 0
    """How many daemons have run there."""
    node: Node | None = None
    start_at: float = 0.0
    """When the next daemon is started, if none runs."""
    is_told: bool = False
    """The daemon was killed, or told to end."""
    moves: bool = False
    """The next one is started on another host."""
    life: ExitStack = field(default_factory=ExitStack)
    """Ends with the daemon."""
    network: Proxy | None = None
    """The host's way to the database, as long as it stands; on SQLite there is none."""

    @property
    def host(self) -> str:
        """The identity of the host."""
        return f"host{self.number}.{self.hosts}"

    @property
    def is_silent(self) -> bool:
        """Whether the host's network is."""
        return self.network is not None and self.network.is_black_hole


class Hosts:
    """All places, and what happened there."""

    def __init__(self, project: Project, count: int) -> None:
        self._project = project
        self.places = [Place(number) for number in range(count)]
        self._unplugged: list[tuple[float, Proxy]] = []
        self.proved: set[str] = set()
        """Names of daemons whose death their lock on the database file proves to everybody."""
        self.exits: Counter[int] = Counter()
        self.odd_exits: list[str] = []

    def close(self) -> None:
        """End everything."""
        for place in self.places:
            place.life.close()
        for network in (*(place.network for place in self.places), *(network for _, network in self._unplugged)):
            if network is not None:
                network.__exit__()

    def look(self, now: float) -> None:
        """See which daemons have ended, and start those whose time has come."""
        for place in self.places:
            if place.node is not None and place.node.process.poll() is not None:
                self._ended(place, place.node, now)
            if place.node is None and now >= place.start_at:
                self._start(place)
        for due, network in self._unplugged:
            if now >= due:
                network.__exit__()
        self._unplugged = [(due, network) for due, network in self._unplugged if now < due]

    def _start(self, place: Place) -> None:
        if place.network is None and self._project.database.server is not None:
            place.network = Proxy(self._project.database.server).__enter__()
        place.lives += 1
        starting = node(
            self._project,
            f"{place.host}-{place.lives}",
            host=place.host,
            slots=SLOTS,
            ready=False,
            proxy=place.network,
        )
        place.node = place.life.enter_context(starting)

    def _ended(self, place: Place, node: Node, now: float) -> None:
        code = node.process.returncode
        self.exits[code] += 1
        came_too_early = code == DATABASE_AWAY and not node.events("daemon.started")
        if not came_too_early and not (place.is_told and code in _MAY_END_SO):
            self.odd_exits.append(f"I7: daemon {node.name} ended with {code}, {'' if place.is_told else 'not '}told to")
        place.is_told = False
        place.node = None
        place.start_at = max(place.start_at, now + 0.2)
        place.life.close()
        if place.moves:
            self._move(place, now)

    def _move(self, place: Place, now: float) -> None:
        place.moves = False
        place.hosts += 1
        if place.network is not None:
            self._unplugged.append((now + SILENT_S, place.network))
            place.network = None

    def target(self, action: Action) -> Place | None:
        """The place that an action concerns if a daemon works there, else the next one where one does.

        The first one is never ended. Half of what ends a daemon concerns one without network, if there is one: it has
        results in its spool. One that starts may be killed, too, if all do.
        """
        order = [*self.places[action.place :], *self.places[: action.place]]
        if action.kind in ENDS:
            order.remove(self.places[0])
            if action.seed % 2:
                order.sort(key=lambda place: not place.is_silent)
        running = [place for place in order if place.node is not None and place.node.process.poll() is None]
        working = [place for place in running if place.node is not None and has_started(place.node)]
        return next(iter(working or (running if action.kind is Kind.KILL else [])), None)

    def nodes(self) -> Iterator[Node]:
        """The daemons that run."""
        for place in self.places:
            if place.node is not None and place.node.process.poll() is None:
                yield place.node

    def kill(self, place: Place, node: Node, action: Action, now: float) -> None:
        """End a daemon with SIGKILL; of a host that does not come back, nobody is told."""
        if place.network is None:
            if action.moves or action.seed % 2:
                remove_locks(node.process.pid)
            else:
                self.proved.add(node.name)
        elif action.moves:
            place.network.black_hole()
        node.process.kill()
        node.process.wait()
        self.leave(place, action, now)

    def leave(self, place: Place, action: Action, now: float) -> None:
        """A daemon ends or will end: when, and where, the next one is started."""
        place.is_told = True
        place.start_at = now + action.lasts_s
        place.moves = action.moves

    def heal(self, network: Proxy, *, cut: bool) -> None:
        """The network of a host is back, if the host still stands there."""
        if any(place.network is network for place in self.places):
            network.heal(cut=cut)


def has_started(node: Node) -> bool:
    """Whether a daemon was registered, and has not ended."""
    return node.process.poll() is None and bool(node.events("daemon.started"))


def remove_locks(pid: int) -> None:
    """Remove the files by whose locks the daemon's death could be proved: only the lease can tell then."""
    try:
        opened = psutil.Process(pid).open_files()
    except psutil.Error:  # it has ended by itself
        return
    for path in (Path(file.path) for file in opened):
        if ".db.pyexpd." in path.name and path.suffix == ".lock":
            path.unlink(missing_ok=True)
