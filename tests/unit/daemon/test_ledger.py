"""The audit: what the database says is ours against what we hold."""

from __future__ import annotations

from pyexp_daemon.daemon.ledger import Ledger, Snapshot, compare
from pyexp_daemon.model import Claim


def claim(experiment_id: int, token: str) -> Claim:
    return Claim(experiment_id=experiment_id, attempt=1, token=token, start_date="", keyfields={})


def snapshot(held: dict[int, str] | None = None, *in_flight: str) -> Snapshot:
    return Snapshot(frozenset((held or {}).items()), frozenset(in_flight))


def test_what_both_know_is_in_order() -> None:
    audit = compare(snapshot({1: "a"}), [(1, "a", False)], snapshot({1: "a"}))
    assert (audit.unknown, audit.taken, audit.cancelled) == ([], [], [])


def test_a_row_under_an_unknown_token_is_handed_back() -> None:
    assert compare(snapshot(), [(1, "late", False)], snapshot()).unknown == [(1, "late")]


def test_a_claim_in_flight_before_or_after_the_read_is_known() -> None:
    assert compare(snapshot(None, "a"), [(1, "a", False)], snapshot()).unknown == []
    assert compare(snapshot(), [(1, "a", False)], snapshot(None, "a")).unknown == []
    assert compare(snapshot(), [(1, "a", False)], snapshot({1: "a"})).unknown == []


def test_a_row_held_throughout_and_missing_was_taken() -> None:
    assert compare(snapshot({1: "a"}), [], snapshot({1: "a"})).taken == [(1, "a")]
    assert compare(snapshot({1: "a"}), [(1, "b", False)], snapshot({1: "a"})).taken == [(1, "a")]


def test_a_row_claimed_or_ended_during_the_read_was_not_taken() -> None:
    assert compare(snapshot(), [], snapshot({1: "a"})).taken == []
    assert compare(snapshot({1: "a"}), [], snapshot()).taken == []


def test_a_cancel_flag_concerns_only_what_we_hold_under_that_token() -> None:
    assert compare(snapshot({1: "a"}), [(1, "a", True)], snapshot({1: "a"})).cancelled == [(1, "a")]
    assert compare(snapshot(), [(1, "a", True)], snapshot()).cancelled == []


def test_claims_are_held_from_the_answer_to_their_end() -> None:
    ledger = Ledger()
    ledger.sending("t")
    assert ledger.snapshot().tokens == {"t"}
    ledger.answered("t", [claim(1, "t")])
    assert ledger.snapshot() == snapshot({1: "t"})
    ledger.let_go(claim(1, "another"))
    assert ledger.snapshot() == snapshot({1: "t"})
    ledger.let_go(claim(1, "t"))
    assert ledger.snapshot() == snapshot()


def test_an_experiment_claimed_again_here_while_its_old_attempt_runs_is_held_twice() -> None:
    """Reset by hand, it may come back to the daemon that still runs it: the old attempt was taken, the new one not."""
    ledger = Ledger()
    ledger.answered("", [claim(1, "old"), claim(1, "new")])
    audit = compare(ledger.snapshot(), [(1, "new", False)], ledger.snapshot())
    assert (audit.taken, audit.unknown) == ([(1, "old")], [])
