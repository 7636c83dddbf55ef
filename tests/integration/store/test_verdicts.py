"""What a broken node has failed is taken back, where nothing has happened to the experiment since."""

from __future__ import annotations

import json
import time

import pytest

from pyexp_daemon.model import Outcome
from pyexp_daemon.store import daemons, edits, verdicts
from tests.bench import Bench


def standing(bench: Bench) -> tuple[str, str | None, str | None]:
    ((status, tries, error),) = bench.query("SELECT status, pyexpd_tries, error FROM exp WHERE ID = 1")
    return status, tries, error


@pytest.mark.parametrize("outcome", [Outcome.ERROR, Outcome.CRASH])
async def test_a_failure_is_taken_back_uncharged_and_its_receipt_keeps_the_error(
    bench: Bench, outcome: Outcome
) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, outcome, error="no such library")
    assert bench.run(verdicts.retract(bench.table, [claim])) == [1]
    assert standing(bench) == ("created", None, None)
    assert bench.query("SELECT outcome, error FROM exp__pyexpd_attempts") == [("released", "no such library")]
    assert bench.run(verdicts.retract(bench.table, [claim])) == []  # repeated after a lost reply
    (again,) = bench.claim(me)
    assert (again.experiment_id, again.attempt) == (1, 2)


async def test_other_charges_stay(bench: Bench) -> None:
    bench.execute("""UPDATE exp SET pyexpd_tries = '{"crash": 1, "error": 1}'""")
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, Outcome.CRASH)
    bench.run(verdicts.retract(bench.table, [claim]))
    assert json.loads(standing(bench)[1] or "") == {"crash": 1, "error": 1}


async def test_what_was_promoted_meanwhile_is_taken_back_too(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.end(me, claim, Outcome.CRASH)
    bench.execute("UPDATE exp SET status = 'created', pyexpd_not_before = NULL WHERE ID = 1")
    assert bench.run(verdicts.retract(bench.table, [claim])) == [1]
    assert standing(bench) == ("created", None, None)


async def test_what_moved_on_is_left_alone(bench: Bench) -> None:
    me = bench.register()
    taken, reset, done = bench.claim(me, 3)
    for claim in (taken, reset):
        bench.end(me, claim, Outcome.ERROR)
    bench.end(me, done)
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 1")
    (again,) = bench.claim(me)
    assert again.experiment_id == taken.experiment_id
    seen = bench.query("SELECT ID, status, pyexpd_attempt FROM exp WHERE ID = 2")
    bench.run(edits.reset(bench.table, [edits.Seen(*row) for row in seen]))
    before = bench.receipts()
    assert bench.run(verdicts.retract(bench.table, [taken, reset, done])) == []
    assert bench.receipts() == before
    assert bench.statuses()[3] == "done"


async def test_evidence_is_counted_by_daemon_and_lately(bench: Bench) -> None:
    one, two = bench.register("one"), bench.register("two")
    first, second, third = bench.claim(one, 3)
    now = time.time()
    bench.end(one, first, ended=now)
    bench.end(one, second, Outcome.ERROR, ended=now)
    (other,) = bench.claim(two)
    bench.end(two, other, Outcome.CRASH, ended=now)
    assert bench.run(verdicts.lately(bench.table, seconds=60)) == {one.id: (1, 1), two.id: (0, 1)}
    assert bench.run(verdicts.lately(bench.table, seconds=-60)) == {}
    assert bench.run(verdicts.failed_elsewhere(bench.table, [second], mine=[one.id])) == set()
    bench.execute(f"UPDATE exp__pyexpd_attempts SET experiment_id = 2, attempt = 2 WHERE daemon = {two.id}")
    assert bench.run(verdicts.failed_elsewhere(bench.table, [second, third], mine=[one.id])) == {2}
    assert bench.run(daemons.find(bench.table, 99)) is None
