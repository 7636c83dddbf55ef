"""What stands in a spool: one record per line, a checksum and JSON. Values come back exactly as they went in."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pyexp_daemon.model import Attempt, Claim, LogRow, Outcome, Report, SnapshotHead, SnapshotPart
from pyexp_daemon.worker import channel

Held = tuple[int, str]
"""An experiment and the token under which it is held."""


class Corrupt(ValueError):
    """A line is not a record as it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A report to be stored.

    Args:
        daemon: the number of the daemon row under which it was made.
        whole: no earlier result of the attempt was stored without standing in the spool too: what the spool has of
            the attempt is enough to finish it, even in a database that was restored from before it began.
    """

    report: Report
    daemon: int
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Rebound:
    """An attempt goes on under another token: entries that stand under the old one mean the new one."""

    experiment_id: int
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Spoilt:
    """Something of an attempt was refused after its function had been told that it is safe: it ends as an error."""

    experiment_id: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a line begins: number of the segment, byte in it."""

    segment: int
    offset: int


Note = Rebound | Spoilt
Record = Entry | Rebound | Spoilt | Place
"""A place on a line of its own says that every entry before it is stored."""

_REPORT = b'{"report":'
_CHECKSUM = len("00000000 ")
_HEAD = tuple(field.name for field in fields(SnapshotHead))
_FACTS = tuple(field.name for field in fields(Attempt) if field.name != "claim")


def encode(record: Record) -> bytes:
    """The line of a record.

    Raises:
        TypeError, ValueError: a value is of a kind that no child can send.
    """
    # surrogatepass: half a character is kept, though nothing else would take it.
    body = channel.dumps(_plain(record)).encode("utf-8", "surrogatepass")
    return b"%08x %b\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Record:
    """The record of a line.

    Raises:
        Corrupt: it is cut off or was changed.
    """
    body = line[_CHECKSUM:-1]
    if not line.endswith(b"\n") or line[:_CHECKSUM] != b"%08x " % zlib.crc32(body):
        raise Corrupt("the checksum does not fit")
    try:
        return _record(channel.loads(body.decode("utf-8", "surrogatepass")))
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise Corrupt(f"not a record: {error}") from error


def is_entry(line: bytes) -> bool:
    """Whether a line is an entry, by its beginning alone."""
    return line.startswith(_REPORT, _CHECKSUM)


def _plain(record: Record) -> dict[str, Any]:
    match record:
        case Entry():
            return {"report": _plain_report(record.report), "daemon": record.daemon, "whole": record.whole}
        case Rebound():
            return {"rebound": [record.experiment_id, record.old, record.new]}
        case Spoilt():
            return {"spoilt": [record.experiment_id, record.attempt, record.reason]}
        case Place():
            return {"stored": [record.segment, record.offset]}


def _record(found: dict[str, Any]) -> Record:
    if "report" in found:
        return Entry(report=_report(found["report"]), daemon=found["daemon"], whole=found["whole"])
    if "rebound" in found:
        return Rebound(*found["rebound"])
    if "spoilt" in found:
        return Spoilt(*found["spoilt"])
    return Place(*found["stored"])


def _plain_report(report: Report) -> dict[str, Any]:
    claim, end = report.claim, report.end
    plain: dict[str, Any] = {"claim": [claim.experiment_id, claim.attempt, claim.token, claim.start_date]}
    if report.results:
        plain["results"] = list(report.results.items())
    if report.logs:
        plain["logs"] = [[row.logtable, row.seq, row.time, list(row.columns.items())] for row in report.logs]
    if report.parts:
        plain["parts"] = [[part.state_id, part.part, part.data] for part in report.parts]
    if report.snapshots:
        plain["snapshots"] = [{name: getattr(head, name) for name in _HEAD} for head in report.snapshots]
    if end is not None:
        plain["end"] = {name: value for name in _FACTS if (value := getattr(end, name)) is not None}
        plain["end"]["results"] = list(end.results.items())
    return plain


def _report(plain: dict[str, Any]) -> Report:
    experiment_id, attempt, token, start_date = plain["claim"]
    claim = Claim(experiment_id=experiment_id, attempt=attempt, token=token, start_date=start_date, keyfields={})
    end = plain.get("end")
    if end is not None:
        outcome, results = Outcome(end["outcome"]), dict(end["results"])
        end = Attempt(**{**end, "claim": claim, "outcome": outcome, "results": results})
    return Report(
        claim=claim,
        results=dict(plain.get("results", ())),
        logs=tuple(
            LogRow(logtable=logtable, seq=seq, time=time, columns=dict(columns))
            for logtable, seq, time, columns in plain.get("logs", ())
        ),
        parts=tuple(SnapshotPart(*part) for part in plain.get("parts", ())),
        snapshots=tuple(SnapshotHead(**head) for head in plain.get("snapshots", ())),
        end=end,
    )


@dataclass(slots=True)
class Notes:
    """What a spool says about its entries, wherever in it that stands."""

    rebound: dict[Held, str] = field(default_factory=dict)
    spoilt: dict[tuple[int, int], str] = field(default_factory=dict)

    def add(self, note: Note) -> None:
        match note:
            case Rebound():
                self.rebound[note.experiment_id, note.old] = note.new
            case Spoilt():
                self.spoilt[note.experiment_id, note.attempt] = note.reason

    def token(self, held: Held) -> str:
        """The last token of an attempt that was held under this one."""
        experiment_id, token = held
        while (experiment_id, token) in self.rebound:
            token = self.rebound[experiment_id, token]
        return token

    def tokens(self, wanted: Collection[Held]) -> set[str]:
        """Every token under which one of these attempts may stand in the spool."""
        last = {(experiment_id, self.token((experiment_id, token))) for experiment_id, token in wanted}
        return {token for _, token in (*wanted, *last)} | {
            old for experiment_id, old in self.rebound if (experiment_id, self.token((experiment_id, old))) in last
        }


def under(report: Report, token: str) -> Report:
    """The report under another token of its attempt."""
    claim = replace(report.claim, token=token)
    return replace(report, claim=claim, end=replace(report.end, claim=claim) if report.end else None)
