"""Snapshots: what an experiment saves to resume from, and how it becomes bytes and is read again.

Standard library only, like everything that a child imports; NumPy is used when the state has arrays.

A state is written as a mark, the length of a header, the header (JSON) and then one buffer after the other, for bytes
and arrays, which JSON has no word for. An array is a buffer in NumPy's own `.npy` format.
"""

from __future__ import annotations

import functools
import importlib
import json
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions

if TYPE_CHECKING:
    import datetime

PART_BYTES = 256 * 1024
"""How much of a state travels at once, and is one row: far below what any server takes as one packet."""

_MARK = b"pyexpd snapshot 1\n"
_LENGTH = struct.Struct("!Q")
_DEEPEST = 100
"""How many lists, dicts and their like may stand in each other: reading them back takes several calls for each."""

_TAG = "__pyexpd__"
"""The only key of a JSON object that stands for a value JSON has no word for: `{TAG: [type, …]}`."""


@dataclass(frozen=True)
class Snapshot:
    """A state as it was saved.

    Args:
        sequence: which snapshot of its experiment this is, from 1, over all attempts.
        label: what it was called; None when it was not.
        created: when it was saved, with time zone UTC. What came first is told by `sequence`, whatever the clocks say.
        attempt: which attempt saved it.
        size_bytes: how long it is as bytes.
    """

    sequence: int
    label: str | None
    created: datetime.datetime
    attempt: int
    size_bytes: int
    _read: Callable[[], Any]

    @functools.cached_property
    def state(self) -> Any:
        """What was saved, read from the database when it is first asked for.

        Raises:
            SnapshotError: it has been replaced by a newer one meanwhile, or holds pickled values and those were not
                allowed.
        """
        return self._read()


class Snapshots:
    """The snapshots of one experiment.

    Args:
        look_up: gives what the database has of them: `snapshots` their heads, `snapshot_part` one part of a state.
    """

    def __init__(self, look_up: Callable[..., Any]) -> None:
        self._look_up = look_up

    def latest(self, *, label: str | None, allow_pickle: bool) -> Snapshot | None:
        """The newest one (of this label, unless None), its state read; None when there is none."""
        last = 0
        while heads := self._look_up("snapshots", label=label, limit=1):
            snapshot = self._snapshot(heads[0], allow_pickle=allow_pickle)
            if snapshot.sequence == last:  # its parts are missing, and no newer one replaced it: let that be raised
                snapshot.state  # noqa: B018
            if _is_there(snapshot):
                return snapshot
            last = snapshot.sequence
        return None

    def all(self, *, allow_pickle: bool, read: bool = False) -> list[Snapshot]:
        """All of them, the newest first.

        Args:
            read: with their states, and without those that are replaced meanwhile.
        """
        heads = self._look_up("snapshots", label=None, limit=None)
        found = [self._snapshot(head, allow_pickle=allow_pickle) for head in heads]
        return [snapshot for snapshot in found if not read or _is_there(snapshot)]

    def _snapshot(self, head: Mapping[str, Any], *, allow_pickle: bool) -> Snapshot:
        import datetime

        return Snapshot(
            sequence=head["sequence"],
            label=head["label"],
            created=datetime.datetime.fromtimestamp(head["created"], tz=datetime.timezone.utc),  # noqa: UP017 Python 3.9
            attempt=head["attempt"],
            size_bytes=head["size_bytes"],
            _read=lambda: decode(self._bytes(head), allow_pickle=allow_pickle),
        )

    def _bytes(self, head: Mapping[str, Any]) -> bytearray:
        data = bytearray()
        for number in range(head["parts"]):
            part = self._look_up("snapshot_part", state_id=head["state_id"], part=number)
            if part is None:
                raise _Gone(
                    f"snapshot {head['sequence']} is gone: a newer one replaced it", hint="ask for the latest one again"
                )
            data += part
        return data


def _is_there(snapshot: Snapshot) -> bool:
    try:
        snapshot.state  # noqa: B018 kept from now on
    except _Gone:
        return False
    return True


class _Gone(exceptions.SnapshotError):
    """A snapshot was replaced while it was read."""


