"""Breakages of the protocol that a test catches within seconds; `make mutants` tries all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import mutants
from tests.faults.mutants import Copy, Mutant


@pytest.fixture(scope="module")
def copy() -> Iterator[Copy]:
    with mutants.copied() as copy:
        yield copy


@pytest.mark.parametrize(
    "mutant", [pytest.param(each, id=each.name.replace(" ", "-")) for each in mutants.MUTANTS if not each.slow]
)
def test_a_breakage_of_the_protocol_is_caught(copy: Copy, mutant: Mutant) -> None:
    assert mutants.survivors(copy, mutant) == []


def test_every_mutant_is_of_the_code_as_it_is() -> None:
    for mutant in mutants.MUTANTS:
        mutant.of((mutants.ROOT / mutant.path).read_text())


def test_a_mutant_of_other_code_is_refused() -> None:
    mutant = Mutant(name="other", file="model.py", text="no such text", instead="", caught_by=[])
    with pytest.raises(ValueError, match="stands 0 times"):
        mutant.of("a text")


def test_a_test_that_does_not_run_catches_nothing(copy: Copy) -> None:
    with pytest.raises(RuntimeError, match="do not run"):
        copy.failures(["tests/unit/test_model.py::test_that_is_not_there"])


def test_what_changes_nothing_survives(copy: Copy) -> None:
    test = "tests/unit/daemon/test_ledger.py::test_a_row_held_throughout_and_missing_was_taken"
    harmless = Mutant(
        name="harmless", file="model.py", text="class Verdict", instead="class  Verdict", caught_by=[test]
    )
    assert mutants.survivors(copy, harmless) == [test]
