from __future__ import annotations

import enum
import sqlite3
import subprocess
import sys
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyexp_daemon.space.identity import NULL, SCHEME, ColumnType, fingerprint

HALF_A_CHARACTER = "\ud800"


class Colour(enum.Enum):
    RED = "red"


def canonical(sql_type: str, value: Any) -> tuple[Any, bytes]:
    return ColumnType.parse(sql_type).canonical(value)


@pytest.mark.parametrize(
    ("sql_type", "value", "stored"),
    [
        ("INT", 3, 3),
        ("INT", 2.0, 2),
        ("INT", True, 1),
        ("INT", "3", 3),
        ("INT", Decimal("4.0"), 4),
        ("INT", np.int64(5), 5),
        ("BIGINT UNSIGNED", 2**64 - 1, 2**64 - 1),
        ("BOOL", True, 1),
        ("BOOL", False, 0),
        ("BOOL", 1, 1),
        ("BOOL", np.bool_(True), 1),
        ("NUMERIC", 2.0, 2),
        ("NUMERIC(10,2)", 1.5, 1.5),
        ("NUMERIC(10,2)", Decimal("1.50"), 1.5),
        ("NUMERIC(3,1)", 0.1 + 0.2, 0.3),
        ("DECIMAL(40,20)", Decimal("0.12345678901234567891"), "0.12345678901234567891"),
        ("DECIMAL(40)", 10**30, float(10**30)),
        ("DECIMAL(40)", 10**30 + 1, str(10**30 + 1)),
        ("DOUBLE", 0.1 + 0.2, 0.1 + 0.2),
        ("DOUBLE", -0.0, 0.0),
        ("DOUBLE", 3, 3.0),
        ("DOUBLE", "1e-3", 0.001),
        ("FLOAT", 0.1, 0.1),
        ("FLOAT", np.float32(0.5), 0.5),
        ("VARCHAR(5)", 12, "12"),
        ("VARCHAR(5)", 1.0, "1.0"),
        ("VARCHAR(5)", np.float64(0.1), "0.1"),
        ("VARCHAR(5)", True, "True"),
        ("VARCHAR(5)", "", ""),
        ("VARCHAR(5)", np.str_("abc"), "abc"),
        ("VARCHAR(5)", Colour.RED, "red"),
        ("VARCHAR(1)", "😀", "😀"),
        ("ENUM('a','b')", "b", "b"),
        ("SET('a','b','c')", "c,a", "a,c"),
        ("DATETIME", "2024-01-31", "2024-01-31 00:00:00"),
        ("DATETIME", "2024-01-31T12:30:00", "2024-01-31 12:30:00"),
        ("DATETIME", "2024-01-31 12:30", "2024-01-31 12:30:00"),
        ("DATETIME", "2024-01-31 12:30:00.000", "2024-01-31 12:30:00"),
        ("DATETIME", datetime(2024, 1, 31, 12), "2024-01-31 12:00:00"),  # noqa: DTZ001
        ("DATETIME", date(2024, 1, 31), "2024-01-31 00:00:00"),
        ("DATETIME", np.datetime64("2024-01-31T12:00:00.000000000"), "2024-01-31 12:00:00"),
        ("DATETIME(3)", "2024-01-31 12:30:00.25", "2024-01-31 12:30:00.250000"),
        ("DATE", "2024-01-31", "2024-01-31"),
        ("DATE", datetime(2024, 1, 31), "2024-01-31"),  # noqa: DTZ001
        ("TIME", "9:05", None),
        ("TIME", "09:05:01", "09:05:01"),
        ("TIME", "-100:00:00", "-100:00:00"),
        ("TIME", time(9, 5), "09:05:00"),
        ("TIME(6)", timedelta(seconds=1.5), "00:00:01.500000"),
        ("JSON", {"b": 1, "a": [1, None, True]}, '{"a":[1,null,true],"b":1}'),
        ("JSON", '{"b": 1, "a": 2}', '{"a":2,"b":1}'),
        ("JSON", "abc", '"abc"'),
        ("JSON", 2.0, "2"),
        ("BLOB", bytearray(b"ab"), b"ab"),
        ("UUID", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"),
    ],
)
def test_a_value_is_stored_in_the_form_of_its_column(sql_type: str, value: Any, stored: Any) -> None:
    if stored is None:
        stored = "09:05:00"
    got, _ = canonical(sql_type, value)
    assert (got, type(got)) == (stored, type(stored))
    assert str(got) == str(stored)


@pytest.mark.parametrize(
    ("sql_type", "value", "reason"),
    [
        ("INT", 1.5, "1.5 is not a whole number"),
        ("INT", "abc", "'abc' is not a number"),
        ("INT", "", "'' is not a number"),
        ("INT", "1_000", "'1_000' is not a number"),
        ("INT", 2**64, "18446744073709551616 is too large for an integer column"),
        pytest.param("INT", 10**5000, "a very long int is beyond what any column holds", id="very long"),
        ("INT", [1], "[1] is not a number"),
        ("INT", float("nan"), "nan is not a finite number"),
        ("BOOL", 2, "2 is not true or false"),
        ("BOOL", "yes", "'yes' is not true or false"),
        ("NUMERIC", 1.5, "1.5 has more decimals than the column keeps"),
        ("NUMERIC(4,2)", 0.125, "0.125 has more decimals than the column keeps"),
        ("NUMERIC", "1e9999", "'1e9999' is beyond what any column holds"),
        ("NUMERIC", Decimal("NaN"), "Decimal('NaN') is not a finite number"),
        ("DOUBLE", "abc", "'abc' is not a number"),
        ("DOUBLE", "nan", "'nan' is not a number"),
        ("DOUBLE", float("inf"), "inf is not a finite number"),
        ("DOUBLE", 2**53 + 1, "9007199254740993 has more digits than a float keeps"),
        ("DOUBLE", 10**310, "is too large"),
        ("DOUBLE(5,1)", 0.25, "0.25 has more decimals than the column keeps"),
        ("FLOAT", 1e39, "1e+39 is too large for FLOAT"),
        ("FLOAT", 1e-60, "1e-60 is too small for FLOAT"),
        ("VARCHAR(3)", "abcd", "'abcd' is longer than 3 characters"),
        ("VARCHAR(3)", {"a": 1}, "{'a': 1} is not text"),
        ("VARCHAR(3)", [1], "[1] is not text"),
        ("VARCHAR(3)", b"a", "b'a' is not text"),
        ("VARCHAR(3)", float("nan"), "nan is not a finite number"),
        ("VARCHAR(3)", HALF_A_CHARACTER, "'\\ud800' contains half a character (a lone surrogate)"),
        ("CHAR(3)", "a ", "'a ' ends in a space, which CHAR drops"),
        ("ENUM('a','b')", "A", "'A' is not one of 'a', 'b'"),
        ("SET('a','b')", "a,c", "'c' is not one of 'a', 'b'"),
        ("DATETIME", "2024-01-31 00:00:00.5", "has a fraction of a second, which the column does not keep"),
        ("DATETIME(1)", "2024-01-31 00:00:00.25", "has a fraction of a second, which the column does not keep"),
        ("DATETIME", "2024-01-31T00:00:00Z", "has a time zone, which the column does not keep"),
        ("DATETIME", "2024-01-31 00:00:00+02:00", "has a time zone, which the column does not keep"),
        ("DATETIME", datetime(2024, 1, 31, tzinfo=timezone.utc), "has a time zone, which the column does not keep"),  # noqa: UP017
        ("DATETIME", "2024-02-30", "'2024-02-30' is not a date of the calendar"),
        ("DATETIME", "20240131", "'20240131' is not a date such as 2024-01-31 or 2024-01-31 23:59:59"),
        ("DATETIME", 5, "5 is not a date such as 2024-01-31 or 2024-01-31 23:59:59"),
        ("DATE", "2024-01-31 12:00:00", "has a time of day, which DATE does not keep"),
        ("TIME", 45000, "45000 is not a time such as '23:59:59' (in quotes)"),
        ("TIME", "12:61:00", "'12:61:00' is not a time such as '23:59:59' (in quotes)"),
        ("TIME", "839:00:00", "'839:00:00' is outside -838:59:59 … 838:59:59"),
        ("JSON", {1: 2}, "the key 1 is not text, which JSON needs"),
        ("JSON", {"a": float("nan")}, "{'a': nan} cannot be written as JSON"),
        ("JSON", {"a": {1, 2}}, "cannot be written as JSON"),
        ("JSON", [HALF_A_CHARACTER], "contains half a character (a lone surrogate)"),
        ("BLOB", "abc", "'abc' is not bytes"),
        ("BINARY(2)", b"abc", "b'abc' is not exactly 2 bytes long"),
        ("UUID", [1], "[1] cannot be held by this type"),
    ],
)
def test_a_value_that_would_change_is_refused(sql_type: str, value: Any, reason: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        canonical(sql_type, value)
    assert str(caught.value).endswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sql_type", "equal"),
    [
        ("INT", [1, 1.0, True, "1", Decimal(1), np.int8(1), np.float64(1)]),
        ("BOOL", [True, 1, 1.0, np.bool_(True)]),
        ("NUMERIC(10,2)", [1.5, "1.50", Decimal("1.5"), np.float64(1.5)]),
        ("DOUBLE", [0.3, 0.1 + 0.2, np.float64(0.3), "0.3", Decimal("0.3")]),
        ("DOUBLE", [0.0, -0.0, 0]),
        ("DOUBLE", [1, 1.0, True]),
        ("DOUBLE", [10**16, 1e16]),
        ("FLOAT", [0.1, np.float32(0.1), 0.1000000001]),
        ("VARCHAR(9)", [1, "1"]),
        ("VARCHAR(9)", [0.5, "0.5", np.float64(0.5)]),
        ("DATETIME", ["2024-01-31", "2024-01-31T00:00:00", datetime(2024, 1, 31)]),  # noqa: DTZ001
        ("DATETIME(6)", ["2024-01-31 00:00:00.5", "2024-01-31 00:00:00.500000"]),
        ("JSON", [{"a": 1, "b": 2}, {"b": 2, "a": 1}, '{"b":2, "a":1}']),
    ],
)
def test_spellings_of_one_value_are_the_same(sql_type: str, equal: list[Any]) -> None:
    assert len({canonical(sql_type, value)[1] for value in equal}) == 1


@pytest.mark.parametrize(
    ("sql_type", "distinct"),
    [
        ("INT", [None, 0, 1, -1]),
        ("DOUBLE", [None, 0.0, 0.3, 0.300000000000001, 1e15, 1e15 + 1, 1e15 + 0.125, 2.0**53, 2.0**53 - 1]),
        ("VARCHAR(9)", [None, "", " ", "None", "0", "0.0", "a", "A", "é", "e\u0301"]),
        ("JSON", [None, {}, [], "", [1], [1.0], ["1"], [True]]),
        ("BLOB", [None, b"", b"\0"]),
    ],
)
def test_different_values_are_not_the_same(sql_type: str, distinct: list[Any]) -> None:
    assert len({canonical(sql_type, value)[1] for value in distinct}) == len(distinct)


@pytest.mark.parametrize("sql_type", ["INT", "BOOL", "NUMERIC", "DOUBLE", "TEXT", "DATETIME", "JSON", "BLOB", "UUID"])
def test_null_is_null_in_every_column(sql_type: str) -> None:
    column_type = ColumnType.parse(sql_type)
    assert column_type.canonical(None) == (None, NULL)
    assert column_type.from_database(None) is None
    assert column_type.canonical_bytes_of_stored(None) == NULL
    column_type.limits(None)


def test_the_numeric_types_share_their_spelling() -> None:
    spellings = {canonical(sql_type, 2)[1] for sql_type in ("INT", "NUMERIC(5,2)", "DOUBLE", "FLOAT")}
    assert spellings == {b"n2"}
    assert canonical("NUMERIC(5,2)", 0.1)[1] == canonical("DOUBLE", 0.1)[1] == b"n0.1"


@pytest.mark.parametrize(
    ("sql_type", "read", "received"),
    [
        ("INT", 3, 3),
        ("INT", Decimal(3), 3),
        ("INT", "x", "x"),
        ("INT", 1.5, 1.5),
        ("BOOL", 1, True),
        ("BOOL", 0, False),
        ("BOOL", "False", False),
        ("BOOL", 7, 7),
        ("NUMERIC", Decimal(2), 2),
        ("NUMERIC", 2.0, 2),
        ("NUMERIC(10,2)", Decimal("2.50"), 2.5),
        ("NUMERIC(10,2)", 2, 2.0),
        ("DOUBLE", 2, 2.0),
        ("FLOAT", 0.1, 0.1),
        ("VARCHAR(9)", "a", "a"),
        ("VARCHAR(9)", b"a", "a"),
        ("str", 12, "12"),
        ("DATETIME", "2024-01-31 12:30:00", datetime(2024, 1, 31, 12, 30)),  # noqa: DTZ001
        ("DATETIME", datetime(2024, 1, 31, 12, 30), datetime(2024, 1, 31, 12, 30)),  # noqa: DTZ001
        ("DATETIME", "0000-00-00 00:00:00", "0000-00-00 00:00:00"),
        ("DATE", "2024-01-31", date(2024, 1, 31)),
        ("DATE", date(2024, 1, 31), date(2024, 1, 31)),
        ("TIME", timedelta(hours=30), "30:00:00"),
        ("TIME", "30:00:00", "30:00:00"),
        ("JSON", '{"a":[1,2.5]}', {"a": [1, 2.5]}),
        ("JSON", "{broken", "{broken"),
        ("BLOB", b"a", b"a"),
        ("UUID", "x", "x"),
    ],
)
def test_the_function_receives_the_same_from_every_driver(sql_type: str, read: Any, received: Any) -> None:
    got = ColumnType.parse(sql_type).from_database(read)
    assert (got, type(got)) == (received, type(received))


@pytest.mark.parametrize(
    ("sql_type", "fits", "too_much"),
    [
        ("TINYINT", 127, 128),
        ("TINYINT UNSIGNED", 255, -1),
        ("SMALLINT", -32768, -32769),
        ("MEDIUMINT", 2**23 - 1, 2**23),
        ("INT", 2**31 - 1, 2**31),
        ("INT UNSIGNED", 2**32 - 1, 2**32),
        ("BIGINT", 2**63 - 1, 2**63),
        ("BIGINT UNSIGNED", 2**64 - 1, -1),
        ("YEAR", 2024, 3000),
        ("NUMERIC(3)", 999, 1000),
        ("NUMERIC(4,2)", 99.99, 100),
        ("NUMERIC(2,2)", 0.99, 1),
        ("NUMERIC", 10**9, 10**10),
        ("DECIMAL(5) UNSIGNED", 5, -5),
        ("DOUBLE UNSIGNED", 5, -0.5),
        ("CHAR", "a", "ab"),
        ("TINYTEXT", "é" * 127, "é" * 128),
        ("TINYBLOB", b"a" * 255, b"a" * 256),
        ("DATETIME", "1000-01-01", "0999-12-31"),
        ("TIMESTAMP", "2030-01-01", "2040-01-01"),
        ("DATE", "1000-01-01", "0999-12-31"),
    ],
)
def test_mysql_has_room_for_so_much(sql_type: str, fits: Any, too_much: Any) -> None:
    column_type = ColumnType.parse(sql_type)
    column_type.limits(fits)
    column_type.canonical(too_much)
    with pytest.raises(ValueError, match=r"outside|more digits|negative|longer|before"):
        column_type.limits(too_much)


@pytest.mark.parametrize(
    ("sql_type", "fits", "too_much"),
    [
        ("INT", 2**63 - 1, 2**63),
        ("NUMERIC", 2**63 - 1, 2**63),
        ("STR", "7", "007"),
        ("STRING", "abc", "1.0"),
        ("JSON", [10**30], 10**30),
    ],
)
def test_sqlite_has_room_for_so_much(sql_type: str, fits: Any, too_much: Any) -> None:
    column_type = ColumnType.parse(sql_type)
    column_type.limits(fits, provider="sqlite")
    with pytest.raises(ValueError, match=r"outside|becomes|digits"):
        column_type.limits(too_much, provider="sqlite")


@pytest.mark.parametrize(
    ("sql_type", "ours", "stored"),
    [
        ("INT", 3, [3, "3", Decimal(3), 3.0]),
        ("BOOL", True, [1, "1", "True", "true", Decimal(1)]),
        ("NUMERIC(10,2)", 1.5, [1.5, Decimal("1.50"), "1.5"]),
        ("DOUBLE", 0.3, [0.3, 0.30000000000000004, Decimal("0.3"), "0.3"]),
        ("FLOAT", 0.1, [0.1, 0.10000000149011612]),
        ("VARCHAR(9)", 12, ["12", b"12", 12]),
        ("DATETIME", "2024-01-31", ["2024-01-31 00:00:00", "2024-01-31T00:00:00", datetime(2024, 1, 31)]),  # noqa: DTZ001
        ("TIME", "01:00:00", [timedelta(hours=1), "01:00:00", time(1)]),
        ("JSON", {"b": 1, "a": 2}, ['{"b": 1, "a": 2}', b'{"a":2,"b":1}', {"a": 2, "b": 1}]),
    ],
)
def test_rows_of_others_have_our_identity(sql_type: str, ours: Any, stored: list[Any]) -> None:
    column_type = ColumnType.parse(sql_type)
    _, expected = column_type.canonical(ours)
    assert [column_type.canonical_bytes_of_stored(value) for value in stored] == [expected] * len(stored)


def test_a_stored_value_outside_its_type_has_an_identity_of_its_own() -> None:
    whole = ColumnType.parse("INT")
    assert whole.canonical_bytes_of_stored(1.5) == whole.canonical_bytes_of_stored(Decimal("1.50")) == b"?n1.5"
    short = ColumnType.parse("VARCHAR(1)")
    assert short.canonical_bytes_of_stored("12") != short.canonical_bytes_of_stored("012")
    seconds = ColumnType.parse("DATETIME")
    moment = datetime(2024, 1, 31, 0, 0, 0, 5)  # noqa: DTZ001
    assert seconds.canonical_bytes_of_stored(moment) == seconds.canonical_bytes_of_stored(str(moment))


def test_a_stored_number_with_more_decimals_than_its_column_is_the_rounded_one() -> None:
    """SQLite keeps them where MySQL rounds: a table that moves keeps its identities."""
    numeric = ColumnType.parse("NUMERIC(10,2)")
    assert numeric.canonical_bytes_of_stored(2.256) == numeric.canonical_bytes_of_stored(Decimal("2.26"))


def test_a_number_too_long_to_write_out_has_an_identity_too() -> None:
    assert ColumnType.parse("INT").canonical_bytes_of_stored(10**5000)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.text(st.characters(), max_size=20),
    st.binary(max_size=20),
    st.datetimes(),
    st.dates(),
    st.timedeltas(),
    st.lists(st.integers(), max_size=3),
    st.builds(object),
)
TYPES = [
    *(
        "INT",
        "BIGINT UNSIGNED",
        "YEAR",
        "BOOL",
        "NUMERIC",
        "DECIMAL(20,5)",
        "FLOAT",
        "FLOAT(7,2)",
        "DOUBLE",
        "VARCHAR(5)",
    ),
    *("TEXT", "CHAR(4)", "ENUM('a','b')", "SET('a','b')", "STR", "DATETIME", "DATETIME(3)", "TIMESTAMP(6)", "DATE"),
    *("TIME", "TIME(6)", "JSON", "BLOB", "VARBINARY(4)", "BINARY(2)", "UUID"),
]