def count_parts(buffers: Sequence[memoryview]) -> int:
    """How many parts `parts_of` gives."""
    return -(-sum(map(len, buffers)) // PART_BYTES)


def parts_of(buffers: Sequence[memoryview]) -> Iterator[bytes]:
    """Bytes in pieces of PART_BYTES, of which only the last is shorter. Nothing is copied but the piece itself."""
    piece = bytearray()
    for buffer in buffers:
        begin = 0
        while begin < len(buffer):
            taken = min(PART_BYTES - len(piece), len(buffer) - begin)
            piece += buffer[begin : begin + taken]
            begin += taken
            if len(piece) == PART_BYTES:
                yield bytes(piece)
                piece.clear()
    if piece:
        yield bytes(piece)


def encode(state: Any, *, allow_pickle: bool) -> list[memoryview]:
    """The bytes of a state, in pieces of any length, the arrays' own memory among them.

    Args:
        state: None, bool, int, float, complex, text, bytes, dates, Decimals, NumPy arrays and scalars, and lists,
            tuples, sets and dicts of them.
        allow_pickle: other values are pickled.

    Raises:
        TypeError: it holds a value of another type; the text names the place and the type.
        ValueError: it refers to itself, or is nested too deep.
    """
    encoder = _Encoder(allow_pickle=allow_pickle)
    header = json.dumps({"state": encoder.plain(state, "state"), "buffers": encoder.sizes}).encode("ascii")
    return [memoryview(_MARK + _LENGTH.pack(len(header)) + header), *encoder.buffers]


def decode(data: bytes | bytearray, *, allow_pickle: bool) -> Any:
    """The state of which `encode` made these bytes. Arrays can be written to.

    Raises:
        SnapshotError: it is no state of this kind, or has pickled values and those are not allowed.
    """
    head = len(_MARK) + _LENGTH.size
    if data[: len(_MARK)] != _MARK or len(data) < head:
        raise exceptions.SnapshotError("this is no snapshot that this version can read")
    (length,) = _LENGTH.unpack_from(data, len(_MARK))
    try:
        header = json.loads(bytes(data[head : head + length]))
        view, begin, buffers = memoryview(data), head + length, []
        for size_bytes in header["buffers"]:
            buffers.append(view[begin : begin + size_bytes])
            begin += size_bytes
        if begin != len(data):
            raise ValueError(f"{len(data)} bytes, and it says {begin}")
        return _Decoder(buffers, allow_pickle=allow_pickle).value(header["state"])
    except exceptions.SnapshotError:
        raise
    except Exception as error:  # of any kind, when it was pickled
        raise exceptions.SnapshotError(f"the snapshot cannot be read: {type(error).__name__}: {error}") from error


class _Encoder:
    """Makes of a state what JSON can hold, and buffers."""

    def __init__(self, *, allow_pickle: bool) -> None:
        self.buffers: list[memoryview] = []
        self._allow_pickle = allow_pickle
        self._depth = 0

    @property
    def sizes(self) -> list[int]:
        return [len(buffer) for buffer in self.buffers]

    def plain(self, value: Any, place: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"the state refers to itself, or more than {_DEEPEST} lists or dicts stand in each other")
        try:
            return self._tagged(value, kind, place)
        finally:
            self._depth -= 1

    def _tagged(self, value: Any, kind: type, place: str) -> Any:
        if kind is list:
            return self._items(value, place)
        if kind is dict:
            return self._dict(value, place)
        if kind in (tuple, set, frozenset):
            return {_TAG: [kind.__name__, self._items(value, place)]}
        if kind in (bytes, bytearray):
            return {_TAG: [kind.__name__, self._keep(value)]}
        if kind is complex:
            return {_TAG: ["complex", value.real, value.imag]}
        return self._array(value) or self._moment(value) or self._pickle(value, place)

    def _items(self, values: Any, place: str) -> list[Any]:
        return [self.plain(value, f"{place}[{number}]") for number, value in enumerate(values)]

    def _dict(self, values: Mapping[Any, Any], place: str) -> Any:
        plain = {key: self.plain(value, f"{place}[{key!r}]") for key, value in values.items()}
        if all(type(key) is str for key in plain) and _TAG not in plain:
            return plain
        return {_TAG: ["dict", [[self.plain(key, f"a key of {place}"), value] for key, value in plain.items()]]}

    def _array(self, value: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is None or not (type(value) in (numpy.ndarray, numpy.memmap) or isinstance(value, numpy.generic)):
            return None
        if value.dtype.hasobject or not _is_kept(numpy.lib.format, value.dtype):
            return None
        import io

        buffer = io.BytesIO()
        numpy.lib.format.write_array(buffer, numpy.asanyarray(value), allow_pickle=False)
        return {_TAG: ["scalar" if isinstance(value, numpy.generic) else "array", self._keep(buffer.getbuffer())]}

    def _moment(self, value: Any) -> Any:
        import datetime
        import decimal

        kind = type(value)
        if kind is datetime.date:
            return {_TAG: ["date", value.isoformat()]}
        if kind in (datetime.datetime, datetime.time) and (value.tzinfo is None or value.utcoffset() is not None):
            return {_TAG: [kind.__name__, value.isoformat(), value.fold]}
        if kind is datetime.timedelta:
            return {_TAG: ["timedelta", value.days, value.seconds, value.microseconds]}
        if kind is decimal.Decimal:
            return {_TAG: ["decimal", str(value)]}
        return None

    def _pickle(self, value: Any, place: str) -> Any:
        if not self._allow_pickle:
            raise TypeError(
                f"{place} is of type {type(value).__name__}, which a snapshot does not hold: make it numbers, text,"
                " bytes, NumPy arrays, lists, dicts; or save_snapshot(…, allow_pickle=True) pickles it"
            )
        import pickle

        return {_TAG: ["pickle", self._keep(pickle.dumps(value))]}

    def _keep(self, buffer: Any) -> int:
        self.buffers.append(memoryview(buffer).cast("B"))
        return len(self.buffers) - 1


def _is_kept(form: Any, dtype: Any) -> bool:
    """Whether NumPy's file format keeps a type: of those that other libraries add it keeps bytes."""
    return bool(form.descr_to_dtype(form.dtype_to_descr(dtype)) == dtype)


class _Decoder:
    """Makes a state of what JSON holds, and buffers."""

    def __init__(self, buffers: Sequence[memoryview], *, allow_pickle: bool) -> None:
        import datetime
        import decimal

        self._buffers = buffers
        self._allow_pickle = allow_pickle
        self._make: Mapping[str, Callable[..., Any]] = {
            "tuple": lambda items: tuple(self.value(items)),
            "set": lambda items: set(self.value(items)),
            "frozenset": lambda items: frozenset(self.value(items)),
            "dict": lambda items: {self.value(key): self.value(each) for key, each in items},
            "bytes": lambda number: bytes(self._buffers[number]),
            "bytearray": lambda number: bytearray(self._buffers[number]),
            "array": self._array,
            "scalar": lambda number: self._array(number)[()],
            "complex": complex,
            "datetime": lambda text, fold: datetime.datetime.fromisoformat(text).replace(fold=fold),
            "date": datetime.date.fromisoformat,
            "time": lambda text, fold: datetime.time.fromisoformat(text).replace(fold=fold),
            "timedelta": datetime.timedelta,
            "decimal": decimal.Decimal,
            "pickle": self._unpickled,
        }

    def value(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return [self.value(each) for each in plain]
        if not isinstance(plain, dict):
            return plain
        if _TAG in plain:
            kind, *content = plain[_TAG]
            return self._make[kind](*content)
        return {key: self.value(each) for key, each in plain.items()}

    def _array(self, number: int) -> Any:
        import io

        # By name, so that no child loads NumPy whose states have no arrays.
        npy = importlib.import_module("numpy.lib.format")
        buffer = self._buffers[number]
        try:
            return npy.read_array(io.BytesIO(buffer), allow_pickle=False, max_header_size=len(buffer))
        except TypeError:  # NumPy before 1.23 has no such limit
            return npy.read_array(io.BytesIO(buffer), allow_pickle=False)

    def _unpickled(self, number: int) -> Any:
        if not self._allow_pickle:
            raise exceptions.SnapshotError(
                "the snapshot has pickled values, and reading those can run any code",
                hint="allow_pickle=True reads them, if you trust everybody who can write to the database",
            )
        import pickle

        return pickle.loads(self._buffers[number])  # asked for by name
