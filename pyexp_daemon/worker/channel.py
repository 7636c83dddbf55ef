"""What daemon and child say to each other, and how: JSON objects, each after its length in four bytes.

Both sides load this module, the child in an interpreter of the user's: standard library only, Python 3.9 or newer.
Nothing is ever unpickled: a child cannot make its daemon run code.
"""

from __future__ import annotations

import json
import signal
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Message = dict[str, Any]

DUMP_SIGNAL = signal.SIGRTMIN + 7
"""Makes a child write the stacks of all its threads to stderr; it goes on as before."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The longest message either side accepts unless told otherwise."""

TAG = "__pyexpd__"
"""The only key of a JSON object that stands for a value JSON has no word for: `{TAG: [type, text]}`."""

RECEIVE_BYTES = 32 * 1024
"""How much to receive at once: asking for more has the allocator fetch memory from the kernel, and return it."""

KEYS = {
    # from the daemon
    "load": (
        "function",
        "pickled",
        "store",
        "project",
        "custom",
        "resultfields",
        "logtables",
        "max_message_bytes",
    ),
    "run": ("experiment_id", "attempt", "keyfields", "workdir"),
    "stored": ("number",),
    "found": ("number", "answer"),
    "refused": ("number", "error", "message"),
    "stop": (),
    "ends": ("ends",),
    # from the child
    "ready": ("file", "cpu_total"),
    "broken": ("message", "hint", "traceback"),
    "results": ("number", "experiment_id", "results"),
    "snapshot": ("number", "experiment_id", "state_id", "part", "data", "head"),
    "look_up": ("number", "experiment_id", "what", "arguments"),
    "logs": ("experiment_id", "rows"),
    "progress": ("experiment_id", "fraction", "description"),
    "listens": ("experiment_id",),
    "finished": ("outcome", "error", "results", "cpu_seconds", "cpu_total", "peak_rss_bytes", "rss_bytes"),
}
"""Every kind of message with its keys. `refused` without a number concerns log rows: nobody waits for an answer.

Where emissions are tracked, `load` has `codecarbon` besides, `finished` has `emissions`, and what is wrong with them is
`emissions_trouble` in `ready` and `finished`.
"""

_LENGTH = struct.Struct("!I")


class ChannelError(Exception):
    """The other side sent something that is no message; the stream cannot be read any further."""


class MessageTooLong(ValueError):
    """A message is longer than the other side would accept; nothing was sent."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"a message of {size_bytes} bytes is longer than the {limit_bytes} allowed")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


def encode(message: Message, *, limit_bytes: int = MAX_MESSAGE_BYTES) -> bytes:
    """The frame that carries `message`. Dates, Decimals, bytes and non-finite floats keep their type.

    Text that UTF-8 cannot hold (lone surrogates) arrives with question marks.

    Raises:
        TypeError: a value is of a type that cannot be sent.
        MessageTooLong: the encoded message is longer than `limit_bytes`.
    """
    body = dumps(message).encode("utf-8", "replace")
    if len(body) > limit_bytes:
        raise MessageTooLong(len(body), limit_bytes)
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Collects what arrives, in pieces of any size, and gives back whole messages."""

    def __init__(self, *, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._received = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes in the order in which they arrived."""
        self._received += data

    def next(self) -> Message | None:
        """The oldest whole message, taken out; None when there is none yet.

        Raises:
            ChannelError: what arrived is no message.
        """
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._received)
        if length > self.limit_bytes:
            raise ChannelError(f"a message of {length} bytes was announced")
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        body = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return decode(body)


def decode(body: bytes) -> Message:
    """The message in a frame's body.

    Raises:
        ChannelError: it is not one of the messages in `KEYS`.
    """
    try:
        message = loads(body.decode("utf-8"))
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ChannelError(f"not a message: {error}") from error
    if not isinstance(message, dict) or message.get("kind") not in KEYS:
        raise ChannelError("not a message: of no known kind")
    if not all(key in message for key in KEYS[message["kind"]]):
        raise ChannelError(f"not a message: {message['kind']} without all its keys")
    return message


def _tag(value: object) -> dict[str, list[str]]:
    import base64
    import datetime
    import decimal

    if isinstance(value, (bytes, bytearray, memoryview)):
        return {TAG: ["bytes", base64.b64encode(value).decode("ascii")]}
    if isinstance(value, decimal.Decimal):
        return {TAG: ["decimal", str(value)]}
    if isinstance(value, datetime.timedelta):
        micros = (value.days * 86400 + value.seconds) * 10**6 + value.microseconds
        return {TAG: ["timedelta", str(micros)]}
    for kind in (datetime.datetime, datetime.date, datetime.time):
        if isinstance(value, kind):
            return {TAG: [kind.__name__, value.isoformat()]}
    raise TypeError(f"a value of type {type(value).__name__} cannot be sent")


def _restore(found: dict[str, Any]) -> Any:
    if len(found) != 1 or TAG not in found:
        return found
    kind, text = found[TAG]
    return _restorers()[kind](text)


def _restorers() -> dict[str, Callable[[str], Any]]:
    import base64
    import datetime
    import decimal

    return {
        "bytes": base64.b64decode,
        "decimal": decimal.Decimal,
        "timedelta": lambda micros: datetime.timedelta(microseconds=int(micros)),
        "datetime": datetime.datetime.fromisoformat,
        "date": datetime.date.fromisoformat,
        "time": datetime.time.fromisoformat,
    }


dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_tag).encode
"""A value as JSON, with tags where JSON has no word. Raises TypeError for what cannot be sent."""

_loads_plain = json.JSONDecoder().decode
_loads_tagged = json.JSONDecoder(object_hook=_restore).decode


def loads(text: str) -> Any:
    """What `dumps` was given. Raises all kinds of errors, as `decode` knows them, for what `dumps` has not written."""
    # Most texts have no tag, and are read without a call of ours for every object in them.
    return _loads_tagged(text) if TAG in text else _loads_plain(text)