@given(sql_type=st.sampled_from(TYPES), value=ANYTHING)
@example("NUMERIC", Decimal("sNaN"))
@example("TEXT", HALF_A_CHARACTER)
@example("JSON", "[" * 5000)
@example("BLOB", 25_329_618_688)
def test_fingerprinting_what_is_stored_never_fails(sql_type: str, value: Any) -> None:
    assert isinstance(ColumnType.parse(sql_type).canonical_bytes_of_stored(value), bytes)


@given(sql_type=st.sampled_from(TYPES), value=ANYTHING)
@example("DECIMAL(20,5)", Decimal("731959468051.16216"))
@example("BOOL", Decimal("sNaN"))
def test_a_value_is_held_or_refused_with_a_reason(sql_type: str, value: Any) -> None:
    column_type = ColumnType.parse(sql_type)
    refusal = ""
    try:
        stored, identity = column_type.canonical(value)
    except ValueError as error:
        refusal = str(error)
    assert refusal.isprintable()
    if refusal:
        return
    if sql_type != "JSON":  # there the text "1" is not the number 1
        assert column_type.canonical(stored) == (stored, identity)
    assert column_type.canonical_bytes_of_stored(stored) == identity
    if column_type.sql.name not in {"DECIMAL", "UUID"}:
        assert column_type.canonical(column_type.from_database(stored)) == (stored, identity)


