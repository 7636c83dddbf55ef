"""Which of its turns a crowd waits for."""

from __future__ import annotations

import pymysql
import pytest

from pyexp_daemon.store.turns import TURNS, Turns

LONGEST_NAME = 64
"""What a server takes as the name of a lock."""


def test_all_turns_are_used_and_only_in_a_crowd() -> None:
    is_crowded = True
    turns = Turns("results", is_crowded=lambda: is_crowded)
    assert {turns.draw() for _ in range(200)} == set(turns.names)
    assert len(turns.names) == TURNS
    is_crowded = False
    assert turns.draw() is None


@pytest.mark.parametrize("database", ["results", "o'clock", "d" * 64, "Ergebnisse\N{SNOWMAN}"])
def test_each_database_has_its_own_whatever_its_name(database: str) -> None:
    turns = Turns(database, is_crowded=lambda: True)
    assert all(len(name) <= LONGEST_NAME and name.replace("_", "").isalnum() for name in turns.names)
    assert not set(turns.names) & set(Turns("another", is_crowded=lambda: True).names)


@pytest.mark.parametrize(
    ("code", "text", "refused"),
    [
        (1235, "This version of MariaDB doesn't yet support 'GET_LOCK in cluster (WSREP_ON=ON)'", True),
        (1105, "Percona-XtraDB-Cluster prohibits use of GET_LOCK with pxc_strict_mode = ENFORCING", True),
        (1235, "This version of MariaDB doesn't yet support 'LIMIT & IN/ALL/ANY/SOME subquery'", False),
        (1213, "Deadlock found when trying to get lock; try restarting transaction", False),
    ],
)
def test_a_server_without_such_locks_is_asked_once(code: int, text: str, refused: bool) -> None:
    turns = Turns("results", is_crowded=lambda: True)
    assert turns.is_refusal(pymysql.OperationalError(code, text)) is refused
    assert (turns.draw() is None) is refused
    assert not turns.is_refusal(TimeoutError())
