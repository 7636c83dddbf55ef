"""Lines of a spool: what was written comes back exactly, and what was not is not taken for it."""

from __future__ import annotations

import datetime
import math
import struct
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyexp_daemon.daemon.records import Corrupt, Entry, Notes, Place, Rebound, Spoilt, decode, encode, is_entry
from pyexp_daemon.model import Attempt, Claim, LogRow, Outcome, Report

CLAIM = Claim(experiment_id=7, attempt=3, token="ab" * 16, start_date="2026-01-02 03:04:05", keyfields={})

TEXT = st.text(st.characters(), max_size=30) | st.text(st.characters(categories=["Cs", "Cc"]), max_size=5)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**301)
    | st.floats(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.binary(max_size=30)
    | st.datetimes().map(lambda moment: moment.replace(fold=0))  # a child cannot send a fold
    | st.dates()
    | st.times().map(lambda moment: moment.replace(fold=0))
    | st.timedeltas()
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def entry(results: dict[str, Any]) -> Entry:
    logs = (LogRow(logtable="epochs", seq=1, time=1.5, columns=results),)
    end = Attempt(claim=CLAIM, outcome=Outcome.DONE, started=0.1, ended=0.30000000000000004, pid=1, results=results)
    return Entry(report=Report(claim=CLAIM, results=results, logs=logs, end=end), daemon=5, whole=False)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_values_come_back_exactly(results: dict[str, Any]) -> None:
    line = encode(entry(results))
    back = decode(line)
    assert back == entry(results)
    assert repr(back) == repr(entry(results))  # 1 and True and 1.0 are equal, and not the same
    assert line.count(b"\n") == 1
    assert is_entry(line)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, Decimal("NaN"), Decimal("-0.10")])
def test_numbers_that_equal_nothing_come_back(value: Any) -> None:
    back = decode(encode(entry({"y": value})))
    assert isinstance(back, Entry)
    assert repr(back.report.results["y"]) == repr(value)
    if isinstance(value, float):
        assert struct.pack("d", back.report.results["y"]) == struct.pack("d", value)


@pytest.mark.parametrize("text", ["\0", "\ud800", "\udfff\ud800", "a\nb\r\x85\u2028", "🌱"])
def test_text_that_no_database_takes_comes_back(text: str) -> None:
    back = decode(encode(entry({"note": text})))
    assert isinstance(back, Entry)
    assert back.report.results["note"] == text


def test_dates_keep_their_zone() -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    back = decode(encode(entry({"y": moment})))
    assert isinstance(back, Entry)
    assert back.report.results["y"].utcoffset() == datetime.timedelta(hours=2)


@pytest.mark.parametrize("note", [Rebound(1, "a", "b"), Spoilt(1, 2, "why"), Place(3, 4)])
def test_notes_come_back_and_are_no_entries(note: Any) -> None:
    assert decode(encode(note)) == note
    assert not is_entry(encode(note))


@given(st.data())
def test_a_line_that_was_cut_or_changed_is_noticed(data: st.DataObject) -> None:
    line = encode(entry({"y": 1.0, "note": "text"}))
    at = data.draw(st.integers(0, len(line) - 2))
    bad = data.draw(st.sampled_from([line[:at], line[:at] + bytes([line[at] ^ 0x20]) + line[at + 1 :]]))
    with pytest.raises(Corrupt):
        decode(bad)


def test_tokens_are_followed_to_the_last_and_found_by_any() -> None:
    notes = Notes()
    for note in (Rebound(1, "a", "b"), Rebound(1, "b", "c"), Rebound(2, "a", "x")):
        notes.add(note)
    assert notes.token((1, "a")) == "c"
    assert notes.token((3, "a")) == "a"
    assert notes.tokens([(1, "a")]) == {"a", "b", "c"}
    assert notes.tokens([(1, "c")]) == {"a", "b", "c"}
