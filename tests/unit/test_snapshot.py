"""How states become bytes and are read again."""

from __future__ import annotations

import datetime
import math
import random
import zoneinfo
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyexp_daemon import exceptions, snapshot


def there_and_back(state: Any, *, allow_pickle: bool = False) -> Any:
    buffers = snapshot.encode(state, allow_pickle=allow_pickle)
    parts = list(snapshot.parts_of(buffers))
    assert len(parts) == snapshot.count_parts(buffers)
    assert {len(part) for part in parts[:-1]} <= {snapshot.PART_BYTES}
    assert sum(map(len, parts)) == sum(map(len, buffers))
    return snapshot.decode(bytearray(b"".join(parts)), allow_pickle=allow_pickle)


KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.binary(max_size=9) | st.tuples(st.integers())
LEAVES = KEYS | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False) | st.datetimes() | st.timedeltas()
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner) | st.sets(KEYS) | st.frozensets(KEYS)
    ),
    max_leaves=20,
)


@given(STATES)
def test_a_state_comes_back_equal_and_of_the_same_types(state: Any) -> None:
    back = there_and_back(state)
    assert back == state
    assert repr_of(back) == repr_of(state)


def repr_of(state: Any) -> Any:
    """With its types, and without the order of sets."""
    if isinstance(state, (set, frozenset)):
        return type(state), sorted(map(repr, state))
    if isinstance(state, dict):
        return [(repr_of(key), repr_of(value)) for key, value in state.items()]
    if isinstance(state, (list, tuple)):
        return type(state), [repr_of(each) for each in state]
    return repr(state)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4),
        np.asfortranarray(np.random.default_rng(1).normal(size=(5, 3))),
        np.zeros((0, 7), dtype=np.float32),
        np.array(3 + 4j),
        np.array([("a", 1.5)], dtype=[("name", "U4"), ("loss", ">f8")]),
        np.array(["2026-11-30", "NaT"], dtype="datetime64[D]"),
        np.array([True, False]),
        np.arange(10)[::-2],
        np.zeros(2, dtype=[(f"field {number}", "f8") for number in range(300)]),
    ],
)
def test_arrays_keep_type_shape_and_order_of_bytes(array: np.ndarray) -> None:
    back = there_and_back({"weights": [array]})["weights"][0]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable


@pytest.mark.parametrize("value", [np.float32(0.1), np.float64(0.1), np.int64(7), np.bool_(True), np.str_("x")])
def test_scalars_of_numpy_stay_scalars_of_numpy(value: Any) -> None:
    back = there_and_back([value])[0]
    assert back == value
    assert type(back) is type(value)


def test_what_json_has_no_word_for() -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    state = {
        "bytes": bytearray(b"\0\xff"),
        "text": "\udc80 \x00 ü",
        "exact": Decimal("1.10"),
        "when": [moment, moment.date(), moment.timetz()],
        "floats": [math.inf, -math.inf, -0.0],
        "like ours": {"__pyexpd__": ["bytes", 0]},
        "generator": random.Random(1).getstate(),
        "numpy's": np.random.default_rng(1).bit_generator.state,
    }
    back = there_and_back(state)
    assert back == state
    assert type(back["bytes"]) is bytearray
    assert math.copysign(1, back["floats"][2]) == -1
    assert math.isnan(there_and_back(math.nan))
    restored = random.Random()
    restored.setstate(back["generator"])
    assert restored.random() == random.Random(1).random()


