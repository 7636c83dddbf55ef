"""The completer: everything that is brought is stored, in groups, and one bad row spoils only itself."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.daemon import completer as completer_module
from pyexp_daemon.daemon.completer import Completer
from pyexp_daemon.daemon.ledger import Ledger
from pyexp_daemon.daemon.link import Link
from pyexp_daemon.daemon.spool import Spool
from pyexp_daemon.model import Attempt, Claim, Incarnation, Outcome, Verdict, make_token
from pyexp_daemon.store import daemons, leases
from tests.bench import POLICY, Bench

SPILL_S = completer_module.SPILL_S


@pytest.fixture(autouse=True)
def in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the database is, what is brought goes there, and not to the spool."""
    monkeypatch.setattr(completer_module, "SPILL_S", 60.0)


@dataclass
class Heard:
    """What the completer told the daemon."""

    ended: list[tuple[int, Outcome, Verdict]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)


@asynccontextmanager
async def running(
    bench: Bench, me: Incarnation, fenced: Callable[[Incarnation], Awaitable[bool]] | None = None
) -> AsyncIterator[tuple[Completer, Heard]]:
    heard = Heard()

    async def never(_: Incarnation) -> bool:
        return False

    completer = Completer(
        Link(bench.store),
        bench.table,
        Ledger(),
        POLICY,
        spool=Spool(bench.config.state / "spool"),
        host="h",
        busy=lambda: True,
        ended=lambda attempt, verdict: heard.ended.append((attempt.claim.experiment_id, attempt.outcome, verdict)),
        lost=lambda claim: heard.lost.append(claim.experiment_id),
        fenced=fenced or never,
        writing=anyio.Lock(),
    )
    completer.me = me
    with anyio.fail_after(90):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(completer.run)
            yield completer, heard
            await completer.flush()
            tasks.cancel_scope.cancel()


def done(claim: Claim, **fields: object) -> Attempt:
    return Attempt(claim=claim, outcome=Outcome.DONE, started=1.0, ended=2.0, **fields)  # type: ignore[arg-type]


def unstorable(bench: Bench) -> object:
    return "much too long for the column" if bench.database.server else 2**70


