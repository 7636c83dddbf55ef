"""Daemons as people see them: what each is about, in a line or as a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyexp_daemon.cli.context import count_of
from pyexp_daemon.cli.times import iso_time, show_duration
from pyexp_daemon.model import Command, Daemon
from pyexp_daemon.store import commands, daemons, reads

if TYPE_CHECKING:
    from pyexp_daemon.cli.context import Workplace
    from pyexp_daemon.store import BlockingStore

LIVE = ("live", "draining")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The daemons of a table at one moment, by the database's clock."""

    now: float
    daemons: list[Daemon] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)
    """How many experiments run under each, by its id."""
    commands: dict[str, Command] = field(default_factory=dict)
    """The last command to each, by its incarnation."""

    def state_of(self, daemon: Daemon) -> str:
        """What a person would call it: one without a sign of life for its lease is `silent`."""
        if daemon.state in LIVE:
            if self.now - daemon.beat_at > daemon.lease_s:
                return "silent"
            if daemon.facts.get("draining"):
                return "draining"
            if daemon.facts.get("paused"):
                return "paused"
        return daemon.state

    def describe(self) -> list[str]:
        """A line for each daemon, followed by what is special about it."""
        return [line for daemon in self.daemons for line in self._describe(daemon)]

    def _describe(self, daemon: Daemon) -> list[str]:
        gpus = daemon.facts.get("gpus")
        parts = [
            self.state_of(daemon),
            f"{self.held.get(daemon.id, 0)} of {count_of(daemon.slots, 'slot')} busy",
            *([f"GPUs {', '.join(gpus)}"] if gpus else []),
            f"last beat {show_duration(self.now - daemon.beat_at)} ago",
            f"version {daemon.version}",
        ]
        lines = [f"daemon {self._introduce(daemon)}: {', '.join(parts)}"]
        if daemon.facts.get("paused"):
            lines.append(f"  claims nothing: {daemon.facts['paused']}")
        if daemon.facts.get("spool_bytes"):
            lines.append(f"  {daemon.facts['spool_bytes']} bytes wait in its spool for the database")
        lines += [
            f"  no sign of life for {show_duration(seconds)} from experiment {experiment}"
            for experiment, seconds in daemon.facts.get("silent", {}).items()
        ]
        if command := self.commands.get(daemon.incarnation):
            lines.append(f"  {describe_command(command, now=self.now)}")
        return lines

    def _introduce(self, daemon: Daemon) -> str:
        label = labels(self.daemons)[daemon.id]
        return f"{f'{label} on {daemon.host}' if label == daemon.name else label} (process {daemon.pid})"

    def documents(self) -> list[dict[str, Any]]:
        """The same for machines."""
        return [self._document(daemon) for daemon in self.daemons]

    def _document(self, daemon: Daemon) -> dict[str, Any]:
        command = self.commands.get(daemon.incarnation)
        facts = daemon.facts
        return {
            "id": daemon.id,
            "name": daemon.name,
            "host": daemon.host,
            "pid": daemon.pid,
            "version": daemon.version,
            "state": self.state_of(daemon),
            "paused": facts.get("paused"),
            "slots": daemon.slots,
            "running": self.held.get(daemon.id, 0),
            "gpus": facts.get("gpus"),
            "silent": [
                {"experiment": int(experiment), "seconds": seconds}
                for experiment, seconds in facts.get("silent", {}).items()
            ],
            "spool_bytes": facts.get("spool_bytes"),
            "started": iso_time(daemon.started),
            "beat_age_seconds": round(max(0.0, self.now - daemon.beat_at), 3),
            "lease_seconds": daemon.lease_s,
            "command": None
            if command is None
            else {
                "command": command.name,
                "asked_by": command.asked_by,
                "asked": iso_time(command.asked),
                "answered": iso_time(command.answered),
                "answer": command.answer,
            },
        }


def look(store: BlockingStore, workplace: Workplace, *, states: Sequence[str] = LIVE) -> Fleet:
    """The daemons of the table in these states, with all that is known of them."""
    table = workplace.table
    rows = store.read(daemons.look(table, states=states))
    return Fleet(
        now=store.read(reads.clock(table)),
        daemons=rows,
        held=store.read(reads.count_held(table)),
        commands=store.read(commands.latest(table, incarnations=[row.incarnation for row in rows])),
    )


def labels(rows: Sequence[Daemon]) -> Mapping[int, str]:
    """What tells each daemon from the others, by its id: its name, else NAME@HOST, else that and its id."""
    names = Counter(row.name for row in rows)
    places = Counter((row.name, row.host) for row in rows)

    def label(row: Daemon) -> str:
        if names[row.name] == 1:
            return row.name
        place = f"{row.name}@{row.host}"
        return place if places[row.name, row.host] == 1 else f"{place} (id {row.id})"

    return {row.id: label(row) for row in rows}


def called(rows: Sequence[Daemon], text: str) -> list[Daemon]:
    """Those that somebody may mean by a name, else by NAME@HOST, else by an id."""
    by_name = [row for row in rows if row.name == text]
    by_place = [row for row in rows if f"{row.name}@{row.host}" == text]
    return by_name or by_place or [row for row in rows if str(row.id) == text]


def describe_command(command: Command, *, now: float) -> str:
    """`reload, asked by anna@login 3 s ago: nothing changed`"""
    asked = f"{command.name}, asked by {command.asked_by} {show_duration(now - command.asked)} ago"
    return f"{asked}: {'not heard yet' if command.answered is None else command.answer}"