BERLIN = datetime.time(1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
"""Without a date, nobody can say how far from UTC that is."""


class Model:
    """Of no type that a snapshot holds."""

    weight = 1


@pytest.mark.parametrize(
    "value", [Model(), np.array([Model()]), np.ma.masked_array([1], mask=[True]), range(3), print, BERLIN]
)
def test_other_types_are_refused_with_their_place(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^state\['layers'\]\[1\] is of type {type(value).__name__}, .*allow_pickle"):
        snapshot.encode({"layers": [1, value]}, allow_pickle=False)


def test_types_that_other_libraries_add_to_numpy_are_refused_rather_than_kept_as_bytes() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(TypeError, match="which a snapshot does not hold"):
        snapshot.encode({"weights": np.zeros(2, dtype=ml_dtypes.bfloat16)}, allow_pickle=False)


def test_pickles_are_read_only_when_that_is_asked_for() -> None:
    data = b"".join(snapshot.encode({"model": Model()}, allow_pickle=True))
    with pytest.raises(exceptions.SnapshotError, match="pickled values") as caught:
        snapshot.decode(data, allow_pickle=False)
    assert "allow_pickle=True" in str(caught.value.hint)
    assert type(snapshot.decode(data, allow_pickle=True)["model"]) is Model


def test_a_state_that_holds_itself_is_refused() -> None:
    state: list[Any] = []
    state.append(state)
    with pytest.raises(ValueError, match="refers to itself"):
        snapshot.encode(state, allow_pickle=True)
    deep: Any = 1
    for _ in range(100):
        deep = (deep,)
    assert there_and_back(deep) == deep
    with pytest.raises(ValueError, match="more than 100 lists"):
        snapshot.encode([deep], allow_pickle=False)


DATA = b"".join(snapshot.encode({"a": [1, b"xyz"], "b": np.arange(3)}, allow_pickle=False))


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_damage_is_one_clear_error(place: int, flip: int) -> None:
    damaged = bytearray(DATA)
    damaged[place] ^= flip
    try:
        snapshot.decode(damaged, allow_pickle=False)
    except exceptions.SnapshotError:
        return  # else the flip made other values of some: the database keeps bytes whole


@pytest.mark.parametrize("data", [b"", b"pyexpd", DATA[:30], DATA[:-1], DATA + b"x", b"something else altogether"])
def test_what_is_cut_or_no_snapshot_is_one_clear_error(data: bytes) -> None:
    with pytest.raises(exceptions.SnapshotError):
        snapshot.decode(data, allow_pickle=False)


class Server:
    """Answers as the database would."""

    def __init__(self) -> None:
        self.heads: list[dict[str, Any]] = []
        self.parts: dict[tuple[str, int], bytes] = {}
        self.asked: list[str] = []

    def save(self, state: Any, label: str | None = None) -> None:
        buffers = snapshot.encode(state, allow_pickle=True)
        name = str(len(self.heads))
        for number, part in enumerate(snapshot.parts_of(buffers)):
            self.parts[name, number] = part
        head = {"sequence": len(self.heads) + 1, "label": label, "created": 1.5, "attempt": 1, "state_id": name}
        self.heads.insert(0, {**head, "size_bytes": 1, "parts": snapshot.count_parts(buffers)})

    def __call__(self, what: str, **arguments: Any) -> Any:
        self.asked.append(what)
        if what == "snapshots":
            alike = [head for head in self.heads if arguments["label"] in (None, head["label"])]
            return alike[: arguments["limit"]]
        return self.parts.get((arguments["state_id"], arguments["part"]))


def test_a_state_is_read_when_it_is_asked_for_and_once() -> None:
    server = Server()
    server.save(b"x" * (2 * snapshot.PART_BYTES))
    server.save("second", label="best")
    newest, oldest = snapshot.Snapshots(server).all(allow_pickle=False)
    assert server.asked == ["snapshots"]
    assert (newest.state, newest.label, newest.sequence) == ("second", "best", 2)
    assert newest.created == datetime.datetime(1970, 1, 1, 0, 0, 1, 500000, tzinfo=datetime.UTC)
    assert oldest.state is oldest.state
    assert len(oldest.state) == 2 * snapshot.PART_BYTES
    assert server.asked.count("snapshot_part") == 1 + 3


def test_the_latest_is_read_again_when_a_newer_one_replaced_it() -> None:
    class Replacing(Server):
        def __call__(self, what: str, **arguments: Any) -> Any:
            answer = super().__call__(what, **arguments)
            if self.asked == ["snapshots"]:
                self.parts.clear()
                self.save("new")
                self.heads[1:] = []
            return answer

    server = Replacing()
    server.save("old")
    latest = snapshot.Snapshots(server).latest(label=None, allow_pickle=False)
    assert latest is not None
    assert latest.state == "new"


def test_a_snapshot_without_its_parts_is_an_error_not_a_loop() -> None:
    server = Server()
    server.save("lost")
    server.parts.clear()
    with pytest.raises(exceptions.SnapshotError, match="snapshot 1 is gone"):
        snapshot.Snapshots(server).latest(label=None, allow_pickle=False)
