"""One script with every public method, under the real PyExperimenter 1.4.2 and under us: the same tables.

What may differ stands here, and for people in docs/migrating.md; everything else has to be equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.parity.conftest import Entry
from tests.servers import Server

KeepDiary = Callable[[str, Database], list[Entry]]
Row = dict[str, str]

OUTCOMES = {
    # what: (there, here)
    "add_experiment_and_execute, again": ("DatabaseConnectionError", "None"),
    "another: get_table": ("ProgrammingError", "DatabaseConnectionError"),
}
OUTCOMES_ON_SQLITE = {
    "create_table with the database": ("AttributeError", "None"),
    "attach": ("ValueError", "1"),
    "another: get_table": ("DatabaseError", "DatabaseConnectionError"),
}
TIMES = re.compile(r"(creation_date|start_date|end_date|timestamp|.*_timestamp)")
NULL = ("nan", "None", "NaT")
FIRST_RESET = "reset_experiments"
"""From here on IDs differ: they are kept here, and given anew there."""


@pytest.fixture(params=["sqlite", "mariadb"])
def two_databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Database, Database]]:
    """One for each package."""
    if request.param == "sqlite":
        there, here = (tmp_path / name / "results" for name in ("py_experimenter", "pyexp_daemon"))
        yield (
            Database(provider="sqlite", flavour="sqlite", name=str(there)),
            Database(provider="sqlite", flavour="sqlite", name=str(here)),
        )
        return
    server: Server = request.getfixturevalue("mariadb")
    names = server.create_database(), server.create_database()
    yield tuple(Database(provider="mysql", flavour="mariadb", name=name, server=server) for name in names)  # type: ignore[misc]
    for name in names:
        server.drop_database(name)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_same_script_leaves_the_same_tables(
    two_databases: tuple[Database, Database], keep_diary: KeepDiary
) -> None:
    on_sqlite = two_databases[0].provider == "sqlite"
    there = keep_diary("py_experimenter", two_databases[0])
    here = keep_diary("pyexp_daemon", two_databases[1])
    assert [entry["what"] for entry in there] == [entry["what"] for entry in here]
    may_differ = {**OUTCOMES, **(OUTCOMES_ON_SQLITE if on_sqlite else {})}
    was_reset = False
    for old, new in zip(there, here, strict=True):
        what = old["what"]
        assert (old["outcome"], new["outcome"]) == may_differ.get(what, (old["outcome"],) * 2), what
        was_reset = was_reset or what == FIRST_RESET
        assert old["tables"].keys() == new["tables"].keys()
        for name, table in old["tables"].items():
            assert table["columns"] == new["tables"][name]["columns"], (what, name)
            if table["rows"] and new["tables"][name]["rows"] and name != "emissions":
                assert table["dtypes"] == new["tables"][name]["dtypes"], (what, name)
        assert comparable(old, on_sqlite=on_sqlite, ids=not was_reset) == comparable(
            new, on_sqlite=on_sqlite, ids=not was_reset
        ), what


def comparable(entry: Entry, *, on_sqlite: bool, ids: bool) -> dict[str, Counter[tuple[tuple[str, str], ...]]]:
    """The rows of the tables without what may differ."""
    tables = {name: rows_of(table) for name, table in entry["tables"].items()}
    experiments = {row["ID"]: row for row in tables.get("experiments", ())}
    found = {}
    if "emissions" in tables:
        kept = ("experiment_id", "country_name", "country_iso_code", "offline_mode")
        found["emissions"] = Counter(tuple((name, _plain(row[name])) for name in kept) for row in tables["emissions"])
    if experiments:
        found["experiments"] = Counter(_experiment(row, on_sqlite=on_sqlite, ids=ids) for row in experiments.values())
    if "steps" in tables:
        found["steps"] = Counter(
            _step(row, experiments) for row in tables["steps"] if not on_sqlite or _is_alike_on_sqlite(row, experiments)
        )
    return found


def rows_of(table: dict[str, Any]) -> list[Row]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _experiment(row: Row, *, on_sqlite: bool, ids: bool) -> tuple[tuple[str, str], ...]:
    kept = {name: _whether(value) if TIMES.fullmatch(name) else value for name, value in row.items()}
    kept["error"] = _last_line(row.get("error", "nan"))  # its frames are others
    if not ids:
        del kept["ID"]
    if row.get("kernel") == "'added'":  # there, what is added and executed at once has no start
        del kept["start_date"]
    if "received" in kept:  # booleans are 1 and 0 there, and True and False here
        kept["received"] = kept["received"].replace("True", "1").replace("False", "0")
        kept["text"] = kept["text"].replace("c creation_date flag kernel seed status", "c flag kernel seed")
    if on_sqlite and kept.get("text") in ("'ValueError'", "'True'"):  # attach, which refuses SQLite there
        kept |= {"text": "attached", "score": "", "score_timestamp": ""}
    return tuple(sorted((name, _plain(value)) for name, value in kept.items()))


def _step(row: Row, experiments: dict[str, Row]) -> tuple[tuple[str, str], ...]:
    """A log row with the parameters of its experiment instead of the number."""
    of = experiments[row["experiment_id"]]
    return tuple((name, _plain(row[name])) for name in ("step", "loss", "word")) + tuple(
        (name, _plain(of[name])) for name in ("seed", "kernel", "c", "flag")
    )


def _is_alike_on_sqlite(row: Row, experiments: dict[str, Row]) -> bool:
    """Rows of experiments that were reset stay there, and what is attached is refused."""
    of = experiments.get(row["experiment_id"])
    return of is not None and of["text"] != "'True'"


def _last_line(error: str) -> str:
    """What an error says, but for our own words about a value that means nothing."""
    last = error.strip("'\"").removesuffix("\\n").rpartition("\\n")[2]
    return "invalid" if "nvalid" in last else last if error not in NULL else "nothing"


def _whether(value: str) -> str:
    return "nothing" if value in NULL else "something"


def _plain(value: str) -> str:
    """One text for a number, whatever type the column has when some of it is NULL."""
    if value in NULL:
        return "nothing"
    try:
        return str(float(value))
    except ValueError:
        return value


def test_what_is_compared_can_differ() -> None:
    columns = ["ID", "seed", "status", "end_date", "error"]
    rows = [["1", "5", "'done'", "'now'", "None"]]
    one = {"tables": {"experiments": {"columns": columns, "rows": rows}}}
    for place, value in ((1, "6"), (2, "'error'"), (3, "None"), (4, "'text'"), (0, "2")):
        row = list(rows[0])
        row[place] = value
        other = {"tables": {"experiments": {"columns": columns, "rows": [row]}}}
        assert comparable(one, on_sqlite=False, ids=True) != comparable(other, on_sqlite=False, ids=True)
