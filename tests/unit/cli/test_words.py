"""What commands say, as pure functions: why an experiment stands still, how long, how fast, what a change would do."""

from __future__ import annotations

from typing import Any

import pytest

from pyexp_daemon.cli import change, status
from pyexp_daemon.cli.live import Pace, summary
from pyexp_daemon.cli.times import iso_time, show_duration
from pyexp_daemon.cli.why import Facts, explain
from pyexp_daemon.model import Daemon
from pyexp_daemon.store.edits import Seen
from pyexp_daemon.store.reads import Place

TRIES = {"error": 1, "timeout": 1, "stalled": 2, "crash": 3, "lost": 20}


def make_place(**overrides: Any) -> Place:
    return Place(
        **{
            "queue": "default",
            "order": 0,
            "attempt": 1,
            "tries": None,
            "not_before": None,
            "daemon": None,
            "has_token": False,
            "cancel": False,
            "ahead": 0,
            **overrides,
        }
    )


def make_daemon(**overrides: Any) -> Daemon:
    return Daemon(
        **{
            "id": 5,
            "incarnation": "a" * 32,
            "name": "node-1",
            "host": "node",
            "host_id": "h",
            "boot_id": "b",
            "pid": 123,
            "pid_start": "1",
            "version": "1",
            "slots": 2,
            "state": "live",
            "beat": 1,
            "lease_s": 60.0,
            "started": 0.0,
            "beat_at": 998.0,
            **overrides,
        }
    )


def make_facts(status: str, *, place: Place | None = None, daemons: list[Daemon] | None = None, **more: Any) -> Facts:
    return Facts(
        id=7,
        status=status,
        now=1000.0,
        place=place or make_place(),
        attempts=more.get("attempts", []),
        daemons=daemons or [],
        tries=TRIES,
    )


LIVE = make_daemon()
HELD = make_place(daemon=5, has_token=True)
CRASHED = [{"outcome": "crash"}]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (make_facts("created"), "It is the next one of queue default; no daemon is live: pyexpd run starts one."),
        (make_facts("created", place=make_place(ahead=3), daemons=[LIVE]), "3 experiments of queue default come first"),
        (
            make_facts("waiting", place=make_place(not_before=1020.0, tries='{"crash": 2}'), attempts=CRASHED),
            "crash for another 20 s, and then runs again (tries: crash 2 of 3); no daemon is live: pyexpd run starts",
        ),
        (make_facts("waiting", place=make_place(not_before=990.0), daemons=[LIVE]), "until a daemon looks again"),
        (make_facts("waiting"), "without a time, so nothing wakes it: pyexpd reset 7"),
        (make_facts("running"), "It runs without a token: PyExperimenter or a person set it to running"),
        (
            make_facts("running", place=HELD, daemons=[LIVE]),
            "daemon node-1 on node (process 123), which gave a sign of",
        ),
        (make_facts("running", place=HELD, daemons=[make_daemon(beat_at=900.0)]), "has been silent for 1 min 40 s"),
        (
            make_facts("running", place=HELD, daemons=[make_daemon(state="dead")]),
            "node-1 on node (process 123) is dead",
        ),
        (make_facts("running", place=HELD), "Its daemon is gone without a trace"),
        (
            make_facts("running", place=make_place(daemon=5, has_token=True, cancel=True), daemons=[LIVE]),
            "It has been asked to stop.",
        ),
        (make_facts("done"), "It is done. pyexpd reset 7 clears its results and runs it again."),
        (make_facts("error", place=make_place(tries='{"error": 1}')), "It failed for good (tries: error 1 of 1)."),
        (make_facts("error"), "It failed for good. pyexpd logs 7"),
        (make_facts("paused"), "Its function paused it"),
        (make_facts("cancelled"), "pyexpd reset 7 brings it back"),
        (make_facts("odd"), "No daemon knows the status 'odd'"),
    ],
)
def test_show_says_why(facts: Facts, words: str) -> None:
    assert words in explain(facts)


