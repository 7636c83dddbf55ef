"""Columns of numbers. They share one canonical spelling, so changing NUMERIC to DOUBLE keeps the fingerprints."""

from __future__ import annotations

import math
import struct
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from pyexp_daemon.space.codec import Codec
from pyexp_daemon.space.values import WIDE, number_text, read_number, show, to_decimal

_LEAST_INT, _MOST_INT, _MOST_UNSIGNED = -(2**63), 2**63 - 1, 2**64 - 1
_BYTES = {"TINYINT": 1, "INT1": 1, "SMALLINT": 2, "INT2": 2, "MEDIUMINT": 3, "MIDDLEINT": 3, "INT3": 3}
_BYTES |= {"BIGINT": 8, "INT8": 8}
_EXACT_BY_REPR = 1e15
_BOOLEAN_WORDS = {"true": 1, "false": 0, "1": 1, "0": 0}


def encode_number(number: float | Decimal) -> bytes:
    """The canonical bytes of a number, equal in all numeric columns."""
    return b"n" + number_text(to_decimal(number)).encode()


class IntegerCodec(Codec):
    """INT and its relatives, and YEAR."""

    def store(self, value: Any) -> int:
        number = read_number(value)
        whole = int(number)
        if whole != number:
            raise ValueError(f"{show(value)} is not a whole number")
        if not _LEAST_INT <= whole <= _MOST_UNSIGNED:
            raise ValueError(f"{show(value)} is too large for an integer column")
        return whole

    def encode(self, stored: int) -> bytes:
        return encode_number(stored)

    def load(self, value: Any) -> int:
        return self.store(value)

    def nearest(self, value: Any) -> int:
        return int(_rounded(to_decimal(read_number(value)), scale=0))

    def check_mysql(self, stored: int) -> None:
        least, most = self._range()
        if not least <= stored <= most:
            raise ValueError(f"{stored} is outside {least} … {most}")

    def check_sqlite(self, stored: int) -> None:
        if stored > _MOST_INT:
            raise ValueError(f"{stored} is outside {_LEAST_INT} … {_MOST_INT}")

    def _range(self) -> tuple[int, int]:
        if self.type.name == "YEAR":
            return 1901, 2155
        bits = 8 * _BYTES.get(self.type.name, 4)
        return (0, 2**bits - 1) if self.type.is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class BooleanCodec(Codec):
    """BOOL: stored as 0 and 1, handed to the user's function as False and True."""

    def store(self, value: Any) -> int:
        if isinstance(value, str) or read_number(value) not in (0, 1):
            raise ValueError(f"{show(value)} is not true or false")
        return int(value)

    def encode(self, stored: int) -> bytes:
        return encode_number(stored)

    def load(self, value: Any) -> bool:
        # Old releases of PyExperimenter wrote booleans as text.
        return bool(self.store(_BOOLEAN_WORDS.get(value.lower(), value) if isinstance(value, str) else value))


class DecimalCodec(Codec):
    """NUMERIC and DECIMAL: `scale` digits after the point, 0 when the type does not say."""

    def store(self, value: Any) -> int | float | str:
        return _bindable(self._exact(value))

    def encode(self, stored: float | str) -> bytes:
        return encode_number(Decimal(str(stored)))

    def load(self, value: Any) -> int | float:
        number = Decimal(str(read_number(value)))
        if self.type.scale:
            return float(number)
        if number != number.to_integral_value():
            raise ValueError(f"{show(value)} is not a whole number")
        return int(number)

    def reread(self, value: Any) -> int | float | Decimal:
        return read_number(value)

    def nearest(self, value: Any) -> int | float | str:
        return _bindable(_rounded(to_decimal(read_number(value)), scale=self.type.scale))

    def check_mysql(self, stored: float | str) -> None:
        number = Decimal(str(stored))
        if number and number.adjusted() + 1 > self.type.precision - self.type.scale:
            raise ValueError(f"{stored} has more digits than the column keeps")
        _refuse_negative(number, is_unsigned=self.type.is_unsigned)

    def check_sqlite(self, stored: float | str) -> None:
        if isinstance(stored, str):
            raise ValueError(f"{stored} has more digits than SQLite keeps")

    def _exact(self, value: Any) -> Decimal:
        number = read_number(value)
        spellings = [to_decimal(number)]
        if isinstance(number, float):
            # 0.30000000000000004 is how numpy.arange spells 0.3.
            spellings.append(Decimal(f"{number:.15g}"))
        for spelling in spellings:
            if spelling == _rounded(spelling, scale=self.type.scale):
                return spelling
        raise ValueError(f"{show(value)} has more decimals than the column keeps")


class DoubleCodec(Codec):
    """DOUBLE and REAL: the exact float is stored; floats equal in 15 digits are the same value."""

    def store(self, value: Any) -> float:
        number = read_number(value)
        try:
            nearest = float(number) + 0.0
        except OverflowError:
            nearest = math.inf
        if math.isinf(nearest):
            raise ValueError(f"{show(value)} is too large")
        if isinstance(number, int) and int(nearest) != number:
            raise ValueError(f"{show(value)} has more digits than a float keeps")
        self._refuse_lost_decimals(nearest)
        return nearest

    def encode(self, stored: float) -> bytes:
        if abs(stored) >= _EXACT_BY_REPR:
            return encode_number(stored)
        return encode_number(Decimal(f"{stored:.15g}"))

    def load(self, value: Any) -> float:
        return float(read_number(value))

    def check_mysql(self, stored: float) -> None:
        _refuse_negative(stored, is_unsigned=self.type.is_unsigned)

    def _refuse_lost_decimals(self, number: float) -> None:
        if len(self.type.numbers) == 2 and round(number, self.type.scale) != number:
            raise ValueError(f"{number} has more decimals than the column keeps")


class SingleCodec(DoubleCodec):
    """FLOAT: servers keep and show six digits."""

    def store(self, value: Any) -> float:
        number = read_number(value)
        try:
            single = _single(float(number))
        except OverflowError:
            raise ValueError(f"{show(value)} is too large for FLOAT") from None
        if number and not single:
            raise ValueError(f"{show(value)} is too small for FLOAT")
        self._refuse_lost_decimals(float(number))
        return float(number) + 0.0

    def encode(self, stored: float) -> bytes:
        return encode_number(Decimal(f"{_single(stored):.6g}"))


def _single(number: float) -> float:
    """The nearest number of 32 bits."""
    (single,) = struct.unpack("<f", struct.pack("<f", number))
    return float(single)


def _rounded(number: Decimal, *, scale: int) -> Decimal:
    return number.quantize(Decimal(1).scaleb(-scale), rounding=ROUND_HALF_UP, context=WIDE)


def _bindable(number: Decimal) -> int | float | str:
    """The decimal as both drivers can bind it: an int or a float where that is exact, else its digits."""
    if number == number.to_integral_value() and abs(number) <= _MOST_INT:
        return int(number)
    return float(number) if to_decimal(float(number)) == number else number_text(number)


def _refuse_negative(number: float | Decimal, *, is_unsigned: bool) -> None:
    if is_unsigned and number < 0:
        raise ValueError(f"{number} is negative")
