from __future__ import annotations

import pytest

from pyexp_daemon.space.sqltypes import Family, parse_type, server_objection


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("INT", Family.INTEGER),
        ("int", Family.INTEGER),
        ("INT(11) UNSIGNED", Family.INTEGER),
        ("UNSIGNED BIG INT", Family.INTEGER),
        ("TINYINT(1)", Family.INTEGER),
        ("YEAR", Family.INTEGER),
        ("bool", Family.BOOLEAN),
        ("BOOLEAN", Family.BOOLEAN),
        ("NUMERIC", Family.DECIMAL),
        ("DECIMAL(10, 2)", Family.DECIMAL),
        ("DEC", Family.DECIMAL),
        ("FIXED", Family.DECIMAL),
        ("FLOAT", Family.SINGLE),
        ("FLOAT(24)", Family.SINGLE),
        ("FLOAT(25)", Family.DOUBLE),
        ("FLOAT(7,4)", Family.SINGLE),
        ("DOUBLE", Family.DOUBLE),
        ("DOUBLE PRECISION", Family.DOUBLE),
        ("REAL", Family.DOUBLE),
        ("VARCHAR(255)", Family.TEXT),
        ("VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", Family.TEXT),
        ("TEXT COLLATE NOCASE", Family.TEXT),
        ("CHARACTER VARYING(20)", Family.TEXT),
        ("LONGTEXT", Family.TEXT),
        ("str", Family.TEXT),
        ("STRING", Family.TEXT),
        ("ENUM('a','b')", Family.TEXT),
        ("SET('a', 'b;c')", Family.TEXT),
        ("DATETIME", Family.DATETIME),
        ("TIMESTAMP(6)", Family.DATETIME),
        ("DATE", Family.DATE),
        ("TIME(3)", Family.TIME),
        ("JSON", Family.JSON),
        ("LONGBLOB", Family.BINARY),
        ("UUID", Family.OTHER),
    ],
)
def test_a_type_has_a_family(text: str, family: Family) -> None:
    assert parse_type(text).family is family


def test_the_parts_of_a_type_are_read() -> None:
    decimal = parse_type("DECIMAL(10, 2) UNSIGNED")
    assert (decimal.name, decimal.precision, decimal.scale, decimal.is_unsigned) == ("DECIMAL", 10, 2, True)
    assert (parse_type("NUMERIC").precision, parse_type("NUMERIC").scale) == (10, 0)
    assert parse_type(" VARCHAR ( 12 ) ").length == 12
    assert parse_type("ENUM('a', 'b c')").members == ("a", "b c")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "INT;",
        "INT; DROP TABLE x",
        "INT -- comment",
        "INT /* comment */",
        "INT # comment",
        "INT, b INT",
        "VARCHAR(255",
        "VARCHAR(-1)",
        "VARCHAR(a)",
        "VARCHAR(1)(2)",
        "VARCHAR(999999)",
        "DECIMAL(1,2,3)",
        "ENUM('a''b')",
        "ENUM('a\\')",
        'ENUM("a")',
        "ENUM('a)",
        "ENUM('a', 1)",
        "`INT`",
        "INT\nNULL",
        "5",
        "INT NOT NULL",
        "INT DEFAULT",
        "INT PRIMARY KEY",
        "INT auto_increment",
        "INT REFERENCES x",
        "INT\u00a0",
    ],
)
def test_anything_that_is_more_than_a_type_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="column type"):
        parse_type(text)


@pytest.mark.parametrize(
    ("text", "provider", "hint"),
    [
        ("VARCHAR", "mysql", "VARCHAR(255)"),
        ("nvarchar", "mysql", "NVARCHAR(255)"),
        ("str", "mysql", "VARCHAR(255)"),
        ("VARBINARY", "mysql", "VARBINARY(255)"),
        ("ENUM", "mysql", "ENUM('a', 'b')"),
        ("ENUM('a')", "sqlite", "TEXT"),
        ("INT(11) UNSIGNED", "sqlite", "INT UNSIGNED"),
    ],
)
def test_what_a_server_refuses_has_a_hint(text: str, provider: str, hint: str) -> None:
    objection = server_objection(parse_type(text), provider=provider)
    assert objection is not None
    assert objection[1] == hint


@pytest.mark.parametrize(
    ("text", "provider"),
    [
        ("VARCHAR", "sqlite"),
        ("str", "sqlite"),
        ("INT UNSIGNED", "sqlite"),
        ("VARCHAR(255) COLLATE NOCASE", "sqlite"),
        ("VARCHAR(255)", "mysql"),
        ("ENUM('a')", "mysql"),
        ("INT(11) UNSIGNED", "mysql"),
        ("TEXT", "mysql"),
    ],
)
def test_what_a_server_accepts_passes(text: str, provider: str) -> None:
    assert server_objection(parse_type(text), provider=provider) is None
