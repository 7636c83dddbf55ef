"""Columns of text, JSON documents, bytes, and of types this package does not know."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from pyexp_daemon.space.codec import Codec
from pyexp_daemon.space.values import encode_anything, encode_text, read_number, show

_MOST_BYTES = {"TINYTEXT": 2**8 - 1, "TEXT": 2**16 - 1, "MEDIUMTEXT": 2**24 - 1}
_MOST_BYTES |= {"TINYBLOB": 2**8 - 1, "BLOB": 2**16 - 1, "MEDIUMBLOB": 2**24 - 1}
_MOST_EXACT = 2**53


class TextCodec(Codec):
    """VARCHAR, TEXT and their relatives: numbers and booleans are held as Python writes them."""

    def store(self, value: Any) -> str:
        text = self._written(value)
        encode_text(text)
        if self.type.length is not None and len(text) > self.type.length:
            raise ValueError(f"{show(value)} is longer than {self.type.length} characters")
        if self.type.name in {"CHAR", "CHARACTER", "NCHAR"} and text.endswith(" "):
            raise ValueError(f"{show(value)} ends in a space, which {self.type.name} drops")
        return text

    def encode(self, stored: str) -> bytes:
        return b"t" + encode_text(stored)

    def load(self, value: Any) -> str:
        if isinstance(value, bytes | bytearray):
            return value.decode()
        return self._written(value)

    def nearest(self, value: Any) -> str:
        return self._written(value)[: self.type.length]

    def check_mysql(self, stored: str) -> None:
        _check_bytes(stored, self.type.name)
        if self.type.name in {"CHAR", "CHARACTER", "NCHAR"} and self.type.length is None and len(stored) > 1:
            raise ValueError(f"{show(stored)} is longer than 1 character")

    def check_sqlite(self, stored: str) -> None:
        if self.type.name in {"STR", "STRING"} and _read_by_numeric_affinity(stored) != stored:
            raise ValueError(f"{show(stored)} becomes a number on SQLite")

    @staticmethod
    def _written(value: Any) -> str:
        if isinstance(value, float | Decimal):
            read_number(value)
        if isinstance(value, str):
            return value[:]
        if isinstance(value, float):
            return repr(float(value))
        if isinstance(value, bool | int | Decimal | date | datetime):
            return str(value)
        raise ValueError(f"{show(value)} is not text")


class MemberCodec(TextCodec):
    """ENUM and SET: texts out of a list."""

    def store(self, value: Any) -> str:
        text = super().store(value)
        if not self.type.members:
            return text
        chosen = [text] if self.type.name == "ENUM" else [part for part in text.split(",") if part]
        for part in chosen:
            if part not in self.type.members:
                raise ValueError(f"{show(part)} is not one of {', '.join(map(repr, self.type.members))}")
        return text if self.type.name == "ENUM" else ",".join(m for m in self.type.members if m in chosen)


class JsonCodec(Codec):
    """JSON: stored sorted and compact. A text that spells a mapping or a list is that mapping or list."""

    def store(self, value: Any) -> str:
        document = _spelled(value) if isinstance(value, str) else value
        if isinstance(document, float) and document.is_integer() and abs(document) < _MOST_EXACT:
            document = int(document)  # SQLite turns the text 1.0 into the number 1
        _refuse_other_keys(document)
        try:
            text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError(f"{show(value)} cannot be written as JSON") from None
        encode_text(text)
        return text

    def encode(self, stored: str) -> bytes:
        return b"j" + encode_text(stored)

    def load(self, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str | bytes | bytearray) else value

    def check_sqlite(self, stored: str) -> None:
        if _read_by_numeric_affinity(stored) != stored:
            raise ValueError(f"{show(stored)} becomes another number on SQLite")


class BinaryCodec(Codec):
    """BLOB and BINARY: bytes only."""

    def store(self, value: Any) -> bytes:
        held = self._bytes(value)
        if self.type.name == "VARBINARY" and self.type.length is not None and len(held) > self.type.length:
            raise ValueError(f"{show(held)} is longer than {self.type.length} bytes")
        if self.type.name == "BINARY" and len(held) != (self.type.length or 1):
            raise ValueError(f"{show(held)} is not exactly {self.type.length or 1} bytes long")
        return held

    def encode(self, stored: bytes) -> bytes:
        return b"b" + stored

    def load(self, value: Any) -> bytes:
        return self._bytes(value.encode() if isinstance(value, str) else value)

    def check_mysql(self, stored: bytes) -> None:
        _check_bytes(stored, self.type.name)

    @staticmethod
    def _bytes(value: Any) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise ValueError(f"{show(value)} is not bytes")
        return bytes(value)


class OtherCodec(Codec):
    """A type this package does not know: values pass as they are."""

    def store(self, value: Any) -> Any:
        if isinstance(value, float | Decimal):
            read_number(value)
        if isinstance(value, str):
            encode_text(value)
        if not isinstance(value, bool | int | float | str | bytes):
            raise ValueError(f"{show(value)} cannot be held by this type")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{show(value)} is too large")
        return value

    def encode(self, stored: Any) -> bytes:
        return encode_anything(stored)

    def load(self, value: Any) -> Any:
        return value


def _check_bytes(stored: str | bytes, name: str) -> None:
    size = len(stored.encode() if isinstance(stored, str) else stored)
    if size > _MOST_BYTES.get(name, size):
        raise ValueError(f"{show(stored)} is longer than {_MOST_BYTES[name]} bytes")


def _spelled(text: str) -> Any:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return document if isinstance(document, dict | list) else text


def _refuse_other_keys(document: Any) -> None:
    """JSON would turn the key 1 into the text "1": a change that nobody asked for."""
    if isinstance(document, dict):
        for key, inner in document.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {show(key)} is not text, which JSON needs")
            _refuse_other_keys(inner)
    elif isinstance(document, list | tuple):
        for inner in document:
            _refuse_other_keys(inner)


def _read_by_numeric_affinity(text: str) -> str:
    """What SQLite gives back for a text in a column that it takes for a numeric one (`STR`, `JSON`)."""
    try:
        number = read_number(text)
    except ValueError:
        return text
    return str(int(number)) if -(2**63) <= number < 2**63 and number == int(number) else repr(float(number))
