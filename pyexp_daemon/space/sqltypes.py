"""Column types as users write them: raw SQL that is pasted into DDL, so its grammar is strict."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Family(StrEnum):
    """What kind of values a column holds."""

    INTEGER = "integer"
    BOOLEAN = "boolean"
    DECIMAL = "decimal"
    SINGLE = "single"
    DOUBLE = "double"
    TEXT = "text"
    DATETIME = "datetime"
    DATE = "date"
    TIME = "time"
    JSON = "json"
    BINARY = "binary"
    OTHER = "other"


_NAMES = {
    Family.INTEGER: "INT INTEGER TINYINT SMALLINT MEDIUMINT MIDDLEINT BIGINT INT1 INT2 INT3 INT4 INT8 YEAR",
    Family.BOOLEAN: "BOOL BOOLEAN",
    Family.DECIMAL: "NUMERIC DECIMAL DEC FIXED",
    Family.SINGLE: "FLOAT FLOAT4",
    Family.DOUBLE: "DOUBLE REAL FLOAT8",
    Family.TEXT: "CHAR CHARACTER VARCHAR VARCHARACTER NCHAR NVARCHAR TEXT TINYTEXT MEDIUMTEXT LONGTEXT CLOB ENUM SET"
    " STR STRING",
    Family.DATETIME: "DATETIME TIMESTAMP",
    Family.DATE: "DATE",
    Family.TIME: "TIME",
    Family.JSON: "JSON",
    Family.BINARY: "BINARY VARBINARY BLOB TINYBLOB MEDIUMBLOB LONGBLOB BYTEA",
}
_FAMILIES = {name: family for family, names in _NAMES.items() for name in names.split()}
_SPELLINGS = {
    "DOUBLE PRECISION": "DOUBLE",
    "BIG INT": "BIGINT",
    "CHARACTER VARYING": "VARCHAR",
    "CHAR VARYING": "VARCHAR",
    "VARYING CHARACTER": "VARCHAR",
    "NATIVE CHARACTER": "NCHAR",
    "NATIONAL CHARACTER": "NCHAR",
    "NATIONAL VARCHAR": "NVARCHAR",
    "LONG VARCHAR": "MEDIUMTEXT",
}
_SIGNS = {"UNSIGNED", "SIGNED", "ZEROFILL"}
_CONSTRAINTS = {
    *("NOT", "NULL", "DEFAULT", "PRIMARY", "KEY", "UNIQUE", "REFERENCES", "CHECK", "CONSTRAINT", "ON", "COMMENT"),
    *("GENERATED", "ALWAYS", "AS", "VIRTUAL", "STORED", "INVISIBLE", "AUTO_INCREMENT", "AUTOINCREMENT"),
    *("FIRST", "AFTER"),
}

_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_WORDS = rf"{_WORD}(?: +{_WORD})*"
_STRING = r"'[^'\\\x00-\x1f]*'"
_ARGUMENTS = rf"\( *(?:\d{{1,5}}(?: *, *\d{{1,5}})?|{_STRING}(?: *, *{_STRING})*) *\)"
_GRAMMAR = re.compile(rf"(?P<words>{_WORDS})(?: *(?P<arguments>{_ARGUMENTS})(?: *(?P<trailing>{_WORDS}))?)?")
_CHARSET = re.compile(r" (?:CHARACTER SET|CHARSET|COLLATE) \w+| (?:BINARY|ASCII|UNICODE)(?= |$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlType:
    """A column type, taken apart.

    `text` is what the user wrote; `name` its base name in capitals (`VARCHAR`); `numbers` the numbers in parentheses
    and `members` the strings; `words` the capitalised words that follow the parentheses.
    """

    text: str
    name: str
    family: Family
    numbers: tuple[int, ...] = ()
    members: tuple[str, ...] = ()
    is_unsigned: bool = False
    words: tuple[str, ...] = ()

    @property
    def length(self) -> int | None:
        """The one number in parentheses, as in VARCHAR(255) or DATETIME(6)."""
        return self.numbers[0] if len(self.numbers) == 1 else None

    @property
    def precision(self) -> int:
        """How many digits a DECIMAL keeps in all; 10 when it does not say."""
        return self.numbers[0] if self.numbers else 10

    @property
    def scale(self) -> int:
        """How many digits a DECIMAL keeps after the point; 0 when it does not say."""
        return self.numbers[1] if len(self.numbers) == 2 else 0


def parse_type(text: str) -> SqlType:
    """Take a column type apart.

    Raises:
        ValueError: it is not a plain SQL type: words, numbers or simple quoted strings in parentheses, words.
    """
    found = _GRAMMAR.fullmatch(text.strip(" "))
    if not found:
        raise ValueError(f"{text!r} is not a column type")
    words, trailing = found["words"].upper(), (found["trailing"] or "").upper()
    _refuse_constraints(text, f"{words} {trailing}".split())
    arguments = found["arguments"] or ""
    name = _base_name(words)
    numbers = tuple(int(number) for number in re.findall(r"\d+", arguments)) if "'" not in arguments else ()
    return SqlType(
        text=text.strip(" "),
        name=name,
        family=_family(name, numbers),
        numbers=numbers,
        members=tuple(re.findall(r"'([^']*)'", arguments)),
        is_unsigned=bool({"UNSIGNED", "ZEROFILL"} & {*words.split(), *trailing.split()}),
        words=tuple(trailing.split()),
    )


def server_objection(sql_type: SqlType, *, provider: str) -> tuple[str, str | None] | None:
    """Why this database would refuse the type, and what to write instead; None when it may accept it."""
    return _mysql_objection(sql_type) if provider == "mysql" else _sqlite_objection(sql_type)


def _mysql_objection(sql_type: SqlType) -> tuple[str, str | None] | None:
    if sql_type.name in {"STR", "STRING"}:
        return f"{sql_type.text} is not a MySQL type", "VARCHAR(255)"
    if sql_type.name in {"VARCHAR", "NVARCHAR", "VARCHARACTER"} and sql_type.length is None:
        return f"{sql_type.text} needs a length on MySQL", f"{sql_type.name}(255)"
    if sql_type.name == "VARBINARY" and sql_type.length is None:
        return f"{sql_type.text} needs a length on MySQL", "VARBINARY(255)"
    if sql_type.name in {"ENUM", "SET"} and not sql_type.members:
        return f"{sql_type.text} needs its members", f"{sql_type.name}('a', 'b')"
    return None


def _sqlite_objection(sql_type: SqlType) -> tuple[str, str | None] | None:
    if sql_type.members:
        return f"{sql_type.text} is not possible on SQLite", "TEXT"
    if sql_type.words and sql_type.words[0] != "COLLATE":
        hint = f"{sql_type.name} {' '.join(sql_type.words)}"
        return f"{sql_type.text} is not possible on SQLite, which takes no words after the parentheses", hint
    return None


def _refuse_constraints(text: str, words: list[str]) -> None:
    for word in words:
        if word in _CONSTRAINTS:
            raise ValueError(f"{text!r} is more than a column type: {word} does not belong there")


def _base_name(words: str) -> str:
    plain = _CHARSET.sub("", " ".join(words.split()))
    name = " ".join(word for word in plain.split() if word not in _SIGNS)
    return _SPELLINGS.get(name, name) or "INT"


def _family(name: str, numbers: tuple[int, ...]) -> Family:
    family = _FAMILIES.get(name, Family.OTHER)
    if family is Family.SINGLE and len(numbers) == 1 and numbers[0] > 24:
        return Family.DOUBLE
    return family
