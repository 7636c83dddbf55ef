"""`docs/performance.md`, made of the figures of one or several runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.series import text

Figures = Mapping[str, Any]
Row = Mapping[str, Any]

INTRODUCTION = """\
# Performance

Written by `python -m benchmarks --json FIGURES --page docs/performance.md`; do not edit it by hand. `make bench`
measures everything, `make bench ARGS="peers claims --json FIGURES"` some of it, and keeps in FIGURES what was measured
before.

**How it is measured.** Everything runs on one machine, the database server too, with files on its disk and nothing
bought with durability: SQLite with `synchronous=FULL`, MariaDB as it is by default (the log is flushed at every
commit). What is compared is measured in turn, in one run: a figure alone says as much about the machine, and who else
used it just then, as about the software; a ratio of two that were taken side by side says more. Figures are medians of
all repeats."""

SECTIONS: Mapping[str, tuple[str, str]] = {
    "throughput": (
        "Experiments per second",
        """From the start of `pyexpd run` to its end, two slots. The realistic function stores three results by
`process_results`, which returns when they are durable, and every tenth time a log row.""",
    ),
    "hotspots": (
        "Where the time goes",
        """Samples of the thread that holds the interpreter's lock in the daemon, in percent, by the innermost function
of ours. A no-op keeps the daemon busy all the time; the realistic function makes it wait for commits, too.""",
    ),
    "costs": (
        "What a thousand experiments ask of the database",
        "The server's own figures; for SQLite strace counts.",
    ),
    "claims": (
        "Claims in large tables",
        """Medians of a claim of 32 in a small table and in a large one, in turn; at last beside a transaction that
keeps its view of the table open while 50,000 experiments are claimed. A random place of a large table lies on pages
that MariaDB has to read first: by default its buffer pool holds 128 MiB.""",
    ),
    "filling": ("Filling", "`pyexpd fill` of a new table, and the same again; the start of the command included."),
    "status": (
        "Status",
        """`pyexpd status --json` of a table nine tenths of which are done, and its parts. `bare s` is what `pyexpd
--version` takes. MySQL and MariaDB count by reading one entry of an index for each experiment.""",
    ),
    "fleet": ("Fleets at work", "Daemons that speak the real protocol through the real store, and run nothing."),
    "idle": ("Idle fleets", "What they ask of their server, per second, over a minute."),
    "latency": ("Latency", "From a command to the first line of the function."),
    "busy": (
        "Busy slots",
        """Experiments that sleep for 0.1 s: the share of the time in which a slot has one, and in which it sleeps.""",
    ),
    "imports": (
        "A slow import",
        """A function whose module takes two seconds to import, and one whose store takes two to make: each of the two
slots does that once.""",
    ),
    "merging": (
        "Merging",
        "`pyexpd db merge` of finished experiments with three log rows each, and the same again.",
    ),
    "snapshots": (
        "Large snapshots",
        """An experiment saves a state and reads it back in its next attempt, beside a heart that beats every 0.2 s:
the longest time between two beats that others see is that of the whole run.""",
    ),
    "endurance": ("Memory over many experiments", "The daemon's resident memory at each tenth of them."),
    "footprint": ("Start and rest", "Commands, imports, and a daemon without work."),
}
"""Of each benchmark its heading, and what its figures are."""


def page(figures: Figures) -> str:
    """The whole page; parts that were not measured are left out and named at the end."""
    parts = [INTRODUCTION, _machine(figures["machine"])]
    if "peers" in figures:
        parts += _side_by_side(figures)
    for name, (heading, what) in SECTIONS.items():
        if name in figures:
            parts += [f"## {heading}", what, *_table(figures[name])]
    missing = [heading for name, (heading, _) in SECTIONS.items() if name not in figures]
    if missing:
        parts += ["## Not measured yet", f"{', '.join(missing)}."]
    return "\n\n".join(parts) + "\n"


def _machine(machine: Row) -> str:
    load = ", ".join(f"{each:.1f}" for each in machine["load_before"])
    return (
        f"**Where.** {machine['cores']} cores, {machine['architecture']}, Python {machine['python']},"
        f" SQLite {machine['sqlite']}; {machine['date']}; load before it {load}."
    )


def _side_by_side(figures: Figures) -> Iterator[str]:
    yield "## Side by side"
    yield (
        "Experiments per second with two processes, from the start of the worker to the last result stored. The limits"
        " are of the same machine in the same minutes; what each system does is said in `benchmarks/peers/`."
    )
    heads = ["", "version", "function", "database", "per second", "least", "most"]
    yield _markdown(heads, [_rates(row) for row in figures["peers"]])
    yield "The limits:"
    yield _markdown(heads, [_rates(row) for row in figures["probes"]])
    yield "Our aims, by the median of the ratios of each repeat:"
    yield _markdown(["", "aim", "ratio", "least", "most"], [_aim(row) for row in figures["bars"]])
    yield from _limit_of_realistic(figures)
    notes = [
        f"{row['what']} ({row['workload']}): {note}"
        for row in figures["peers"]
        for note in [*([row["skipped"]] if row["skipped"] else []), *row["failures"]]
    ]
    if notes:
        yield "\n".join(f"* {note}" for note in notes)


def _limit_of_realistic(figures: Figures) -> Iterator[str]:
    """How far from the limit of its parts the function is that stores results: it waits for a commit."""
    rates = {
        (row["what"], row["workload"], row["database"]): row["per_second"]["median"]
        for row in [*figures["peers"], *figures["probes"]]
        if row["per_second"]
    }
    for database, name in (("sqlite", "SQLite"), ("mariadb", "MariaDB")):
        noop, ours = (rates.get(("pyexp_daemon", workload, database)) for workload in ("noop", "realistic"))
        commit = rates.get(("one-row commit", "realistic", database))
        call = rates.get(("bare slot call", "realistic", ""))
        if noop and ours and commit and call:
            limit = 1 / (1 / noop + 1 / call + 1 / (2 * commit))
            yield (
                f"On {name} the realistic function does {ours / noop:.2f} of the no-op's {text(noop)}/s. It waits until"
                f" its results are on disk, so that with two slots a commit carries two experiments at most. What"
                f" it adds to a no-op is at least a second message and its answer, as a bare slot call has them"
                f" ({text(call)}/s), and half a commit of one row ({text(commit)}/s): {text(limit)}/s in all, or"
                f" {limit / noop:.2f}. The rest of the way is Python in the daemon, one step after the other while both"
                f" functions wait; see below where the time goes."
            )


def _rates(row: Row) -> list[str]:
    rates = row["per_second"] or {}
    figures = [text(rates.get(name)) for name in ("median", "min", "max")]
    return [row["what"], row["version"], row["workload"], row["database"], *figures]


def _aim(row: Row) -> list[str]:
    ratio = row["ratio"] or {}
    figures = [text(ratio.get(name)) for name in ("median", "min", "max")]
    return [row["what"], f"≥ {row['least']:g}", *(figures if row["reached"] else [f"**{figures[0]}**", *figures[1:]])]


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """One table for all rows with the same figures."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        flat = _flat(row)
        alike.setdefault(tuple(flat), []).append(flat)
    for names, found in alike.items():
        heads = ["" if name == "what" else name.replace("_", " ") for name in names]
        yield _markdown(heads, [[_cell(row[name]) for name in names] for row in found])


def _flat(row: Row) -> dict[str, Any]:
    """A row in which figures that have names stand beside the others."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return text(value) if isinstance(value, int | float) else str(value)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