@given(value=st.decimals(-(10**9), 10**9, places=5))
def test_decimals_that_a_float_can_show_come_back(value: Decimal) -> None:
    column_type = ColumnType.parse("DECIMAL(20,5)")
    stored, identity = column_type.canonical(value)
    received = column_type.from_database(stored)
    assert column_type.canonical(received) == (stored, identity)
    assert received == float(value)


SQLITE_TYPES = [name for name in TYPES if not name.startswith(("ENUM", "SET"))]


@given(sql_type=st.sampled_from(SQLITE_TYPES), value=ANYTHING)
@example("STR", "1e5")
@example("STR", " 7")
@example("STR", 9007199254740992.0)
@example("NUMERIC", 2**63)
@example("UUID", 4.279519510803609e16)
@example("JSON", "12")
@example("JSON", 1.5)
@example("DECIMAL(20,5)", Decimal("12345678901.12345"))
def test_identity_survives_sqlite(sql_type: str, value: Any) -> None:
    column_type = ColumnType.parse(sql_type)
    try:
        column_type.limits(value, provider="sqlite")
    except ValueError:
        return
    stored, identity = column_type.declared(value)
    database = sqlite3.connect(":memory:")
    try:
        database.execute(f"CREATE TABLE t (v {sql_type})")
        database.execute("INSERT INTO t VALUES (?)", (stored,))
        ((read,),) = database.execute("SELECT v FROM t").fetchall()
    finally:
        database.close()
    assert column_type.canonical_bytes_of_stored(read) == identity
    assert column_type.from_database(read) == column_type.from_database(stored)


