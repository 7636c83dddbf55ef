"""What the database holds under a table's name: read, never changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyexp_daemon.store import emissions
from pyexp_daemon.store.tables import ADDED, Table
from pyexp_daemon.store.unit import Do, Steps, unit

KEYS = "key_"
"""With this begin the names of meta rows about the keyfields that the table was made with, in order."""

RESULTS = "result_"
"""And of those about its result fields: who has no configuration knows by them which of the last columns are some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedKeyfield:
    """A keyfield that was added to a table with experiments, or is being added: see `keyfields.py`.

    Args:
        value_mark: what stands for the value that experiments get; None when all have it.
        value_text: the value as it was asked for, shortened; None when all have it.
    """

    name: str
    value_mark: str | None = None
    value_text: str | None = None

    @property
    def is_complete(self) -> bool:
        return self.value_mark is None

    @classmethod
    def parse(cls, stored: str) -> AddedKeyfield:
        name, mark, text = (*stored.split(" ", 2), None, None)[:3]
        assert name is not None
        return cls(name=name, value_mark=mark, value_text=text)

    def __str__(self) -> str:
        """As the meta row holds it."""
        return self.name if self.is_complete else f"{self.name} {self.value_mark} {self.value_text}"


@dataclass(frozen=True, slots=True)
class State:
    """What there is."""

    columns: Sequence[str]
    """Columns of the experiment table in order; empty when there is none."""
    indexes: frozenset[str]
    """Of the experiment table, of attempts, commands and daemons."""
    beside: Mapping[str, Sequence[str]]
    """The columns of each table beside it, by the table's name without its prefix."""
    version: int | None
    oldest: int | None
    emissions: Sequence[str] = ()
    """The columns of what has the name of the table of emissions, in order; empty when there is none."""
    added: Sequence[AddedKeyfield] = ()
    """Keyfields that were added later, the earliest first."""
    keys: frozenset[str] = frozenset()
    """The keyfields that the table was made with, in small letters; empty when that was not recorded."""
    results: frozenset[str] = frozenset()
    """The result fields that were recorded."""
    stored_name: str | None = None
    """What the database calls the table, when it takes names that differ in capitals for one; None: as we do."""
    ignores_capitals: bool = False
    """Whether it takes names of tables that differ in capitals for one."""

    @property
    def exists(self) -> bool:
        return bool(self.columns)

    @property
    def fingerprinted(self) -> frozenset[str]:
        """The keyfields, in small letters, that the fingerprints are made of; empty when that was not recorded."""
        return self.keys | {added.name.lower() for added in self.added} if self.keys else frozenset()


NOTHING = State(columns=(), indexes=frozenset(), beside={}, version=None, oldest=None)
"""A database without the table."""


@unit
def inspect(table: Table) -> Steps[State]:
    """Read what is there."""
    columns: dict[str, list[str]] = {}
    ignores_capitals = False
    for name, column, ignored in (yield _columns(table)).rows:
        ignores_capitals = bool(ignored)
        if name.startswith(table.name) or ignores_capitals:  # else it is another table, which the server shows as well
            columns.setdefault(name, []).append(column)
    beside = {name[len(table.name) + 2 :]: found for name, found in columns.items() if len(name) > len(table.name)}
    stored_name = next((name for name in columns if len(name) == len(table.name)), table.name)
    indexes = yield _indexes(table)
    measured = yield from emissions.columns(table)
    meta = {}
    if "pyexpd_meta" in beside:
        meta = dict((yield Do(f"SELECT name, value FROM {table.meta}")).rows)
    return State(
        columns=columns.get(stored_name, ()),
        indexes=frozenset(index for name, index in indexes.rows if name.startswith(table.name) or ignores_capitals),
        beside=beside,
        version=int(meta["version"]) if "version" in meta else None,
        oldest=int(meta["oldest"]) if "oldest" in meta else None,
        emissions=measured,
        added=added_keyfields(meta),
        keys=frozenset(value.lower() for name, value in meta.items() if name.startswith(KEYS)),
        results=frozenset(value for name, value in meta.items() if name.startswith(RESULTS)),
        stored_name=stored_name if stored_name != table.name else None,
        ignores_capitals=ignores_capitals,
    )


def added_keyfields(meta: Mapping[str, str]) -> list[AddedKeyfield]:
    """The keyfields that were added later, as the meta rows tell."""
    numbers = sorted(int(name.removeprefix(ADDED)) for name in meta if name.startswith(ADDED))
    return [AddedKeyfield.parse(meta[f"{ADDED}{number}"]) for number in numbers]


def not_ours(table: Table, added: Iterable[AddedKeyfield]) -> list[str]:
    """The keyfields for which a daemon with this configuration claims nothing: new ones, and incomplete ones."""
    ours = {name.lower() for name in table.keyfields}
    return [keyfield.name for keyfield in added if not keyfield.is_complete or keyfield.name.lower() not in ours]


def _columns(table: Table) -> Do:
    pattern = table.name.replace("_", "\\_") + "\\_\\_%"
    if table.dialect.provider == "mysql":
        return Do(
            "SELECT table_name, column_name, @@lower_case_table_names FROM information_schema.columns"
            " WHERE table_schema = DATABASE()"
            " AND (table_name = ? OR table_name LIKE ?) ORDER BY table_name, ordinal_position",
            (table.name, pattern),
        )
    return Do(
        "SELECT t.name, c.name, 1 FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'"
        " AND (t.name = ? COLLATE NOCASE OR t.name LIKE ? ESCAPE '\\') ORDER BY t.name, c.cid",
        (table.name, pattern),
    )


def _indexes(table: Table) -> Do:
    named = (table.name, *(f"{table.name}__pyexpd_{name}" for name in ("attempts", "commands", "daemons")))
    if table.dialect.provider == "mysql":
        return Do(
            "SELECT DISTINCT table_name, index_name FROM information_schema.statistics"
            " WHERE table_schema = DATABASE() AND table_name IN (?, ?, ?, ?)",
            named,
        )
    return Do("SELECT tbl_name, name FROM sqlite_master WHERE type = 'index' AND tbl_name IN (?, ?, ?, ?)", named)
