"""A unit of work as packets for MySQL: statements with their values in them, sent together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, TypeVar

import pymysql
from pymysql.converters import encoders, escape_item, escape_str

from pyexp_daemon import exceptions
from pyexp_daemon.store.turns import give_back, take
from pyexp_daemon.store.unit import Commit, Do, Done, Step, Unit

T = TypeVar("T")


@dataclass(slots=True)
class Packet:
    """Statements that travel together."""

    texts: list[str] = field(default_factory=list)
    owners: list[int | None] = field(default_factory=list)
    """For each statement the place of its answer in what the unit receives; None for ours."""
    commits: bool = False

    @property
    def sql(self) -> str:
        return "; ".join(self.texts)

    def add(self, text: str, owner: int | None = None) -> None:
        self.texts.append(text)
        self.owners.append(owner)


Answer = tuple[Sequence[tuple[Any, ...]], int]
"""Rows and matched rows of one statement."""


def conversation(unit: Unit[T], *, write: bool, turn: str | None = None) -> Generator[Packet, list[Answer], T]:
    """The packets of a unit, one per step; the transaction begins in the first and ends in the last.

    Where the whole unit is one statement there is none: the session commits it by itself.

    Args:
        turn: the name of the turn on the server that a transaction waits for before its last changes.
    """
    steps = unit.start()
    begun = not write
    ended = not write
    answer: Any = None
    while True:
        try:
            step: Step = steps.send(answer)
        except StopIteration as end:
            if begun and not ended:
                yield Packet(["COMMIT"], [None], commits=True)
            return end.value  # type: ignore[no-any-return]
        packet = Packet()
        alone = not begun and _is_one_statement(step)
        waits = turn if write and not alone else None
        if not begun and not alone:
            packet.add("START TRANSACTION")
        begun = True
        statements: Sequence[Do] = [step] if isinstance(step, Do) else [] if isinstance(step, Commit) else step
        _add(packet, statements)
        if isinstance(step, Commit):
            statements = [*step.statements, *step.then]
            if waits:
                packet.add(take(waits))
            _add(packet, step.statements)
            if write:
                packet.commits = ended = True
                if not alone:
                    packet.add("COMMIT")
            if waits:
                packet.add(give_back(waits))
            _add(packet, step.then, first=len(step.statements))
        answers = yield packet
        dones = _collect(packet, answers, len(statements))
        answer = dones[0] if isinstance(step, Do) else dones


def _is_one_statement(step: Step) -> bool:
    return isinstance(step, Commit) and len(step.statements) == 1 and not step.statements[0].many


def _add(packet: Packet, statements: Sequence[Do], *, first: int = 0) -> None:
    for place, do in enumerate(statements, first):
        for text in _render(do):
            packet.add(text, place)


def _collect(packet: Packet, answers: list[Answer], wanted: int) -> list[Done]:
    rows: list[list[tuple[Any, ...]]] = [[] for _ in range(wanted)]
    changed = [0] * wanted
    for owner, (got, matched) in zip(packet.owners, answers, strict=True):
        if owner is not None:
            rows[owner].extend(got)
            changed[owner] += matched
    return [Done(got, matched) for got, matched in zip(rows, changed, strict=True)]


def _render(do: Do) -> list[str]:
    """The statement with its values in it, one text or several that follow each other."""
    try:
        if not do.many:
            return [_bind(_template(do.sql), do.values)]
        head, row, tail = _values_clause(do.sql)
        if row is None:
            return [_bind(_template(do.sql), values) for values in do.values]
        template = _template(row)
        return [f"{head}{', '.join([_bind(template, values) for values in do.values])}{tail}"]
    except (ValueError, UnicodeError, TypeError, KeyError, pymysql.Error) as error:
        raise exceptions.RowRefused(f"a value cannot be stored: {error}") from error


@functools.lru_cache(maxsize=1024)
def _template(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


@functools.lru_cache(maxsize=256)
def _values_clause(sql: str) -> tuple[str, str | None, str]:
    """What stands before, in and behind the row after VALUES; the row is None when there is none."""
    start = sql.find(" VALUES (")
    if start < 0:
        return sql, None, ""
    start += len(" VALUES ")
    depth = 0
    for place, character in enumerate(sql[start:], start):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return sql[:start], sql[start : place + 1], sql[place + 1 :]
    raise ValueError(f"unbalanced: {sql}")


def _bind(template: str, values: Sequence[Any]) -> str:
    return template % tuple([_LITERALS.get(type(value), _other_literal)(value) for value in values])


def _text_literal(value: str) -> str:
    return _short_text_literal(value) if len(value) <= 64 else escape_str(value)


@functools.lru_cache(maxsize=4096)
def _short_text_literal(value: str) -> str:
    """Of a grid's values, and of tokens and dates, each is bound very many times."""
    return escape_str(value)


def _bytes_literal(value: bytes) -> str:
    return f"x'{value.hex()}'"


def _other_literal(value: Any) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return _bytes_literal(bytes(value))
    return escape_item(value, "utf8mb4", encoders)


_LITERALS: Mapping[type, Callable[[Any], str]] = {
    str: _text_literal,
    int: str,
    bytes: _bytes_literal,
    NoneType: lambda value: "NULL",
}
"""What is bound most often; the driver's way through its encoders takes longer than all the rest."""