def test_fingerprints_do_not_change_between_releases() -> None:
    assert fingerprint([]).hex() == "01b7db87196c483405e40f8401fa1fc9"
    row = [("lr", canonical("DOUBLE", 0.1)[1]), ("seed", canonical("INT", 3)[1]), ("data", canonical("TEXT", "é")[1])]
    assert fingerprint(row).hex() == "01276f1b8ae934e6d53002e8a2c05f11"
    assert fingerprint([("x", NULL)]).hex() == "0111e339d42dcff020dac30d6df6fd53"
    assert (
        fingerprint([("t", canonical("DATETIME(3)", "2024-01-31T01:02:03.5")[1])]).hex()
        == "0112095652cff5ac7083b47c25eec264"
    )
    assert (
        fingerprint([("j", canonical("JSON", {"b": [1.5, None], "a": "ü"})[1])]).hex()
        == "0151a9f2d25dc840e8313f1a1a11ab72"
    )


def test_a_fingerprint_is_the_scheme_and_fifteen_bytes() -> None:
    made = fingerprint([("a", b"n1")])
    assert len(made) == 16
    assert made[0] == SCHEME == 1


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    code = "from pyexp_daemon.space.identity import fingerprint; print(fingerprint([('b', b'n1'), ('A', b't')]).hex())"
    root = Path(__file__).parents[3]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint([("a", b"t"), ("B", b"n1")]).hex()


