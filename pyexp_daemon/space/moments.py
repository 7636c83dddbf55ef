"""Columns of dates and times. Stored as ISO text with a space, without a time zone."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from typing import Any

from pyexp_daemon.space.codec import Codec
from pyexp_daemon.space.values import show

_DATE = r"\d{4}-\d{2}-\d{2}"
_CLOCK = r"\d{2}:\d{2}(?::\d{2}(?:\.(?P<fraction>\d{1,6})0*)?)?"
_DATETIME_TEXT = re.compile(rf"(?P<date>{_DATE})(?:[T ](?P<clock>{_CLOCK}))?", re.ASCII)
_ZONED_TEXT = re.compile(rf"{_DATE}[T ]{_CLOCK} ?(?:Z|z|UTC|[+-]\d{{2}}:?\d{{2}})", re.ASCII)
_TIME_TEXT = re.compile(r"(-?)(\d{1,3}):(\d{2})(?::(\d{2})(?:\.(\d{1,6})0*)?)?", re.ASCII)
_MOST_TIME = timedelta(hours=838, minutes=59, seconds=59)


class DatetimeCodec(Codec):
    """DATETIME and TIMESTAMP; the number in parentheses says how many digits of a second are kept."""

    def store(self, value: Any) -> str:
        moment = _read_datetime(value)
        if moment.microsecond % 10 ** (6 - self._digits):
            raise ValueError(f"{show(value)} has a fraction of a second, which the column does not keep")
        return str(moment)

    def encode(self, stored: str) -> bytes:
        return b"d" + _without_zeros(stored).encode()

    def load(self, value: Any) -> datetime:
        return _read_datetime(value)

    def nearest(self, value: Any) -> str:
        moment, unit = _read_datetime(value), 10 ** (6 - self._digits)
        excess = moment.microsecond % unit
        return str(moment + timedelta(microseconds=unit - excess if 2 * excess >= unit else -excess))

    def check_mysql(self, stored: str) -> None:
        first, last = ("1970-01-02", "2038-01-18") if self.type.name == "TIMESTAMP" else ("1000-01-01", "9999-12-31")
        if not first <= stored[:10] <= last:
            raise ValueError(f"{stored} is outside {first} … {last}")

    @property
    def _digits(self) -> int:
        return min(self.type.length or 0, 6)


class DateCodec(Codec):
    """DATE."""

    def store(self, value: Any) -> str:
        moment = _read_datetime(value)
        if moment.time() != time():
            raise ValueError(f"{show(value)} has a time of day, which DATE does not keep")
        return str(moment.date())

    def encode(self, stored: str) -> bytes:
        return b"d" + stored.encode()

    def load(self, value: Any) -> date:
        return date.fromisoformat(self.store(value))

    def nearest(self, value: Any) -> str:
        return str(_read_datetime(value).date())

    def check_mysql(self, stored: str) -> None:
        if stored < "1000-01-01":
            raise ValueError(f"{stored} is before 1000-01-01")


class TimeCodec(Codec):
    """TIME: a time of day or a span, up to 838:59:59 and negative, as text."""

    def store(self, value: Any) -> str:
        span = _read_time(value)
        if abs(span) > _MOST_TIME:
            raise ValueError(f"{show(value)} is outside -838:59:59 … 838:59:59")
        if span.microseconds % 10 ** (6 - min(self.type.length or 0, 6)):
            raise ValueError(f"{show(value)} has a fraction of a second, which the column does not keep")
        return time_text(span)

    def encode(self, stored: str) -> bytes:
        return b"h" + _without_zeros(stored).encode()

    def load(self, value: Any) -> str:
        return time_text(_read_time(value))


def _read_datetime(value: Any) -> datetime:
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            raise ValueError(f"{show(value)} has a time zone, which the column does not keep")
        return datetime.combine(value.date(), value.time())
    if isinstance(value, date):
        return datetime.combine(value, time())
    found = _DATETIME_TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    if found:
        return _from_iso(value, found)
    if isinstance(value, str) and _ZONED_TEXT.fullmatch(value.strip()):
        raise ValueError(f"{show(value)} has a time zone, which the column does not keep")
    raise ValueError(f"{show(value)} is not a date such as 2024-01-31 or 2024-01-31 23:59:59")


def _from_iso(value: str, found: re.Match[str]) -> datetime:
    clock, _, _ = (found["clock"] or "00:00").partition(".")
    try:
        moment = datetime.fromisoformat(f"{found['date']} {clock}")
    except ValueError:
        raise ValueError(f"{show(value)} is not a date of the calendar") from None
    return moment.replace(microsecond=int((found["fraction"] or "").ljust(6, "0")))


def _read_time(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, time) and value.tzinfo is None:
        return datetime.combine(date.min, value) - datetime.combine(date.min, time())
    found = _TIME_TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found or int(found[3]) > 59 or int(found[4] or 0) > 59:
        raise ValueError(f"{show(value)} is not a time such as '23:59:59' (in quotes)")
    sign, hours, minutes, seconds, fraction = found.groups(default="")
    span = timedelta(
        hours=int(hours),
        minutes=int(minutes),
        seconds=int(seconds or 0),
        microseconds=int(fraction.ljust(6, "0")),
    )
    return -span if sign else span


def time_text(span: timedelta) -> str:
    """A span as the text of a TIME: `-23:00:00`."""
    sign, span = ("-", -span) if span < timedelta() else ("", span)
    minutes, seconds = divmod(span.days * 86400 + span.seconds, 60)
    fraction = f".{span.microseconds:06}" if span.microseconds else ""
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}:{seconds:02}{fraction}"


def _without_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
