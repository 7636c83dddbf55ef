"""The protocol as plain Python: what each unit of work must do to the tables, written from docs/protocol.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pyexp_daemon.model import CHARGED, Claim, Incarnation, Report, RetryPolicy, Verdict
from pyexp_daemon.store.edits import Seen

POLICY = RetryPolicy(
    tries={"error": 2, "timeout": 1, "stalled": 2, "crash": 3, "lost": 3}, first_s=3600.0, longest_s=36000.0
)

Key = tuple[int, int, str]
"""Experiment, attempt and token: a receipt's key."""


@dataclass(kw_only=True)
class Row:
    """An experiment."""

    status: str = "created"
    attempt: int = 0
    daemon: int | None = None
    token: str | None = None
    cancel: bool = False
    tries: Counter[str] = field(default_factory=Counter)
    waits: bool = False
    """Whether it has a time before which it does not run."""
    y: float | None = None
    order: int = 0
    foreign: bool = field(default=False, compare=False)
    """PyExperimenter has claimed it: its start date is another one than that of the claim whose token it may carry."""

    def free(self, status: str) -> None:
        self.status, self.daemon, self.token, self.cancel = status, None, None, False

    def take(self, me: Incarnation, token: str) -> None:
        self.status, self.daemon, self.token, self.foreign = "running", me.id, token, False

    def end(self, outcome: str) -> None:
        """Where it goes after an attempt that ended so."""
        if outcome in CHARGED:
            self.tries[outcome] += 1
        status = {"released": "created", "superseded": "created", "lost": "created"}.get(outcome, outcome)
        if outcome in CHARGED and self.tries[outcome] >= POLICY.tries[outcome]:
            status = "error"
        elif outcome in CHARGED and outcome != "lost":
            status = "waiting"
        if self.cancel and outcome != "done":
            status = "cancelled"
        self.free(status)

    def uncharge_loss(self) -> None:
        self.tries = +(self.tries - Counter({"lost": 1}))

    def is_held_by(self, claim: Claim) -> bool:
        return self.status == "running" and self.token == claim.token and not self.foreign