NAMES = st.text("abcdefgh_", min_size=1, max_size=3)


@given(row=st.dictionaries(NAMES, st.binary(max_size=4), max_size=5), data=st.data())
def test_a_fingerprint_ignores_the_order_and_capitals_of_columns(row: dict[str, bytes], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(list(row.items())))
    assert fingerprint(shuffled) == fingerprint(row.items())
    assert fingerprint((name.upper(), value) for name, value in shuffled) == fingerprint(row.items())


@given(
    one=st.dictionaries(NAMES, st.binary(max_size=4), max_size=4),
    other=st.dictionaries(NAMES, st.binary(max_size=4), max_size=4),
)
@example({"a": b"bc"}, {"ab": b"c"})
@example({"a": b"", "b": b"x"}, {"a": b"x", "b": b""})
def test_different_rows_have_different_fingerprints(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert (fingerprint(one.items()) == fingerprint(other.items())) == (one == other)


@given(value=st.one_of(st.integers(-(2**31), 2**31), st.floats(allow_nan=False, allow_infinity=False)))
def test_identity_ignores_the_numpy_spelling(value: float) -> None:
    numpy_value = np.int64(value) if isinstance(value, int) else np.float64(value)
    for sql_type in ("DOUBLE", "TEXT", "JSON"):
        assert canonical(sql_type, numpy_value) == canonical(sql_type, value)
