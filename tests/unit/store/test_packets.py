"""Units of work as the packets that go to a server."""

from __future__ import annotations

from typing import Any

import pytest

from pyexp_daemon.store.packets import Answer, conversation
from pyexp_daemon.store.unit import Commit, Do, Done, Steps, Unit, unit


@unit
def one() -> Steps[tuple[Done, Done]]:
    """One change, and one read of what was committed."""
    changed, seen = yield Commit([Do("UPDATE t SET a = ?", (1,))], then=[Do("SELECT a FROM t")])
    return changed, seen


@unit
def two() -> Steps[int]:
    """Two changes that belong together."""
    dones = yield Commit([Do("UPDATE t SET a = 1"), Do("UPDATE t SET b = 1")])
    return len(dones)


@unit
def many() -> Steps[int]:
    """One statement with several rows of values, which may be as many statements."""
    dones = yield Commit([Do("UPDATE t SET a = ?", [(1,), (2,)], many=True)])
    return len(dones)


@unit
def look_then_change() -> Steps[int]:
    """A change that rests on what was read."""
    yield Do("SELECT a FROM t FOR UPDATE")
    (done,) = yield Commit([Do("UPDATE t SET a = 1")])
    return int(done.changed)


def packets(work: Unit[Any], *, write: bool = True, turn: str | None = None) -> list[tuple[list[str], bool]]:
    """The statements of each packet, and whether it commits; the server says nothing of interest."""
    talk = conversation(work, write=write, turn=turn)
    sent = []
    try:
        packet = next(talk)
        while True:
            sent.append((packet.texts, packet.commits))
            packet = talk.send([((), 1)] * len(packet.texts))
    except StopIteration:
        return sent


def test_a_single_change_is_its_own_transaction_and_commits_all_the_same() -> None:
    assert packets(one()) == [(["UPDATE t SET a = 1", "SELECT a FROM t"], True)]
    answers: list[Answer] = [((), 3), (((1,),), 1)]
    talk = conversation(one(), write=True)
    next(talk)
    with pytest.raises(StopIteration) as end:
        talk.send(answers)
    changed, seen = end.value.value
    assert (changed.changed, seen.rows) == (3, [(1,)])


@pytest.mark.parametrize("work", [two(), many()], ids=["two", "many"])
def test_changes_that_belong_together_are_one_transaction(work: Unit[Any]) -> None:
    ((texts, commits),) = packets(work)
    assert (texts[0], texts[-1], commits) == ("START TRANSACTION", "COMMIT", True)


def test_what_a_change_rests_on_is_read_in_its_transaction() -> None:
    assert packets(look_then_change()) == [
        (["START TRANSACTION", "SELECT a FROM t FOR UPDATE"], False),
        (["UPDATE t SET a = 1", "COMMIT"], True),
    ]


@unit
def change_and_read() -> Steps[tuple[Done, Done, Done]]:
    """A change that rests on what was read, and a read of what was committed."""
    yield [Do("SELECT a FROM t FOR UPDATE"), Do("SELECT b FROM t")]
    first, second, seen = yield Commit([Do("UPDATE t SET a = 1"), Do("UPDATE t SET b = 1")], then=[Do("SELECT 1")])
    return first, second, seen


@unit
def change_and_look() -> Steps[int]:
    """It finds that nothing more is to be done."""
    seen = yield Do("UPDATE t SET a = 1")
    return int(seen.changed)


TAKE, GIVE_BACK = "DO GET_LOCK('mine', 1)", "DO RELEASE_LOCK('mine')"


def test_a_turn_is_waited_for_before_the_last_changes_and_ends_with_the_commit() -> None:
    """In the packet that is sent anyway, and what is read after the COMMIT needs none."""
    assert packets(change_and_read(), turn="mine") == [
        (["START TRANSACTION", "SELECT a FROM t FOR UPDATE", "SELECT b FROM t"], False),
        ([TAKE, "UPDATE t SET a = 1", "UPDATE t SET b = 1", "COMMIT", GIVE_BACK, "SELECT 1"], True),
    ]
    assert packets(two(), turn="mine") == [
        (["START TRANSACTION", TAKE, "UPDATE t SET a = 1", "UPDATE t SET b = 1", "COMMIT", GIVE_BACK], True)
    ]


def test_what_the_server_says_about_turns_is_not_the_units() -> None:
    talk = conversation(change_and_read(), write=True, turn="mine")
    next(talk)
    talk.send([((), 0), ((), 0), ((), 0)])
    with pytest.raises(StopIteration) as end:
        talk.send([((), 7), ((), 1), ((), 2), ((), 7), ((), 7), (((3,),), 1)])
    first, second, seen = end.value.value
    assert (first.changed, second.changed, seen.rows) == (1, 2, [(3,)])


@pytest.mark.parametrize("work", [one(), change_and_look()], ids=["one", "without an end of its own"])
def test_a_single_change_and_a_unit_without_last_changes_wait_for_no_turn(work: Unit[Any]) -> None:
    assert packets(work, turn="mine") == packets(work)


def test_a_unit_that_only_reads_waits_for_no_turn() -> None:
    assert packets(look_then_change(), write=False, turn="mine") == packets(look_then_change(), write=False)


class Odd(bytes):
    """As numpy has one."""


@pytest.mark.parametrize("value", [b"a'b", Odd(b"a'b"), bytearray(b"a'b"), memoryview(b"a'b")])
def test_bytes_of_any_type_are_bound_as_bytes(value: Any) -> None:
    @unit
    def change() -> Steps[None]:
        yield Commit([Do("UPDATE t SET a = ?", (value,))])

    assert packets(change()) == [(["UPDATE t SET a = x'612762'"], True)]


def test_a_unit_that_only_reads_has_no_transaction() -> None:
    assert packets(look_then_change(), write=False)[0] == (["SELECT a FROM t FOR UPDATE"], False)
