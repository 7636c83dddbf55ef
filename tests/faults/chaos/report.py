"""What really happened, and whether it was enough to prove anything."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.e2e.project import Project
from tests.faults.chaos.plan import Kind
from tests.faults.chaos.run import Chaos

LEAST_IN_20_MINUTES: Mapping[str, int] = {
    "daemon kills": 200,
    "lease rescues": 50,
    "superseded writes": 20,
    "partitions": 20,
}
"""Less than that proves nothing."""

BUGS = ("service.failed", "claims.forgotten", "daemon.wedged", "child.survived")
"""Events of daemons that no fault may cause."""


def least(minutes: float) -> dict[str, int]:
    """What must have happened in so many minutes; from two minutes on, each at least once.

    Of few things that happen by chance there may be half as many, the more so on a loaded machine.
    """
    at_least = 1 if minutes >= 2 else 0
    part = minutes / 20 if minutes >= 20 else minutes / 40
    return {what: max(at_least, int(count * part)) for what, count in LEAST_IN_20_MINUTES.items()}


def too_little(figures: Mapping[str, int], minutes: float) -> list[str]:
    """Why a run proves nothing; [] when it does."""
    return [
        f"vacuous: {figures.get(what, 0)} {what}, less than {count}"
        for what, count in least(minutes).items()
        if figures.get(what, 0) < count
    ]


@dataclass(frozen=True)
class Report:
    """A run in figures."""

    title: str
    figures: Mapping[str, int]
    violations: Sequence[str]
    vacuous: Sequence[str]
    errors: Mapping[str, int]
    """Events of level error in the daemons' logs."""

    @property
    def failed(self) -> bool:
        """Whether something did not hold, or too little happened."""
        return bool(self.violations or self.vacuous)

    @cached_property
    def table(self) -> str:
        """For people."""
        rows = [f"  {what:<44}{count:>8}" for what, count in self.figures.items()]
        errors = [f"  {'errors in the logs: ' + what:<44}{count:>8}" for what, count in self.errors.items()]
        return "\n".join([self.title, *rows, *errors, *self._verdict])

    @property
    def line(self) -> str:
        """For people in a hurry, unless it failed."""
        if self.failed:
            return self.table
        said = ", ".join(f"{self.figures[what]} {what}" for what in ("experiments", *LEAST_IN_20_MINUTES))
        return f"{self.title}: {said}: nothing lost, nothing doubled"

    @property
    def _verdict(self) -> list[str]:
        if not self.failed:
            return ["nothing lost, nothing doubled"]
        return [f"{len(self.violations)} violations", *self.violations[:30], *self.vacuous]

    @property
    def json(self) -> str:
        """For programs."""
        everything = {
            "title": self.title,
            "figures": self.figures,
            "errors": self.errors,
            "violations": self.violations,
            "vacuous": self.vacuous,
        }
        return json.dumps(everything, indent=2) + "\n"


def figures(project: Project, chaos: Chaos) -> dict[str, int]:
    """What has happened until now."""
    events = project.events()
    return {**_done(chaos), **_rescues(project, chaos, events), **_work(project), **_said(events)}


def make_report(project: Project, chaos: Chaos, found: Sequence[str], *, minutes: float, seed: int) -> Report:
    """The report of a run that has ended."""
    events = project.events()
    found_out = figures(project, chaos)
    count = len(chaos.hosts.places)
    return Report(
        title=f"chaos on {project.database.flavour}, {minutes:g} min, {count} daemons, seed {seed}",
        figures=found_out,
        violations=[*found, *_bugs(project, events)],
        vacuous=too_little(found_out, minutes),
        errors=Counter(entry["event"] for entry in events if entry["level"] in ("error", "critical")),
    )


def _done(chaos: Chaos) -> dict[str, int]:
    names = {
        Kind.KILL: "daemon kills",
        Kind.FREEZE: "daemons stopped and continued",
        Kind.TERM: "daemons stopped by TERM",
        Kind.DRAIN: "daemons drained by USR1",
        Kind.RESTART: "daemons reset by USR2",
        Kind.PARTITION: "partitions",
        Kind.CUT: "connections of a daemon cut",
        Kind.SERVER_KILL: "server kills",
    }
    people = {Kind.CANCEL: "cancels", Kind.EDIT: "edits by hand", Kind.RESET: "resets"}
    return {
        **{name: chaos.happened[kind] for kind, name in names.items()},
        **{name: chaos.people.did[kind] for kind, name in people.items()},
        "seconds to get everything done afterwards": round(chaos.recovered_s),
        **{f"daemons that ended with {code}": count for code, count in sorted(chaos.hosts.exits.items())},
    }


def _rescues(project: Project, chaos: Chaos, events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Dead daemons whose experiments others took over, by how their death was known.

    A daemon of the same host proves it by the process, one with the SQLite file by the lock on a file; else the lease
    decides.
    """
    name_of = dict(project.database.query("SELECT id, name FROM exp__pyexpd_daemons"))
    by_lease, by_host, by_lock, experiments = set(), set(), set(), 0
    for entry in events:
        if entry["event"] != "experiments.rescued":
            continue
        owner = name_of.get(entry["owner"], "")
        experiments += entry["count"]
        if _host(owner) == _host(entry["daemon"]):
            by_host.add(entry["owner"])
        elif project.database.provider == "sqlite" and owner in chaos.hosts.proved:
            by_lock.add(entry["owner"])
        else:
            by_lease.add(entry["owner"])
    return {
        "lease rescues": len(by_lease),
        "same-host rescues": len(by_host),
        "rescues proved by a lock": len(by_lock),
        "experiments rescued": experiments,
    }


def _host(daemon: str) -> str:
    return daemon.rpartition("-")[0]


def _work(project: Project) -> dict[str, int]:
    outcomes = dict(
        project.database.query("SELECT outcome, COUNT(*) FROM exp__pyexpd_attempts GROUP BY outcome ORDER BY outcome")
    )
    return {
        "superseded writes": outcomes.get("superseded", 0),
        "experiments": sum(project.statuses().values()),
        **{f"experiments {status}": count for status, count in sorted(project.statuses().items())},
        **{f"attempts {outcome}": count for outcome, count in outcomes.items()},
    }


def _said(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    names = {
        "daemon.dead": "daemons declared dead",
        "daemon.back": "of these, back again",
        "database.back": "reconnections after an outage",
        "claim.read_back": "claims read back",
        "claims.handed_back": "claims handed back",
        "lease.lost": "experiments taken while they ran",
        "spool.replayed": "spools replayed",
        "results.spooled": "daemons that left results in the spool",
    }
    counts = Counter(entry["event"] for entry in events)
    return {text: counts[name] for name, text in names.items()}


def _bugs(project: Project, events: Sequence[dict[str, Any]]) -> list[str]:
    said = [
        f"I9: {entry['daemon']} says {entry['event']}: {_cause(entry)}" for entry in events if entry["event"] in BUGS
    ]
    crashed = [
        f"I7: a daemon printed a traceback, see {path}"
        for path in sorted(project.folder.glob("daemon-output-*"))
        if any(line.startswith("Traceback ") for line in path.read_text().splitlines())
    ]
    return said + crashed


def _cause(entry: Mapping[str, Any]) -> str:
    text = str(entry.get("exception") or entry.get("error") or entry.get("experiments"))
    return text.strip().splitlines()[-1]
