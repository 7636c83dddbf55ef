"""What will happen, and when: a function of the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

DatabaseName = Literal["sqlite", "mariadb"]


class Kind(StrEnum):
    """What may happen to a fleet."""

    KILL = "kill"
    FREEZE = "freeze"
    TERM = "term"
    DRAIN = "drain"
    RESTART = "restart"
    """USR2: the daemon hands everything back and begins anew."""
    PARTITION = "partition"
    """The network of one host goes silent; on SQLite, which has none, somebody holds the write lock."""
    CUT = "cut"
    SERVER_KILL = "server kill"
    CANCEL = "cancel"
    EDIT = "edit"
    RESET = "reset"


ENDS = (Kind.KILL, Kind.TERM, Kind.DRAIN)
"""What a daemon does not survive. The first one of the fleet is spared these: it goes through all the rest."""

PEOPLE = (Kind.CANCEL, Kind.EDIT, Kind.RESET)
"""What people do to experiments."""

WEIGHTS: Mapping[DatabaseName, Mapping[Kind, int]] = {
    "mariadb": {
        Kind.KILL: 26,
        Kind.FREEZE: 12,
        Kind.TERM: 5,
        Kind.DRAIN: 5,
        Kind.RESTART: 6,
        Kind.PARTITION: 12,
        Kind.CUT: 6,
        Kind.SERVER_KILL: 3,
        Kind.CANCEL: 8,
        Kind.EDIT: 12,
        Kind.RESET: 6,
    },
    "sqlite": {
        Kind.KILL: 26,
        Kind.FREEZE: 14,
        Kind.TERM: 6,
        Kind.DRAIN: 6,
        Kind.RESTART: 8,
        Kind.PARTITION: 6,  # it concerns everybody
        Kind.CANCEL: 9,
        Kind.EDIT: 16,
        Kind.RESET: 8,
    },
}
"""How often what happens in a hundred actions or so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something that happens."""

    at_s: float
    """Seconds since the beginning."""
    kind: Kind
    place: int
    """Which daemon of the fleet it concerns, or the next one that runs."""
    lasts_s: float
    """How long, for what lasts; for a daemon that ends, how long until one is started again."""
    moves: bool
    """A daemon that ends is started again on another host: the first one never comes back."""
    seed: int
    """For what is chosen only then: which experiments are edited."""


def make_plan(seed: int, *, minutes: float, daemons: int, database: DatabaseName) -> list[Action]:
    """About one action a second, in their order; for two daemons at least."""
    dice = random.Random(f"{seed} {database}")
    actions, now = [], 0.0
    for kind in _deal(WEIGHTS[database], dice):
        now += dice.uniform(0.5, 1.5)
        if now >= minutes * 60:
            break
        actions.append(
            Action(
                at_s=round(now, 3),
                kind=kind,
                place=dice.randrange(1 if kind in ENDS else 0, daemons),
                lasts_s=round(dice.uniform(*_duration(kind)), 3),
                moves=dice.random() < 0.5,
                seed=dice.randrange(2**32),
            )
        )
    return actions


def _deal(weights: Mapping[Kind, int], dice: random.Random) -> Iterator[Kind]:
    """Shuffled decks, one after the other: a short run has its share of everything, too."""
    while True:
        deck = [kind for kind, weight in weights.items() for _ in range(weight)]
        dice.shuffle(deck)
        yield from deck


def _duration(kind: Kind) -> tuple[float, float]:
    if kind in (Kind.FREEZE, Kind.PARTITION):
        return 1.0, 8.0
    return 0.2, 3.0