@dataclass
class Model:
    """The tables. Every method is a unit of work, and answers as it does."""

    rows: dict[int, Row] = field(default_factory=dict)
    receipts: dict[Key, str] = field(default_factory=dict)
    logs: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    """Experiment, attempt and number of each log row."""
    daemons: dict[int, tuple[str, int]] = field(default_factory=dict)
    """State and beat."""

    # Daemons

    def register(self, me: Incarnation) -> None:
        self.daemons.setdefault(me.id, ("live", 0))

    def is_alive(self, number: int) -> bool:
        return self.daemons[number][0] in ("live", "draining")

    def beat(self, me: Incarnation) -> tuple[bool, list[tuple[int, str | None, bool]]]:
        return self.change_state(me, self.daemons[me.id][0]), self.held_by(me)

    def held_by(self, me: Incarnation) -> list[tuple[int, str | None, bool]]:
        return [(number, row.token, row.cancel) for number, row in self._running_under(me.id)]

    def change_state(self, me: Incarnation, state: str) -> bool:
        if not self.is_alive(me.id):
            return False
        self.daemons[me.id] = state, self.daemons[me.id][1] + 1
        return True

    def declare_dead(self, number: int, beat: int) -> bool:
        if not (self.is_alive(number) and self.daemons[number][1] == beat):
            return False
        self.daemons[number] = "dead", beat
        return True

    def abandoned(self) -> list[int]:
        owners = {row.daemon for row in self.rows.values() if row.status == "running" and row.daemon}
        return sorted(owner for owner in owners if not self.is_alive(owner))

    def sweep(self, owner: int, limit: int, swept: Sequence[int]) -> bool:
        """Requeue these; whether it had to be these: so many of the owner's."""
        theirs = [] if self.is_alive(owner) else [number for number, row in self._running_under(owner) if row.token]
        for number in swept:
            row = self.rows[number]
            self.receipts.setdefault((number, row.attempt, row.token or ""), "lost")
            row.end("lost")
        return set(swept) <= set(theirs) and len(swept) == min(limit, len(theirs))

    def promote(self, due: Iterable[int]) -> None:
        for number in due:
            self.rows[number].status, self.rows[number].waits = "created", False

    def _running_under(self, owner: int) -> list[tuple[int, Row]]:
        return [(n, row) for n, row in sorted(self.rows.items()) if row.status == "running" and row.daemon == owner]

    # Claims

    def claimable(self, limit: int) -> list[int]:
        created = [(row.order, number) for number, row in self.rows.items() if row.status == "created"]
        return [number for _, number in sorted(created)[:limit]]

    def may_claim(self, me: Incarnation) -> bool:
        return self.daemons[me.id][0] == "live"

    def claim(self, me: Incarnation, token: str, wanted: Sequence[int]) -> list[tuple[int, int]]:
        """The experiments and attempts of the claim."""
        if not self.may_claim(me):
            return []
        for number in wanted:
            row = self.rows[number]
            row.take(me, token)
            row.attempt, row.cancel, row.waits = row.attempt + 1, False, False
        return [(number, self.rows[number].attempt) for number in wanted]

    def held_under(self, me: Incarnation, token: str) -> list[tuple[int, int]]:
        rows = [(n, row) for n, row in self._running_under(me.id) if row.token == token and not row.foreign]
        found = [(row.order, number, row.attempt) for number, row in rows]
        return [(number, attempt) for _, number, attempt in sorted(found)]

    def release_unknown(self, me: Incarnation, held: Sequence[tuple[int, str]]) -> int:
        back = [row for number, row in self._running_under(me.id) if (number, row.token) in held]
        for row in back:
            row.free("cancelled" if row.cancel else "created")
        return len(back)

    def take_back(self, me: Incarnation, token: str, claims: Sequence[Claim]) -> list[int]:
        """`token` may be known from an earlier call whose reply was lost, and `me` be dead itself since."""
        back = []
        for claim in claims:
            row, again = self.rows.get(claim.experiment_id), replace(claim, token=token)
            if row is None or row.attempt != claim.attempt:
                continue
            lost = [key for key in (_key(claim), _key(again)) if self.receipts.get(key) == "lost"]
            if row.status == "created" and lost:
                row.uncharge_loss()
                for key in lost:
                    del self.receipts[key]
            elif not (row.is_held_by(claim) or row.is_held_by(again)):
                continue
            row.take(me, token)
            back.append(claim.experiment_id)
        return sorted(back)

    # Reports

    def record(self, reports: Sequence[Report], *, late: bool = False) -> list[Verdict]:
        return [self._record(report, late=late) for report in reports]

    def _record(self, report: Report, *, late: bool) -> Verdict:
        claim, end = report.claim, report.end
        row, receipt = self.rows.get(claim.experiment_id), self.receipts.get(_key(claim))
        requeued = row is not None and (row.status, row.attempt, receipt) == ("created", claim.attempt, "lost")
        if row is not None and (row.is_held_by(claim) or (requeued and (late or end is not None))):
            self._accept(row, report, requeued=requeued)
            return Verdict.ACCEPTED
        if receipt not in (None, "lost", "superseded"):
            return Verdict.KNOWN
        if end is not None and end.started is not None:
            self.receipts[_key(claim)] = "superseded"
        if end is not None and row is not None and row.token == claim.token and row.status in ("created", "running"):
            row.free(row.status)  # an edit by hand left it
        return Verdict.SUPERSEDED

    def _accept(self, row: Row, report: Report, *, requeued: bool) -> None:
        claim, end = report.claim, report.end
        row.y = {**report.results, **(end.results if end else {})}.get("y", row.y)
        for log in report.logs:
            self.logs[claim.experiment_id, claim.attempt, log.seq or 0] = 1
        if end is None:
            return
        if requeued:
            row.uncharge_loss()
            del self.receipts[_key(claim)]
        if end.started is not None:
            self.receipts[_key(claim)] = end.outcome.value
        row.end(end.outcome.value)
        row.waits = row.status == "waiting"

    # People

    def seen(self, number: int) -> Seen:
        return Seen(number, self.rows[number].status, self.rows[number].attempt)

    def reset(self, seen: Seen) -> int:
        if seen.id not in self.rows or self.seen(seen.id) != seen:
            return 0
        old = self.rows[seen.id]
        self.rows[seen.id] = Row(attempt=old.attempt + 1, order=old.order)
        self._delete_logs(seen.id)
        return 1

    def delete(self, seen: Seen) -> int:
        if seen.id not in self.rows or self.seen(seen.id) != seen:
            return 0
        del self.rows[seen.id]
        self._delete_logs(seen.id)
        self.receipts = {key: outcome for key, outcome in self.receipts.items() if key[0] != seen.id}
        return 1

    def _delete_logs(self, number: int) -> None:
        self.logs = Counter({key: 1 for key in self.logs if key[0] != number})

    def cancel(self, number: int) -> tuple[int, int]:
        row = self.rows[number]
        if row.status == "running":
            row.cancel = True
            return 0, 1
        if row.status not in ("created", "waiting", "paused", "error"):
            return 0, 0
        row.free("cancelled")
        row.waits = False
        return 1, 0


def _key(claim: Claim) -> Key:
    return claim.experiment_id, claim.attempt, claim.token