async def test_many_ends_are_stored_in_few_transactions(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(rows=200)
    me = bench.register()
    claims = bench.claim(me, 200)
    units: list[str] = []
    run = bench.store.run
    all_ended = anyio.Event()  # else it depends on the speed of the database how many come together

    async def counted(unit, **options):  # type: ignore[no-untyped-def]
        units.append(unit.name)
        await all_ended.wait()
        return await run(unit, **options)

    bench.store.run = counted
    async with running(bench, me) as (completer, heard):
        for claim in claims:
            await completer.finished(done(claim, results={"y": 1.0}))
        all_ended.set()
    assert set(bench.statuses().values()) == {"done"}
    assert len(heard.ended) == 200
    assert len(units) <= 8


async def test_a_bad_row_fails_alone_with_its_cause(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(rows=20)
    me = bench.register()
    claims = bench.claim(me, 20)
    async with running(bench, me) as (completer, _):
        for claim in claims:
            bad = claim.experiment_id == 7
            await completer.finished(done(claim, results={"note": unstorable(bench) if bad else "ok"}))
    statuses = bench.statuses()
    assert statuses.pop(7) == "error"
    assert set(statuses.values()) == {"done"}
    ((error, note),) = bench.query("SELECT error, note FROM exp WHERE ID = 7")
    assert "its result cannot be stored" in error
    assert note is None


async def test_results_are_durable_when_the_call_returns(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    async with running(bench, me) as (completer, _):
        await completer.results(claim, {"y": 3.0})
        assert bench.query("SELECT y, status FROM exp WHERE ID = 1") == [(3.0, "running")]


async def test_functions_that_wait_come_before_ends_that_may_gather(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that was brought of the same experiment, in its order; an end that has waited for long is not passed."""
    me = bench.register()
    first, second, third, fourth = bench.claim(me, 4)
    units: list[str] = []
    run = bench.store.run

    async def counted(unit, **options):  # type: ignore[no-untyped-def]
        units.append(unit.name)
        return await run(unit, **options)

    bench.store.run = counted
    monkeypatch.setattr(completer_module, "GATHER_S", 60)
    async with running(bench, me) as (completer, heard):
        await completer.finished(done(first))
        await completer.results(second, {"y": 2.0})
        assert (units, heard.ended) == (["store_results"], [])
        await completer.logs(third, [("epochs", 0.0, {"loss": 0.5})])
        await completer.results(third, {"y": 3.0})
        assert (units, heard.ended) == (["store_results", "record"], [])
        monkeypatch.setattr(completer_module, "GATHER_S", 0)
        await completer.results(fourth, {"y": 4.0})
        assert heard.ended == [(1, Outcome.DONE, Verdict.ACCEPTED)]
    assert units == ["store_results", "record", "record"]
    assert bench.query("SELECT y FROM exp WHERE ID BETWEEN 2 AND 4 ORDER BY ID") == [(2.0,), (3.0,), (4.0,)]
    assert bench.query("SELECT experiment_id FROM exp__epochs") == [(3,)]


async def test_refused_results_are_an_error_for_who_brought_them(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    async with running(bench, me) as (completer, _):
        with pytest.raises(exceptions.InvalidResultFieldError):
            await completer.results(first, {"nonsense": 1})
        with pytest.raises(exceptions.RowRefused):
            await completer.results(first, {"note": unstorable(bench)})
        await completer.results(second, {"y": math.inf})
    assert bench.statuses()[1] == "running"


async def test_writes_for_a_row_that_was_taken_say_so(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.execute("UPDATE exp SET status = 'created' WHERE ID = 1")
    async with running(bench, me) as (completer, heard):
        with pytest.raises(exceptions.LeaseLost):
            await completer.results(claim, {"y": 1.0})
        await completer.finished(done(claim))
    assert heard.lost == [1]
    assert heard.ended == [(1, Outcome.SUPERSEDED, Verdict.SUPERSEDED)]


async def test_a_process_stopped_between_two_looks_at_the_clock_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was due soon is overdue when it continues: that is no negative time to wait."""
    now = anyio.current_time

    def stopped_after_it() -> float:
        moment = now()
        if str(anyio.get_current_task().name).endswith("_keep_durable"):
            time.sleep(0.6 * SPILL_S)  # twice is too long
        return moment

    monkeypatch.setattr(completer_module, "SPILL_S", SPILL_S)
    monkeypatch.setattr(anyio, "current_time", stopped_after_it)
    me = bench.register()
    (claim,) = bench.claim(me)
    async with running(bench, me) as (completer, heard):
        await completer.finished(done(claim))
    assert heard.ended == [(claim.experiment_id, Outcome.DONE, Verdict.ACCEPTED)]


async def test_log_rows_results_and_end_of_one_experiment_keep_their_order(bench: Bench) -> None:
    me = bench.register()
    (claim,) = bench.claim(me)
    async with running(bench, me) as (completer, _):
        for number in range(30):
            await completer.logs(claim, [("epochs", 1000.0 + number, {"loss": float(number)})])
        await completer.finished(done(claim, results={"y": 1.0}))
    assert [row[0] for row in bench.query("SELECT loss FROM exp__epochs ORDER BY ID")] == [float(n) for n in range(30)]
    assert [row[0] for row in bench.query("SELECT pyexpd_seq FROM exp__epochs ORDER BY ID")] == list(range(1, 31))
    assert bench.statuses()[1] == "done"


async def test_a_bad_log_row_fails_its_experiment_and_no_other(bench: Bench) -> None:
    me = bench.register()
    first, second = bench.claim(me, 2)
    async with running(bench, me) as (completer, _):
        await completer.logs(first, [("epochs", 0.0, {"word": unstorable(bench)})])
        await completer.finished(done(first))
        await completer.logs(second, [("epochs", 0.0, {"word": "fine"})])
        await completer.finished(done(second))
    assert (bench.statuses()[1], bench.statuses()[2]) == ("error", "done")
    assert "a log row cannot be stored" in bench.query("SELECT error FROM exp WHERE ID = 1")[0][0]


async def test_a_daemon_declared_dead_goes_on_with_what_nobody_took(bench: Bench) -> None:
    """A result that is brought meanwhile is stored under the new token; its child is not killed."""
    me = bench.register()
    (claim,) = bench.claim(me)
    bench.kill_daemon(me)
    bench.run(daemons.sweep(bench.table, owner=me.id, policy=POLICY))
    completers: list[Completer] = []

    async def come_back(_: Incarnation) -> bool:
        again = bench.register("again")
        (new,) = bench.run(leases.take_back(bench.table, [claim], me=again, token=make_token()))
        completers[0].me = again
        completers[0].rebind(claim, new)
        return True

    async with running(bench, me, come_back) as (completer, heard):
        completers.append(completer)
        await completer.results(claim, {"y": 4.0})
    assert heard.lost == []
    assert bench.query("SELECT status, y FROM exp WHERE ID = 1") == [("running", 4.0)]
