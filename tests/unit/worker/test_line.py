"""The child's end of the channel, over a real pair of sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pyexp_daemon.worker import channel
from pyexp_daemon.worker.child import ChannelRecorder, Line

RUN = {"kind": "run", "experiment_id": 1, "attempt": 1, "keyfields": {}, "workdir": "w"}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Line]]:
    daemon, child = socket.socketpair()
    yield daemon, Line(child)
    daemon.close()
    child.close()


def say(daemon: socket.socket, *messages: channel.Message) -> None:
    """All of it at once, so that one read gets it."""
    daemon.sendall(b"".join(map(channel.encode, messages)))


def test_a_stop_that_comes_with_the_order_is_for_that_experiment(ends: tuple[socket.socket, Line]) -> None:
    daemon, line = ends
    say(daemon, RUN, {"kind": "stop"})
    assert line.next_order() == RUN
    assert line.told_to_stop


def test_a_stop_before_the_order_was_for_the_experiment_before(ends: tuple[socket.socket, Line]) -> None:
    daemon, line = ends
    say(daemon, {"kind": "stop"}, {"kind": "refused", "number": None, "error": "RowRefused", "message": "m"}, RUN)
    assert line.next_order() == RUN
    assert not line.told_to_stop
    assert line.take_refusal() is None


def test_the_end_of_the_allocation_is_what_was_said_last(ends: tuple[socket.socket, Line]) -> None:
    daemon, line = ends
    say(daemon, {"kind": "ends", "ends": 1000.5}, RUN, {"kind": "stop"}, {"kind": "ends", "ends": 2000.5})
    assert line.next_order() == RUN
    assert ChannelRecorder(line, 1).ends() == 2000.5
    assert line.told_to_stop
    say(daemon, {"kind": "ends", "ends": None})
    assert ChannelRecorder(line, 1).ends() is None


def test_an_answer_belongs_to_its_question(ends: tuple[socket.socket, Line]) -> None:
    daemon, line = ends
    say(daemon, {"kind": "stored", "number": 0}, {"kind": "found", "number": 1, "answer": [1, b"2"]})
    assert line.ask({"kind": "look_up", "experiment_id": 1, "what": "w", "arguments": {}})["answer"] == [1, b"2"]
    say(daemon, {"kind": "stored", "number": 2})
    assert line.ask({"kind": "results", "experiment_id": 1, "results": {}})["kind"] == "stored"