def test_show_says_that_a_table_is_not_adopted() -> None:
    facts = Facts(id=7, status="created", now=0.0, place=None, attempts=[], daemons=[], tries=TRIES)
    assert "pyexpd fill" in explain(facts)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"),
        (0.34, "0.3 s"),
        (9.99, "10.0 s"),
        (12.4, "12 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


def test_times_in_documents_are_utc() -> None:
    assert iso_time(1.25) == "1970-01-01T00:00:01.250000Z"
    assert iso_time(None) is None


def test_live_line_tells_speed_and_rest() -> None:
    pace = Pace()
    assert summary(pace, running=0, slots=2) == "running 0 of 2"
    pace.note({"created": 80}, now=0.0)
    assert summary(pace, running=2, slots=2) == "running 2 of 2 · 0 done · 0 error · 80 in all"
    pace.note({"created": 58, "running": 2, "done": 18, "error": 2}, now=10.0)
    assert summary(pace, running=2, slots=2).endswith("18 done · 2 error · 80 in all · 2.0/s · about 30 s left")
    pace.note({"done": 78, "error": 2}, now=40.0)
    assert summary(pace, running=0, slots=2).endswith("80 in all")


def test_live_line_forgets_the_speed_after_a_reset() -> None:
    pace = Pace()
    pace.note({"done": 80}, now=0.0)
    pace.note({"created": 80}, now=5.0)
    assert summary(pace, running=0, slots=2) == "running 0 of 2 · 0 done · 0 error · 80 in all"
    pace.note({"created": 70, "done": 10}, now=10.0)
    assert pace.per_second == 2.0
    pace.note({"created": 70, "done": 10}, now=100.0)
    assert not pace.per_second


def rows(**counts: int) -> list[Seen]:
    statuses = [status for status, count in counts.items() for _ in range(count)]
    return [Seen(id=number, status=status, attempt=1) for number, status in enumerate(statuses, 1)]


def test_reset_says_what_is_lost() -> None:
    found = rows(done=2, error=1, created=3, running=1, odd=1)
    preview = change._preview_reset(found, also_running=False)
    assert preview.lines == [
        "resets 4 experiments: 2 done, 1 error, 1 odd",
        "clears the results of 2 done experiments",
        "leaves alone 3 created experiments",
        "leaves alone 1 running experiment (--running resets them, too)",
    ]
    preview = change._preview_reset(found, also_running=True)
    assert preview.lines[:3] == [
        "resets 5 experiments: 1 running, 2 done, 1 error, 1 odd",
        "clears the results of 2 done experiments",
        "throws away what is being computed by 1 running experiment",
    ]


def test_cancel_leaves_what_is_over() -> None:
    preview = change._preview_cancel(
        rows(created=1, waiting=1, running=1, done=1, error=1, paused=1, cancelled=1, odd=1)
    )
    assert [row.status for row in preview.chosen] == ["created", "waiting", "running", "error", "paused"]
    assert preview.lines[1:] == [
        "stops 1 running experiment",
        "leaves alone 1 done experiment",
        "leaves alone 1 cancelled experiment",
        "leaves alone 1 odd experiment",
    ]


def test_delete_leaves_what_runs() -> None:
    preview = change._preview_delete(rows(done=1, running=1))
    assert [row.status for row in preview.chosen] == ["done"]
    assert preview.lines[-1] == "leaves alone 1 running experiment (cancel them first)"


def test_a_status_in_other_capitals_is_shown_apart_with_its_right_spelling() -> None:
    lines = status.describe(status.Overview(counts={"done": 2, "DONE": 1, "odd": 1}, adopted=True))
    assert lines[:4] == [
        "        2  done",
        "        1  DONE (put there by hand; the status is written done)",
        "        1  odd (put there by hand; no daemon takes it)",
        "        4  in all",
    ]
