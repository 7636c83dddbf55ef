"""The protocol against a model of it: whatever daemons and people do one after the other, the tables are the model's.

PYEXPD_TEST_MODEL=2000 runs so many random histories of 60 steps instead of the few fixed ones.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pyexp_daemon.config.load import load_config
from pyexp_daemon.model import Claim, Daemon, Outcome
from pyexp_daemon.store.migrations import ddl
from tests.bench import Bench
from tests.databases import Database
from tests.faults.conftest import both
from tests.faults.world import Node, Tables, World

MOST_NODES = 2
DESCRIBED: dict[str, Any] = {
    "keyfields": {"x": {"type": "INT", "values": list(range(8))}},
    "resultfields": {"y": "DOUBLE"},
    "logtables": {"epochs": {"loss": "DOUBLE"}},
}
FIXED = {"sqlite": 400, "mariadb": 100}
RANDOM = int(os.environ.get("PYEXPD_TEST_MODEL", "0"))
"""How many histories: always the same ones, or others each time."""

SHRINKS = not os.environ.get("PYEXPD_TEST_QUICKLY")
"""Whether hypothesis looks for a shorter history that fails as well, which takes it minutes."""

SEEDS = st.integers(0, 2**32 - 1)
YES_OR_NO = (True, False)
NOW_AND_THEN = (False, False, True)
COUNTS = (1, 2, 3)
OTHER_OUTCOMES = (Outcome.ERROR, Outcome.CRASH, Outcome.TIMEOUT, Outcome.PAUSED, Outcome.RELEASED)

Among = Callable[..., Iterable[Any]]
"""What there is to choose from in a world, after what was chosen before."""


@dataclass(frozen=True)
class Step:
    """Something that may happen, `weight` times as often as the least: `act`, with one of each `among` and option."""

    weight: int
    act: Callable[..., None]
    among: Sequence[Among]
    options: Mapping[str, Sequence[Any]]

    def is_possible(self, world: World) -> bool:
        return self._choose(world, lambda choices: choices[0]) is not None

    def take(self, world: World, random: Random) -> None:
        chosen = self._choose(world, random.choice)
        assert chosen is not None
        options = {name: random.choice(given) for name, given in self.options.items()}
        note(f"{self.act.__name__} {', '.join(map(_short, chosen))} {options}")
        self.act(world, *chosen, **options)

    def _choose(self, world: World, one: Callable[[list[Any]], Any]) -> list[Any] | None:
        chosen: list[Any] = []
        for among in self.among:
            choices = list(among(world, *chosen))
            if not choices:
                return None
            chosen.append(one(choices))
        return chosen


def _short(chosen: object) -> str:
    """What a note calls it."""
    if isinstance(chosen, Claim):
        return f"experiment {chosen.experiment_id} attempt {chosen.attempt}"
    return f"daemon {chosen.id}" if isinstance(chosen, Daemon) else str(chosen)


def step(weight: int, act: Callable[..., None], *among: Among, **options: Sequence[Any]) -> Step:
    return Step(weight, act, among, options)


def nodes(able: Callable[[Node], object] = lambda node: True, *, at_least: int = 1) -> Among:
    return lambda world: [node for node in world.nodes if able(node) and len(world.nodes) >= at_least]


def experiments(*statuses: str) -> Among:
    """Those that have one of these statuses, or all."""
    return lambda world, *_: [
        n for n, row in sorted(world.model.rows.items()) if not statuses or row.status in statuses
    ]


def new_nodes(world: World) -> list[str]:
    return [f"d{len(world.nodes)}"] if len(world.nodes) < MOST_NODES else []


def running(_: World, node: Node) -> Iterable[Any]:
    return node.running.values()


def can_write(node: Node) -> bool:
    return not node.is_cut and node.coming is None


def may_claim(world: World) -> list[Node]:
    return writers(world) if world.model.claimable(1) else []


def writers(world: World) -> list[Node]:
    return [node for node in world.nodes if can_write(node)]


busy = nodes(lambda node: node.running)

STEPS = (
    step(5, World.claim, may_claim, limit=COUNTS, is_lost=NOW_AND_THEN),
    step(1, World.claim_one, writers, experiments("created", "waiting", "done"), is_lost=NOW_AND_THEN),
    step(2, World.read_back, nodes(lambda node: can_write(node) and node.unanswered)),
    step(1, World.give_up_a_claim, nodes(lambda node: node.unanswered)),
    step(2, World.work, busy, running),
    step(4, World.finish, busy, running),
    step(4, World.end, busy, running, outcome=OTHER_OUTCOMES, began=YES_OR_NO),
    step(8, World.flush, nodes(lambda node: can_write(node) and node.outbox), is_lost=NOW_AND_THEN),
    step(5, World.beat, writers, is_lost=NOW_AND_THEN),
    step(4, World.come_back, nodes(lambda node: node.coming and not node.is_cut), is_lost=NOW_AND_THEN),
    step(1, World.stop, nodes(can_write, at_least=2)),
    # What befalls them
    step(1, World.kill, nodes(), leaves_spool=YES_OR_NO),
    step(2, World.replay, lambda world: world.spools, stays=NOW_AND_THEN),
    step(1, World.cut, nodes(lambda node: not node.is_cut)),
    step(3, World.heal, nodes(lambda node: node.is_cut)),
    step(1, World.watch),
    step(1, World.declare_dead, lambda world: world.watched),
    step(3, World.declare_dead, lambda world: world.living),
    step(2, World.sweep, limit=COUNTS),
    step(4, World.rescue, lambda world: world.living),
    step(2, World.promote, is_due=YES_OR_NO),
    step(3, World.start, new_nodes),
    # People
    step(2, World.add, lambda world: [1] if world.unfilled else []),
    step(1, World.look_at, experiments()),
    step(1, World.reset, lambda world: world.seen),
    step(1, World.reset, lambda world: map(world.model.seen, sorted(world.model.rows))),
    step(1, World.delete, lambda world: [seen for seen in world.seen if seen.status != "running"]),
    step(1, World.cancel, experiments()),
    step(1, World.schedule, experiments(), order=(-1, 1)),
    step(
        3,
        World.edit,
        experiments("running", "waiting", "done"),
        status=("created", "created", "created", "done"),
    ),
    step(4, World.claim_by_pyexperimenter, experiments("created")),
)
"""How often each may happen beside the others, and what it needs."""


class Histories(RuleBasedStateMachine):
    """What may happen, one step after the other."""

    tables: ClassVar[Tables]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.tables)

    @initialize(seed=SEEDS)
    def begin(self, seed: int) -> None:
        self.seed = seed
        self.world.add(3)
        self.world.start("d0")

    @rule(seed=SEEDS)
    def take_a_step(self, seed: int) -> None:
        # Drawn by hypothesis itself the steps come in clusters: far fewer of the rare meetings happen. A step keeps its
        # meaning as long as it is possible, so that histories that fail still become short.
        random = Random(f"{self.seed} {seed}")
        order = sorted(STEPS, key=lambda each: random.random() ** (1 / each.weight), reverse=True)
        next(each for each in order if each.is_possible(self.world)).take(self.world, random)

    @invariant()
    def the_tables_are_those_of_the_model(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if sys.exception() is None:  # else the history has failed already
            self.world.come_to_an_end()


@both
@pytest.mark.slow
@pytest.mark.timeout(400 + RANDOM * 10)
def test_whatever_happens_the_tables_are_those_of_the_model(database: Database, tmp_path: Path) -> None:
    """I1, I2, I6: one holder, one accepted result, the tries of its own failures, and an end for each experiment."""
    bench = Bench(database, load_config(database.write_config(tmp_path, **DESCRIBED)))
    bench.create()
    if database.server is None:  # nobody pulls the plug here, and a commit takes a tenth of the time
        bench.blocking.read(ddl("PRAGMA synchronous = OFF"))
    with closing(bench.blocking), closing(database.connect()) as connection:

        class OnThese(Histories):
            tables = Tables(bench, connection)

        run_state_machine_as_test(
            OnThese,
            settings=settings(
                max_examples=RANDOM or FIXED[database.flavour],
                stateful_step_count=60 if RANDOM else 40,
                derandomize=not RANDOM,
                database=None,
                deadline=None,
                phases=[phase for phase in Phase if SHRINKS or phase is not Phase.shrink],
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
