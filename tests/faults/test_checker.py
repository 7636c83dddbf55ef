"""The checker can fail: every violation it is there for, planted in the records of a table that really ran."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Database
from tests.e2e.project import Project
from tests.faults import fleet
from tests.faults.checker import Circumstances, read, violations

ROWS = 4
RECEIPT = (
    "INSERT INTO exp__pyexpd_attempts (experiment_id, attempt, token, daemon, pid, outcome)"
    " VALUES ({experiment}, {attempt}, '{token}', 1, {pid}, '{outcome}')"
)


@dataclass(frozen=True)
class Table:
    """A table of experiments that are done, and their journal."""

    database: Database
    journal: Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """What really ran."""
    folder = tmp_path_factory.mktemp("checker")
    database = Database(provider="sqlite", flavour="sqlite", name=str(folder / "results"))
    project = fleet.make_project(database, folder / "project", rows=ROWS, seconds=0.01)
    done = project.pyexpd("run", "--until-empty", "--slots", "2", STATE_DIRECTORY=str(folder / "state"))
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def table(original: Project, tmp_path: Path) -> Table:
    """A copy of it, to plant things in."""
    copy = Database(provider="sqlite", flavour="sqlite", name=str(tmp_path / "results"))
    shutil.copy(original.database.path, copy.path)
    return Table(copy, Path(shutil.copy(original.journal, tmp_path / "journal")))


Found = Callable[..., list[str]]


@pytest.fixture
def found(table: Table) -> Found:
    """What the checker finds after something was planted."""

    def find(*statements: str, journal: str = "", **circumstances: Any) -> list[str]:
        for statement in statements:
            table.database.query(statement)
        with table.journal.open("a") as file:
            file.write(journal)
        records = read(table.database, table.journal)
        return violations(records, Circumstances(**{"experiments": range(1, ROWS + 1), **circumstances}))

    return find


def receipt(experiment: int, attempt: int, outcome: str, *, pid: int = 1, token: str = "t") -> str:
    return RECEIPT.format(experiment=experiment, attempt=attempt, token=token, pid=pid, outcome=outcome)


def test_nothing_is_found_where_nothing_is_wrong(found: Found) -> None:
    assert found() == []


def test_a_row_that_is_lost(found: Found) -> None:
    assert found("DELETE FROM exp__pyexpd_attempts WHERE experiment_id = 2", "DELETE FROM exp WHERE ID = 2") == [
        "I1: experiment 2 is gone"
    ]


def test_a_row_that_is_left_behind(found: Found) -> None:
    assert "I1: it did not come to its end" in " ".join(found("UPDATE exp SET status = 'created' WHERE ID = 1"))
    assert "I1: unknown status" in " ".join(found("UPDATE exp SET status = 'odd' WHERE ID = 1"))


def test_a_row_that_runs_under_a_dead_daemon(found: Found) -> None:
    planted = "UPDATE exp SET status = 'running', pyexpd_daemon = {}, pyexpd_token = {} WHERE ID = 1"
    dead = found(planted.format(1, "'t'"), finished=False)
    assert "I3: running under daemon 1, which is dead" in " ".join(dead)
    unknown = found(planted.format(99, "'t'"), finished=False)
    assert "I3: running under daemon 99, which is dead" in " ".join(unknown)
    assert "I3: running without a token" in " ".join(found(planted.format("NULL", "NULL"), finished=False))


def test_a_token_that_is_left_behind(found: Found) -> None:
    assert "I3: a token" in " ".join(found("UPDATE exp SET pyexpd_token = 't' WHERE ID = 1"))
    assert "I3: a token" in " ".join(found("UPDATE exp SET pyexpd_cancel = 1 WHERE ID = 2"))


def test_a_late_write_that_was_accepted(found: Found) -> None:
    """Attempt 1 wrote its result over that of attempt 2."""
    planted = found(
        "UPDATE exp SET pyexpd_attempt = 2 WHERE ID = 3",
        "UPDATE exp__pyexpd_attempts SET outcome = 'lost' WHERE experiment_id = 3",
        """UPDATE exp SET pyexpd_tries = '{"lost": 1}' WHERE ID = 3""",
        receipt(3, 2, "done"),
        journal="start 3 2 1 9e9\nend 3 2 1 9.1e9\n",
    )
    assert any("I2: the result is of attempt 1: a late write was accepted (experiment 3" in text for text in planted)


def test_a_result_that_is_not_of_this_experiment(found: Found) -> None:
    assert "I2: y is 77" in " ".join(found("UPDATE exp SET y = 77 WHERE ID = 1"))
    assert "I2: nobody computed the result" in " ".join(found("UPDATE exp SET by_pid = 1 WHERE ID = 2"))


def test_a_result_that_was_accepted_twice(found: Found) -> None:
    planted = " ".join(found(receipt(4, 1, "done")))
    assert "I2: 2 receipts say that this attempt is done" in planted
    assert "I2: attempt 1 was accepted 2 times" in planted
    assert "I2: it was done more than once" in planted


def test_an_execution_after_the_end(found: Found) -> None:
    planted = " ".join(
        found(
            "UPDATE exp SET pyexpd_attempt = 2, by_attempt = 2, by_pid = 1 WHERE ID = 1",
            receipt(1, 2, "done"),
            journal="start 1 2 1 9e9\nend 1 2 1 9.1e9\n",
        )
    )
    assert "I2: it ran again after attempt 1, which was done" in planted


def test_a_lost_attempt_may_begin_after_its_successor(found: Found, table: Table) -> None:
    """Its daemon was stopped before it began: it has lost the lease, and does not know yet."""
    (run,) = read(table.database, table.journal).runs[1]
    planted = found(
        "UPDATE exp SET pyexpd_attempt = 2, by_attempt = 2, by_pid = 1, pyexpd_tries = '{\"lost\": 1}' WHERE ID = 1",
        "UPDATE exp__pyexpd_attempts SET outcome = 'superseded' WHERE experiment_id = 1",
        receipt(1, 2, "done"),
        journal=f"start 1 2 1 {run.started - 2}\nend 1 2 1 {run.started - 1}\n",
    )
    assert planted == []


def test_a_lost_attempt_may_begin_while_its_successor_runs(found: Found, table: Table) -> None:
    (run,) = read(table.database, table.journal).runs[1]
    assert run.ended is not None
    planted = found(
        "UPDATE exp SET pyexpd_attempt = 2, by_attempt = 2, by_pid = 1, pyexpd_tries = '{\"lost\": 1}' WHERE ID = 1",
        "UPDATE exp__pyexpd_attempts SET outcome = 'superseded' WHERE experiment_id = 1",
        receipt(1, 2, "done"),
        journal=f"start 1 2 1 {run.started - 1}\nend 1 2 1 {(run.started + run.ended) / 2}\n",
    )
    assert planted == []


def test_an_attempt_that_ran_twice(found: Found) -> None:
    assert "I2: attempt 1 ran 2 times" in " ".join(found(journal="start 2 1 99 9e9\nend 2 1 99 9.1e9\n"))


def test_an_attempt_of_which_nobody_knows(found: Found) -> None:
    planted = " ".join(found(journal="start 2 2 99 9e9\n"))
    assert "I2: attempt 2 ran and was never claimed" in planted
    assert "I1: attempt 2 ran and has no receipt" in planted
    assert "I2: a receipt is of an attempt that was never claimed" in " ".join(found(receipt(3, 5, "lost")))


@pytest.mark.parametrize(
    ("outcome", "may_overlap", "allowed"),
    [("lost", True, True), ("superseded", True, True), ("lost", False, False), ("released", True, False)],
)
def test_runs_that_overlap(found: Found, table: Table, outcome: str, may_overlap: bool, allowed: bool) -> None:
    run = read(table.database, table.journal).runs[1][0]
    assert run.ended is not None
    charge = """UPDATE exp SET pyexpd_tries = '{"lost": 1}' WHERE ID = 1"""
    planted = found(
        "UPDATE exp SET pyexpd_attempt = 2, by_attempt = 2, by_pid = 1 WHERE ID = 1",
        f"UPDATE exp__pyexpd_attempts SET outcome = '{outcome}' WHERE experiment_id = 1",
        *([charge] if outcome != "released" else []),  # who is superseded was taken for lost before
        receipt(1, 2, "done"),
        journal=f"start 1 2 1 {(run.started + run.ended) / 2}\nend 1 2 1 {run.ended + 1}\n",
        may_overlap=may_overlap,
    )
    overlap = "I8: attempts 1 and 2 ran at the same time (experiment 1, done, attempt 2)"
    assert planted == ([] if allowed else [overlap])


@pytest.mark.parametrize(
    ("statements", "text"),
    [
        (["""UPDATE exp SET pyexpd_tries = '{"lost": 1}' WHERE ID = 1"""], "I6: charged {'lost': 1}, but"),
        (["UPDATE exp SET pyexpd_attempt = 2 WHERE ID = 1", receipt(1, 1, "crash")], "but its attempts ended so"),
        ([receipt(1, 0, "superseded")], "I6: charged {}, but its attempts ended so: {'lost': 1}"),
        (["UPDATE exp SET status = 'error' WHERE ID = 1"], "I6: an error, although its tries are not spent"),
        (
            [
                """UPDATE exp SET status = 'waiting', pyexpd_tries = '{"error": 1}' WHERE ID = 1""",
                "UPDATE exp__pyexpd_attempts SET outcome = 'error' WHERE experiment_id = 1",
            ],
            "I6: not an error, although its tries are spent",
        ),
    ],
)
def test_a_wrong_budget(found: Found, statements: list[str], text: str) -> None:
    assert text in " ".join(found(*statements))


def test_what_a_person_did_is_no_violation(found: Found) -> None:
    planted = found(
        "UPDATE exp SET pyexpd_attempt = 3, by_attempt = 3, by_pid = 1 WHERE ID = 1",
        receipt(1, 3, "done"),
        journal="start 1 3 1 9e9\nend 1 3 1 9.1e9\n",
        edited={1},
    )
    assert planted == []
