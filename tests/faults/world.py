"""Daemons without processes and people, at work on real tables and on the model of them at the same time.

Every step runs real units of work; what they answer is compared with the model's answer, and `World.check` compares
what they changed. The daemons believe what they were told, may be cut off, lose replies, die, and come back.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.daemon.batches import Batch, Item
from pyexp_daemon.daemon.ledger import Held, Ledger, compare
from pyexp_daemon.daemon.records import under
from pyexp_daemon.daemon.writer import _as_one
from pyexp_daemon.model import CHARGED, Claim, Daemon, Incarnation, LogRow, Outcome, Report, Verdict
from pyexp_daemon.space.grid import Grid
from pyexp_daemon.store import daemons, edits, fill, leases, reports
from pyexp_daemon.store.edits import Seen
from pyexp_daemon.store.selection import Selection
from pyexp_daemon.store.unit import Unit
from tests.bench import Bench, ended, make_daemon
from tests.faults.model import POLICY, Key, Model, Row

OVER = {"done", "error", "paused", "cancelled"}


class Tables:
    """The tables of one bench, emptied for every history, and read as the model has them."""

    def __init__(self, bench: Bench, connection: Any) -> None:
        self.bench = bench
        self._cursor = connection.cursor()
        grid = Grid.of(bench.config.database.table.keyfields, provider=bench.config.database.provider)
        self.fillings = list(grid)
        self.past = "0" if bench.database.server is None else "'2000-01-01'"

    def empty(self) -> None:
        for name in ("exp__epochs", "exp__pyexpd_attempts", "exp__pyexpd_daemons", "exp"):
            self.by_hand(f"DELETE FROM {name}")

    def by_hand(self, sql: str) -> None:
        """What a person, or PyExperimenter, writes."""
        self._cursor.execute(sql)

    def query(self, sql: str) -> list[Any]:
        self._cursor.execute(sql)
        return list(self._cursor.fetchall())

    def read(self) -> Model:
        columns = "status, pyexpd_attempt, pyexpd_daemon, pyexpd_token, pyexpd_cancel, pyexpd_tries, y, pyexpd_order"
        rows = self.query(f"SELECT ID, {columns}, pyexpd_not_before IS NOT NULL FROM exp")
        receipts = self.query("SELECT experiment_id, attempt, token, outcome FROM exp__pyexpd_attempts")
        logs = self.query("SELECT experiment_id, pyexpd_attempt, pyexpd_seq FROM exp__epochs")
        states = self.query("SELECT id, state, beat FROM exp__pyexpd_daemons")
        return Model(
            rows={row[0]: _row(*row[1:]) for row in rows},
            receipts={(row[0], row[1], row[2]): row[3] for row in receipts},
            logs=Counter(tuple(row) for row in logs),
            daemons={row[0]: (row[1], row[2]) for row in states},
        )


def _row(
    status: str,
    attempt: int,
    daemon: int | None,
    token: str | None,
    cancel: int,
    tries: str | None,
    y: float | None,
    order: int,
    waits: int,
) -> Row:
    return Row(
        status=status,
        attempt=attempt,
        daemon=daemon,
        token=token,
        cancel=bool(cancel),
        tries=Counter(json.loads(tries or "{}")),
        y=y,
        order=order,
        waits=bool(waits),
    )


@dataclass
class Node:
    """A daemon without processes: what it holds, what runs there, and what it has not written yet."""

    name: str
    me: Incarnation
    ledger: Ledger = field(default_factory=Ledger)
    running: dict[Held, Claim] = field(default_factory=dict)
    outbox: list[Report] = field(default_factory=list)
    is_unsure: bool = False
    """Whether an earlier write of the outbox may have been committed."""
    unanswered: list[tuple[Incarnation, str, str]] = field(default_factory=list)
    """Of each claim whose reply was lost: who made it, its token and its start date."""
    """Claims whose reply was lost: as whom, and under which token."""
    coming: tuple[Daemon, str] | None = None
    """The row of its next incarnation and the token under which that takes back."""
    is_cut: bool = False

    def __str__(self) -> str:
        return self.name

    def gets(self, claims: list[Claim], token: str) -> None:
        self.ledger.answered(token, claims)
        self.running |= {claim.key: claim for claim in claims}

    def end(self, claim: Claim, outcome: Outcome, **fields: Any) -> None:
        """What ran there ended, was killed, or is not to be started."""
        del self.running[claim.key]
        self.outbox.append(ended(claim, outcome, **fields))

    def rebind(self, old: Claim, new: Claim) -> None:
        self.ledger.rebind(old, new)
        if self.running.pop(old.key, None):
            self.running[new.key] = new
        self.outbox = [under(each, new.token) if each.claim.key == old.key else each for each in self.outbox]


def next_batch(waiting: list[Report]) -> tuple[list[Report], int]:
    """What a daemon writes next, one report per experiment, and how many of its reports that is."""
    batch = Batch(10**6)
    together = list(itertools.takewhile(lambda report: batch.add(Item(report)), waiting))
    by_experiment: dict[int, list[Report]] = {}
    for report in together:
        by_experiment.setdefault(report.claim.experiment_id, []).append(report)
    return [_as_one(each) for each in by_experiment.values()], len(together)


class World:
    """Daemons, people, tables: each method is something that one of them does, in the tables and in the model."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        tables.empty()
        self.table, self.run = self.tables.bench.table, self.tables.bench.run
        self.model = Model()
        self.before = Model()
        """What the tables held before the last step."""
        self.nodes: list[Node] = []
        self.spools: list[tuple[Incarnation, list[Report]]] = []
        """What the dead had not written yet."""
        self.watched: list[Daemon] = []
        self.seen: list[Seen] = []
        self.touched: set[int] = set()
        """Experiments that a person, or PyExperimenter, had a hand in."""
        self.hidden: set[Key] = set()
        """Losses whose receipts were replaced by those of superseded ends: they stay charged."""
        self.unfilled = list(self.tables.fillings)
        self.numbers = itertools.count(1)

    def make_token(self) -> str:
        """Not a random one: what happens must not depend on the order of tokens."""
        return f"{next(self.numbers):032x}"

    # Daemons that work

    def add(self, count: int) -> None:
        rows, self.unfilled = self.unfilled[:count], self.unfilled[count:]
        assert self.run(fill.insert(self.table, rows)) == len(rows)
        new = {number for (number,) in self.tables.query("SELECT ID FROM exp")} - set(self.model.rows)
        assert len(new) == len(rows)
        self.model.rows |= {number: Row() for number in new}

    def start(self, name: str) -> None:
        self.nodes.append(Node(name, self.register(make_daemon(name))))

    def register(self, row: Daemon) -> Incarnation:
        me: Incarnation = self.run(daemons.register(self.table, row))
        self.model.register(me)
        return me

    def claim(self, node: Node, limit: int, is_lost: bool = False) -> None:
        token = self.make_token()
        wanted = self.model.claimable(limit)
        unit = leases.claim(self.table, me=node.me, token=token, queue="default", limit=limit)
        self.claim_by(node, token, wanted, unit, is_lost=is_lost)

    def claim_one(self, node: Node, number: int, is_lost: bool) -> None:
        """Whatever its status: only what is created or waiting is to be had."""
        token = self.make_token()
        wanted = [number] if self.model.rows[number].status in ("created", "waiting") else []
        unit = leases.claim_one(self.table, me=node.me, token=token, experiment_id=number)
        self.claim_by(node, token, wanted, unit, is_lost=is_lost)

    def claim_by(self, node: Node, token: str, wanted: list[int], unit: Unit[Any], *, is_lost: bool) -> None:
        expected = self.model.claim(node.me, token, wanted)
        node.ledger.sending(token)
        try:
            claims = self.run(unit) or []
        except exceptions.Fenced:
            claims = []
            assert not self.model.may_claim(node.me)
        if is_lost:
            dates = self.tables.query(f"SELECT start_date FROM exp WHERE pyexpd_token = '{token}'")
            node.unanswered.append((node.me, token, str(dates[0][0]) if dates else ""))
            return
        claims = claims if isinstance(claims, list) else [claims]
        assert [(claim.experiment_id, claim.attempt) for claim in claims] == expected
        node.gets(claims, token)

    def read_back(self, node: Node) -> None:
        me, token, started = node.unanswered.pop()
        claims = self.run(leases.read_back(self.table, me=me, token=token, started=started))
        assert [(claim.experiment_id, claim.attempt) for claim in claims] == self.model.held_under(me, token)
        node.gets(claims, token)

    def give_up_a_claim(self, node: Node) -> None:
        _, token, _ = node.unanswered.pop()
        node.gets([], token)

    def work(self, node: Node, claim: Claim) -> None:
        """A function stores a result on its way, and now and then a log row."""
        number = next(self.numbers)
        logs = (LogRow(logtable="epochs", seq=number, time=0.0, columns={"loss": 0.5}),) if number % 2 else ()
        node.outbox.append(Report(claim=claim, results={"y": float(number)}, logs=logs))

    def finish(self, node: Node, claim: Claim) -> None:
        node.end(claim, Outcome.DONE, results={"y": float(next(self.numbers))})

    def end(self, node: Node, claim: Claim, outcome: Outcome, began: bool) -> None:
        """It failed or paused; or it goes back, begun or not."""
        started = 1000.0 if began or outcome is not Outcome.RELEASED else None
        node.end(claim, outcome, started=started, error="why")

    def flush(self, node: Node, is_lost: bool = False) -> None:
        """Write what waits; when a reply is lost, all that may have been written is written again the next time."""
        while node.outbox:
            batch, count = next_batch(node.outbox)
            verdicts = self.record(node.me, batch, repeated=node.is_unsure)
            node.is_unsure = is_lost
            if is_lost:
                return
            refused = [r for r, v in zip(batch, verdicts, strict=True) if v is Verdict.SUPERSEDED and r.end is None]
            if refused and self.fence(node):
                node.is_unsure = True
                continue  # they may be ours again, under another token
            del node.outbox[:count]
            for report in batch:
                if report.end is not None:
                    node.ledger.let_go(report.claim)
            for report in refused:
                if report.claim.key in node.running:
                    node.end(report.claim, Outcome.SUPERSEDED)

    def record(self, me: Incarnation, batch: list[Report], *, repeated: bool, late: bool = False) -> list[Verdict]:
        if not late and reports.are_results(batch) and self.run(reports.store_results(self.table, batch)):
            verdicts = [Verdict.ACCEPTED] * len(batch)
        else:
            unit = reports.record(self.table, batch, me=me, host="h", policy=POLICY, repeated=repeated, late=late)
            verdicts = self.run(unit)
        assert verdicts == self.model.record(batch, late=late)
        return verdicts

    # Daemons that beat, and come back

    def beat(self, node: Node, is_lost: bool = False) -> None:
        before = node.ledger.snapshot()
        beat = self.beat_once(node)
        if is_lost:
            return
        if not beat.alive:
            node.coming = make_daemon(node.name), self.make_token()
            return
        audit = compare(before, beat.rows, node.ledger.snapshot())
        if audit.unknown:
            self.hand_back(node, audit.unknown)
        for outcome, concerned in ((Outcome.SUPERSEDED, audit.taken), (Outcome.CANCELLED, audit.cancelled)):
            for claim in [node.running[key] for key in concerned if key in node.running]:
                node.end(claim, outcome)
        under_it = {(number, token) for number, token, _ in self.model.held_by(node.me)}
        assert {token for _, token in under_it} <= node.ledger.snapshot().tokens, "something runs under it and nowhere"
        assert node.running.keys() <= under_it, "it runs what was taken from it"

    def hand_back(self, node: Node, held: Sequence[Held]) -> None:
        count = self.run(leases.release_unknown(self.table, me=node.me, held=held))
        assert count == self.model.release_unknown(node.me, held)

    def fence(self, node: Node) -> bool:
        """Whether it was declared dead, and is another incarnation now."""
        is_alive = self.beat_once(node).alive
        if not is_alive:
            self.come_back(node)
        return not is_alive

    def beat_once(self, node: Node) -> daemons.Beat:
        beat: daemons.Beat = self.run(daemons.beat(self.table, me=node.me, lease_s=60))
        assert (beat.alive, sorted(beat.rows)) == self.model.beat(node.me)
        return beat

    def come_back(self, node: Node, is_lost: bool = False) -> None:
        """Register anew and take back what nobody took; until the reply is there nothing else is done."""
        node.coming = row, token = node.coming or (make_daemon(node.name), self.make_token())
        node.ledger.sending(token)
        me, claims = self.register(row), node.ledger.claims()
        taken = self.run(leases.take_back(self.table, claims, me=me, token=token)) if claims else []
        assert sorted(claim.experiment_id for claim in taken) == self.model.take_back(me, token, claims)
        if is_lost:
            return
        back = {(claim.experiment_id, claim.attempt): claim for claim in taken}
        node.me, node.coming = me, None
        for claim in claims:
            if new := back.get((claim.experiment_id, claim.attempt)):
                node.rebind(claim, new)
            elif claim.key in node.running:
                node.end(claim, Outcome.SUPERSEDED)
        node.ledger.answered(token)

    def stop(self, node: Node) -> None:
        """Drain: everything is handed back, and then it signs off."""
        for claim in list(node.running.values()):
            node.end(claim, Outcome.RELEASED)
        self.flush(node)
        assert node.ledger.claims() == []
        if rows := self.beat_once(node).rows:  # of claims whose replies were lost
            self.hand_back(node, [(row[0], row[1]) for row in rows])
        stopped = self.run(daemons.change_state(self.table, me=node.me, state="stopped"))
        assert stopped == self.model.change_state(node.me, "stopped")
        self.nodes.remove(node)

    # What befalls them

    def kill(self, node: Node, leaves_spool: bool) -> None:
        self.nodes.remove(node)
        if leaves_spool and node.outbox:
            self.spools.append((node.me, node.outbox))

    def replay(self, spool: tuple[Incarnation, list[Report]], stays: bool) -> None:
        """A successor writes what a dead daemon had not written; whoever is interrupted in that begins anew."""
        me, left = spool
        while left:
            batch, count = next_batch(left)
            self.record(me, batch, repeated=True, late=True)
            left = left[count:]
        if not stays:
            self.spools.remove(spool)

    def cut(self, node: Node) -> None:
        node.is_cut = True

    def heal(self, node: Node) -> None:
        node.is_cut = False

    def watch(self) -> None:
        self.watched = self.living
        alive = [number for number in self.model.daemons if self.model.is_alive(number)]
        assert [row.id for row in self.watched] == sorted(alive)

    def declare_dead(self, seen: Daemon) -> None:
        """A verdict about anybody, also about one that is alive and has beaten since."""
        is_dead = self.run(daemons.declare_dead(self.table, seen))
        assert is_dead == self.model.declare_dead(seen.id, seen.beat)

    @property
    def living(self) -> list[Daemon]:
        found: list[Daemon] = self.run(daemons.look(self.table))
        return found

    def rescue(self, seen: Daemon) -> None:
        """A daemon is declared dead, rightly or not, and all it held is requeued at once."""
        self.declare_dead(seen)
        self.sweep()

    def sweep(self, limit: int = 200) -> None:
        """Of the living, too: a rescuer may be mistaken or late."""
        assert self.run(daemons.abandoned(self.table)) == self.model.abandoned()
        for owner in self.model.daemons:
            swept = self.run(daemons.sweep(self.table, owner=owner, policy=POLICY, limit=limit))
            assert self.model.sweep(owner, limit, swept), f"{swept} of daemon {owner}"

    def promote(self, is_due: bool = True) -> None:
        waiting = [number for number, row in self.model.rows.items() if row.status == "waiting"]
        if is_due:
            self.tables.by_hand(f"UPDATE exp SET pyexpd_not_before = {self.tables.past} WHERE status = 'waiting'")
            self.model.promote(waiting)
        assert self.run(daemons.is_due(self.table)) == (is_due and bool(waiting))
        assert self.run(daemons.promote(self.table)) == (len(waiting) if is_due else 0)

    # People

    def look_at(self, number: int) -> None:
        (seen,) = self.run(edits.seen(self.table, Selection("ID = ?", (number,))))
        assert seen == self.model.seen(number)
        self.seen.append(seen)

    def reset(self, seen: Seen) -> None:
        """By what was seen, which may be long ago, and again when a reply was lost."""
        count = self.model.reset(seen)
        assert self.run(edits.reset(self.table, [seen])) == count
        self.touched |= {seen.id} if count else set()

    def delete(self, seen: Seen) -> None:
        assert self.run(edits.delete(self.table, [seen])) == self.model.delete(seen)

    def cancel(self, number: int) -> None:
        assert self.run(edits.cancel(self.table, [self.model.seen(number)])) == self.model.cancel(number)
        self.touched.add(number)

    def schedule(self, number: int, order: int) -> None:
        assert self.run(edits.set_scheduling(self.table, [self.model.seen(number)], order=order)) == 1
        self.model.rows[number].order = order

    def edit(self, number: int, status: str) -> None:
        self.tables.by_hand(f"UPDATE exp SET status = '{status}' WHERE ID = {number}")
        self.model.rows[number].status = status
        self.touched.add(number)

    def claim_by_pyexperimenter(self, number: int) -> None:
        """It knows nothing of tokens: what an edit by hand left there stays."""
        self.edit(number, "running")
        self.tables.by_hand(f"UPDATE exp SET start_date = '2031-01-01 00:00:00' WHERE ID = {number}")
        self.model.rows[number].foreign = True

    # What holds

    def check(self) -> None:
        before, now = self.before, self.tables.read()
        assert now == self.model
        self.before = now
        self.check_attempts(before, now)
        self.check_receipts(before, now)
        for number in set(now.rows) - self.touched:
            self.check_untouched(number, now)
        beliefs = [claim.key for node in self.nodes for claim in node.ledger.claims()]
        assert len(beliefs) == len(set(beliefs)), "two daemons hold one experiment under one token"

    def check_attempts(self, before: Model, now: Model) -> None:
        for number in before.rows.keys() & now.rows.keys():
            assert now.rows[number].attempt >= before.rows[number].attempt, "an attempt number shrank"

    def check_receipts(self, before: Model, now: Model) -> None:
        """Never overwritten, and taken away only with the experiment, unless they say `lost`."""
        for key, outcome in before.receipts.items():
            if outcome != "lost" and key[0] in now.rows:
                assert now.receipts.get(key) == outcome, "a receipt was overwritten"
            elif outcome == "lost" and now.receipts.get(key) == "superseded":
                self.hidden.add(key)

    def check_untouched(self, number: int, now: Model) -> None:
        row = now.rows[number]
        outcomes = Counter(outcome for (experiment, _, _), outcome in now.receipts.items() if experiment == number)
        charged = {outcome: count for outcome, count in outcomes.items() if outcome in CHARGED}
        assert outcomes["done"] <= 1, "accepted twice"
        assert (row.status == "done") == bool(outcomes["done"]), "done, and no receipt says so"
        hidden = Counter({"lost": sum(key[0] == number for key in self.hidden)})
        assert row.tries == +(Counter(charged) + hidden), "charged something else than its attempts' ends"
        if row.status != "running":
            assert (row.daemon, row.token, row.cancel) == (None, None, False), "something was left behind"

    def come_to_an_end(self) -> None:
        """Nobody dies any more, the dead are rescued, and PyExperimenter is done: then everything comes to its end."""
        for node in list(self.nodes):
            self.heal(node)
            if node.coming is None:
                self.beat(node)
            if node.coming is not None:
                self.come_back(node)
            self.stop(node)
        self.watch()
        for seen in self.watched:
            self.declare_dead(seen)
        self.sweep()
        for number, row in self.model.rows.items():
            if row.status == "running":
                assert row.foreign, f"experiment {number} runs for ever"
                self.edit(number, "done")
        self.start("last")
        (node,) = self.nodes
        for turn in itertools.count():
            left = {number: row.status for number, row in self.model.rows.items() if row.status not in OVER}
            if not left:
                break
            assert turn < 2, f"these do not come to their end: {left}"
            self.promote()
            self.claim(node, limit=100)
            for claim in list(node.running.values()):
                node.end(claim, Outcome.DONE, results={"y": float(next(self.numbers))})
            self.flush(node)
            self.check()
