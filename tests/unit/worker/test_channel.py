"""The frames between daemon and child."""

from __future__ import annotations

import ast
import datetime
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyexp_daemon.worker import channel

PACKAGE = Path(channel.__file__).parents[1]
OUTSIDE = ("exceptions", "experiment_status", "result_processor")
INSIDE = ("__init__", "channel", "child", "function")
IN_THE_CHILD = [*(f"{name}.py" for name in OUTSIDE), *(f"worker/{name}.py" for name in INSIDE)]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.none() | st.just(datetime.UTC))
    | st.dates()
    | st.times()
    | st.timedeltas()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner), max_leaves=20
)


@given(st.dictionaries(st.text(), values), st.integers(1, 64))
def test_messages_arrive_whole_whatever_the_pieces(keyfields: dict[str, object], piece_bytes: int) -> None:
    message = {"kind": "run", "experiment_id": 1, "attempt": 1, "keyfields": keyfields, "workdir": "/w"}
    stream = channel.encode(message) * 2
    frames = channel.FrameBuffer()
    arrived = []
    for start in range(0, len(stream), piece_bytes):
        frames.feed(stream[start : start + piece_bytes])
        while (found := frames.next()) is not None:
            arrived.append(found)

    assert arrived == [message, message]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"kind": "unheard of"}',
        b'{"kind": "finished"}',
        b'{"kind": "ready", "file": {"__pyexpd__": ["date", "no day"]}, "cpu_total": 0}',
        b'{"kind": "ready", "file": {"__pyexpd__": ["no kind", ""]}, "cpu_total": 0}',
        b'{"kind": "ready", "file": {"__pyexpd__": 3}, "cpu_total": 0}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    frames = channel.FrameBuffer()
    frames.feed(struct.pack("!I", len(body)) + body)

    with pytest.raises(channel.ChannelError):
        frames.next()


def test_a_length_beyond_the_limit_is_refused_before_it_is_awaited() -> None:
    frames = channel.FrameBuffer(limit_bytes=100)
    frames.feed(struct.pack("!I", 101))

    with pytest.raises(channel.ChannelError, match="101 bytes"):
        frames.next()
    with pytest.raises(channel.MessageTooLong):
        channel.encode({"kind": "stop", "padding": "x" * 100}, limit_bytes=100)


def test_lone_surrogates_do_not_break_a_frame() -> None:
    assert json.loads(channel.encode({"error": "\udc80"})[4:]) == {"error": "?"}


@pytest.mark.parametrize("name", IN_THE_CHILD)
def test_what_runs_in_a_child_is_python_3_9(name: str) -> None:
    ast.parse((PACKAGE / name).read_text(), feature_version=(3, 9))
