"""What makes two experiments the same: typed, canonical values and the fingerprint of a row of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from pyexp_daemon.space.codec import Codec
from pyexp_daemon.space.moments import DateCodec, DatetimeCodec, TimeCodec
from pyexp_daemon.space.numeric import BooleanCodec, DecimalCodec, DoubleCodec, IntegerCodec, SingleCodec
from pyexp_daemon.space.sqltypes import Family, SqlType, parse_type
from pyexp_daemon.space.texts import BinaryCodec, JsonCodec, MemberCodec, OtherCodec, TextCodec
from pyexp_daemon.space.values import encode_anything, plain

__all__ = [
    "NULL",
    "SCHEME",
    "ColumnType",
    "Family",
    "copy_of",
    "copy_part",
    "fingerprint",
    "fingerprint_of_parts",
    "part",
]

SCHEME = 1
"""Number of the way fingerprints are made: their first byte. A change of any canonical bytes needs the next number."""

NULL = b""
"""The canonical bytes of NULL; those of every other value begin with a letter."""

_CODECS: dict[Family, type[Codec]] = {
    Family.INTEGER: IntegerCodec,
    Family.BOOLEAN: BooleanCodec,
    Family.DECIMAL: DecimalCodec,
    Family.SINGLE: SingleCodec,
    Family.DOUBLE: DoubleCodec,
    Family.TEXT: TextCodec,
    Family.DATETIME: DatetimeCodec,
    Family.DATE: DateCodec,
    Family.TIME: TimeCodec,
    Family.JSON: JsonCodec,
    Family.BINARY: BinaryCodec,
    Family.OTHER: OtherCodec,
}

_UNREADABLE = (ValueError, TypeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class ColumnType:
    """The declared type of a column, and what it does to values. The server that holds the table does not matter."""

    sql: SqlType
    _codec: Codec

    @classmethod
    def parse(cls, sql_type: str) -> ColumnType:
        """The type that the SQL text declares.

        Raises:
            ValueError: the text is more, or less, than a plain column type.
        """
        return _parse(sql_type)

    @property
    def family(self) -> Family:
        """What kind of values the column holds."""
        return self.sql.family

    def canonical(self, value: Any) -> tuple[Any, bytes]:
        """The value to bind into SQL, and its canonical bytes.

        Raises:
            ValueError: the column cannot hold the value without changing it; the text is a short reason.
        """
        return self._encoded(self._codec.store, value)

    def rounded(self, value: Any) -> tuple[Any, bytes]:
        """Like `canonical`, but what a lenient database makes of the value where it does not fit: 2 for 1.5 in INT."""
        return self._encoded(self._codec.nearest, value)

    def declared(self, value: Any) -> tuple[Any, bytes]:
        """Like `canonical`, but a column of so many decimals keeps so many: 2.256 in NUMERIC(10,2) is 2.26.

        MySQL rounds it without a word, SQLite does not; the identity of a row must not depend on the server.
        """
        try:
            return self.canonical(value)
        except ValueError:
            if self.family is not Family.DECIMAL:
                raise
            return self.rounded(value)

    def _encoded(self, store: Any, value: Any) -> tuple[Any, bytes]:
        value = plain(value)
        if value is None:
            return None, NULL
        stored = store(value)
        return stored, self._codec.encode(stored)

    def limits(self, value: Any, *, provider: str = "mysql") -> None:
        """Check that this database has room for the value.

        Raises:
            ValueError: it has not, or `canonical` refuses the value already.
        """
        stored, _ = self.declared(value)
        if stored is not None:
            check = self._codec.check_mysql if provider == "mysql" else self._codec.check_sqlite
            check(stored)

    def from_database(self, value: Any) -> Any:
        """What the user's function receives: the same Python value whichever driver read it.

        A value that does not belong into the column passes unchanged.
        """
        if value is None:
            return None
        try:
            return self._codec.load(value)
        except _UNREADABLE:
            return value

    def canonical_bytes_of_stored(self, value: Any) -> bytes:
        """The canonical bytes of a value that is in a table already, whoever wrote it; never raises."""
        if value is None:
            return NULL
        try:
            return self.declared(self._codec.reread(value))[1]
        except _UNREADABLE:
            return encode_anything(value)


@lru_cache(maxsize=1024)
def _parse(sql_type: str) -> ColumnType:
    parsed = parse_type(sql_type)
    codec = MemberCodec if parsed.name in {"ENUM", "SET"} else _CODECS[parsed.family]
    return ColumnType(parsed, codec(parsed))


MOST_COPIES = 10_000
"""So many copies of a row are told apart by `copy_of`."""


def fingerprint(named: Iterable[tuple[str, bytes]], *, copy: int = 0) -> bytes:
    """The 16-byte identity of a row: the scheme number and a hash of its column names and canonical bytes.

    The same for every order of the columns, every spelling of their names in capitals, every process. Of a row that
    is repeated each copy has its own; the first is copy 0.
    """
    return fingerprint_of_parts([*_parts(named), copy_part(copy)])


def copy_of(mark: bytes, *rows: Sequence[tuple[str, bytes]]) -> int:
    """Which copy of one of these rows the fingerprint is; 0 when it is none of them."""
    firsts = [_hash(_parts(row)) for row in rows]
    return next(
        (copy for copy in range(MOST_COPIES) if any(_print_of_copy(first, copy) == mark for first in firsts)), 0
    )


def _parts(named: Iterable[tuple[str, bytes]]) -> list[bytes]:
    return [part(name, canonical) for name, canonical in sorted(named, key=_by_name)]


def part(name: str, canonical: bytes) -> bytes:
    """What one column contributes to the fingerprint of a row."""
    label = name.lower().encode()
    return struct.pack(">II", len(label), len(canonical)) + label + canonical


def copy_part(number: int) -> bytes:
    """What the number of a copy contributes, after all columns: the first, 0, is the experiment itself."""
    return part("", str(number).encode()) if number else b""


def fingerprint_of_parts(parts: Iterable[bytes]) -> bytes:
    """The fingerprint of a row from the parts of its columns, sorted by lower-cased name."""
    return _SCHEME_BYTE + _hash(parts).digest()


def _hash(parts: Iterable[bytes]) -> blake2b:
    return blake2b(b"".join(parts), digest_size=15)


def _print_of_copy(first: blake2b, number: int) -> bytes:
    copied = first.copy()
    copied.update(copy_part(number))
    return _SCHEME_BYTE + copied.digest()


_SCHEME_BYTE = bytes([SCHEME])


def _by_name(pair: tuple[str, bytes]) -> str:
    return pair[0].lower()
