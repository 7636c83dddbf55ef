"""What a daemon is told, by signals and through the database: carried out once, answered, and nothing charged."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.project import HUP, PYEXPD, TERM, Project, is_alive
from tests.helpers import wait_until

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
Make = Callable[..., Project]
SHORT = {"heartbeat": "200ms", "lease": "3s", "drain_timeout": "1s"}

SLOW = """
def slow(keyfields, rp, custom):
    note(custom, "start", rp)
    while custom["gated"] and not os.path.exists(custom["journal"] + ".go"):
        time.sleep(0.02)
    time.sleep(custom["seconds"])
    note(custom, "end", rp)
    return {"y": custom.get("y", 1.0)}
"""


def make_slow(make_project: Make, *, seconds: float, rows: int = 4, gated: bool = False, **options: Any) -> Project:
    """A project whose experiments take so long, from when the gate is open; its daemons beat five times a second."""
    project = make_project(
        rows=rows,
        function="slow",
        custom={"seconds": seconds, "gated": gated},
        daemon=SHORT | options.pop("daemon", {}),
        limits={"grace": "1s"} | options.pop("limits", {}),
        **options,
    )
    with (project.folder / "experiments.py").open("a") as file:
        file.write(SLOW)
    project.fill()
    return project


def change_config(project: Project, old: str, new: str) -> None:
    text = project.config.read_text()
    assert old in text, text
    rewrite(project, text.replace(old, new))


def rewrite(project: Project, text: str) -> None:
    """Another configuration, in one step: a daemon that was told to read it may do so at any moment."""
    fresh = project.config.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(project.config)


def started(project: Project, count: int = 1) -> None:
    wait_until(lambda: sum(note[0] == "start" for note in project.notes()) >= count, timeout=120, what="runs")


def names(project: Project, event: str, daemon: str = "*") -> list[dict[str, Any]]:
    return [entry for entry in project.events(daemon) if entry["event"] == event]


def told(project: Project, *arguments: str) -> str:
    answer = project.pyexpd("daemon", *arguments)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def uncharged(project: Project) -> bool:
    return project.database.query("SELECT COUNT(*) FROM exp WHERE pyexpd_tries IS NOT NULL") == [(0,)]


@both
def test_usr1_finishes_what_runs_however_long_that_takes(make_project: Make) -> None:
    project = make_slow(make_project, seconds=1.5, gated=True)  # longer than a drain with a deadline would wait
    with project.daemon("--slots", "2", "--name", "d") as daemon:
        started(project, 2)
        children = project.children_of(daemon)
        daemon.send_signal(signal.SIGUSR1)
        wait_until(lambda: project.database.query("SELECT state FROM exp__pyexpd_daemons") == [("draining",)])
        project.open_gate()
        assert project.end(daemon) == 0
    assert project.statuses() == {"done": 2, "created": 2}
    assert uncharged(project)
    assert not [pid for pid in children if is_alive(pid)]
    assert names(project, "daemon.draining")[0]["deadline_s"] is None


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_what_is_said_when_everything_is_written_changes_nothing(make_project: Make) -> None:
    """Not even while the process ends, whichever of its threads hears it."""
    project = make_slow(make_project, seconds=0.05)
    with project.daemon("--until-empty", "--slots", "1") as process:
        wait_until(lambda: names(project, "daemon.stopped"), timeout=120, interval=0.001)
        while process.poll() is None:
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
                process.send_signal(number)
            time.sleep(0.0005)
    assert process.returncode == 0


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_reload_during_the_sign_off_leaves_the_signals_to_the_daemon(make_project: Make) -> None:
    """There are no slots any more that could be started anew, and what comes after it is heard as well."""
    project = make_slow(make_project, seconds=0.05)
    gate = project.folder / "gate"
    with project.daemon("--until-empty", "--slots", "1", PYEXPD_FAILPOINTS=f"close.commit=wait:{gate}") as daemon:
        wait_until(Path(f"{gate}.reached").exists)
        daemon.send_signal(signal.SIGHUP)
        wait_until(lambda: names(project, "config.reloaded"))
        daemon.send_signal(TERM)
        wait_until(lambda: len(names(project, "signal.received")) == 2)
        gate.touch()
        assert project.end(daemon) == 0
    assert not names(project, "service.failed")


@both
def test_a_daemon_that_drains_beats_until_what_runs_has_ended(make_project: Make) -> None:
    """Else the others would find it dead, and run again what it finishes."""
    project = make_slow(make_project, seconds=60)

    def beat() -> int:
        return int(project.database.query("SELECT beat FROM exp__pyexpd_daemons")[0][0])

    with project.daemon("--slots", "2") as daemon:
        started(project, 2)
        daemon.send_signal(signal.SIGUSR1)
        wait_until(lambda: project.database.query("SELECT state FROM exp__pyexpd_daemons") == [("draining",)])
        seen = beat()
        wait_until(lambda: beat() > seen + 2, what="three more heartbeats")
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0


@both
def test_term_after_usr1_sets_a_deadline(make_project: Make) -> None:
    project = make_slow(make_project, seconds=60)
    with project.daemon("--slots", "2") as daemon:
        started(project, 2)
        daemon.send_signal(signal.SIGUSR1)
        wait_until(lambda: names(project, "daemon.draining"))
        began = time.monotonic()
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
        assert time.monotonic() - began > 0.9  # drain_timeout, not at once
    assert project.statuses() == {"created": 4}
    assert {outcome for _, _, outcome in project.attempts()} == {"released"}
    assert uncharged(project)


@both
@pytest.mark.parametrize("how", ["signal", "command"])
def test_a_reset_hands_back_uncharged_and_goes_on_with_fresh_code_as_another_incarnation(
    make_project: Make, how: str
) -> None:
    project = make_slow(make_project, seconds=60)
    with project.daemon("--slots", "2", "--name", "d", "--until-empty") as daemon:
        started(project, 2)
        children = project.children_of(daemon)
        code = project.folder / "experiments.py"
        code.write_text(code.read_text().replace('custom.get("y", 1.0)', "7.0"))
        change_config(project, "seconds: 60", "seconds: 0.01")
        if how == "signal":
            daemon.send_signal(signal.SIGUSR2)
        else:
            assert told(project, "reset", "d") == "d: resetting, 2 running are handed back\n"
        assert project.end(daemon) == 0
        assert not [pid for pid in children if is_alive(pid)]
    assert project.database.query("SELECT DISTINCT status, y FROM exp") == [("done", 7.0)]
    assert [outcome for _, attempt, outcome in project.attempts() if attempt == 1].count("released") == 2
    assert uncharged(project)
    rows = project.database.query("SELECT id, state, pid FROM exp__pyexpd_daemons ORDER BY id")
    assert [row[:2] for row in rows] == [(1, "stopped"), (2, "stopped")]
    assert rows[0][2] == rows[1][2]  # the same process
    assert len(names(project, "daemon.reset")) == 1


@both
@pytest.mark.parametrize("how", ["signal", "command"])
def test_a_reload_takes_over_what_it_can_names_the_rest_and_disturbs_nothing(make_project: Make, how: str) -> None:
    project = make_slow(make_project, seconds=1.5, rows=3, gated=True)
    with project.daemon("--slots", "1", "--name", "d", "--until-empty") as daemon:
        started(project)
        change_config(project, "seconds: 1.5", "seconds: 0.01\n    y: 5.0")
        change_config(project, "lease: 3s", "lease: 4s")
        (project.folder / ".pyexpd/exp/daemon-d.jsonl").rename(project.folder / ".pyexpd/exp/daemon-moved.jsonl")
        if how == "signal":
            daemon.send_signal(HUP)
        else:
            answer = told(project, "reload", "d")
            assert answer == "d: changed: Custom; needs a restart: Daemon.lease\n"
        wait_until(lambda: names(project, "config.reloaded"), what="a reload")
        project.open_gate()
        assert project.end(daemon) == 0
    (reloaded,) = names(project, "config.reloaded")
    assert (reloaded["changed"], reloaded["needs_restart"]) == (["Custom"], ["Daemon.lease"])
    assert project.database.query("SELECT y FROM exp ORDER BY ID") == [(1.0,), (5.0,), (5.0,)]
    assert {outcome for _, _, outcome in project.attempts()} == {"done"}
    assert names(project, "daemon.stopped", "d")  # in a new file of the old name


@both
def test_a_configuration_that_is_broken_is_refused_and_the_old_one_holds(make_project: Make) -> None:
    project = make_slow(make_project, seconds=0.3)
    good = project.config.read_text()
    with project.daemon("--slots", "1", "--name", "d") as daemon:
        started(project)
        change_config(project, "lease: 3s", "laese: 3s")
        broken = project.config.read_text()
        rewrite(project, good)  # for the command, which reads it as well
        commands = [["daemon", "reload", "d", "--no-wait"]]
        assert project.pyexpd(*commands[0]).returncode == 0
        rewrite(project, broken)
        daemon.send_signal(HUP)
        wait_until(lambda: names(project, "config.refused"), what="refusal")
        rewrite(project, good)
        project.wait_for(done=4)
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    assert "laese" in names(project, "config.refused")[0]["error"]


@both
def test_pause_and_resume(make_project: Make) -> None:
    project = make_slow(make_project, seconds=0.5, rows=6, gated=True)
    with project.daemon("--slots", "1", "--name", "d", "--until-empty") as daemon:
        started(project)
        assert told(project, "pause", "d").startswith("d: paused, ")
        project.open_gate()
        wait_until(lambda: "running" not in project.statuses(), what="what ran has ended")
        wait_until(  # with its next beat
            lambda: json.loads(told(project, "list", "--json"))[0]["state"] == "paused", interval=0.1, what="it says so"
        )
        (row,) = json.loads(told(project, "list", "--json"))
        assert row["paused"].startswith("paused by ")
        assert row["command"]["command"] == "pause"
        assert row["command"]["answered"] is not None
        begun = len(project.notes())
        assert "claims nothing: paused by" in project.pyexpd("status").stdout
        assert len(project.notes()) == begun
        assert told(project, "resume", "--all") == "d: resumed\n"
        assert project.end(daemon) == 0
    assert project.statuses() == {"done": 6}
    assert uncharged(project)


@both
@pytest.mark.parametrize("order", ["drain", "stop"])
def test_drain_and_stop_from_any_node(make_project: Make, order: str) -> None:
    project = make_slow(make_project, seconds=1.5, rows=4, gated=True, daemon={"lease": "30s"})
    with (
        project.daemon("--slots", "1", "--name", "one") as one,
        project.daemon("--slots", "1", "--name", "two", PYEXPD_HOST_ID="elsewhere") as two,
    ):
        started(project, 2)
        answers = told(project, order, "--all").splitlines()
        assert [line.split(",")[0] for line in sorted(answers)] == [
            f"{name}: {'draining' if order == 'drain' else 'stopping'}" for name in ("one", "two")
        ]
        if order == "drain":
            project.open_gate()
        assert (project.end(one), project.end(two)) == (0, 0)
    done = project.statuses().get("done", 0)
    assert done == (2 if order == "drain" else 0)
    assert project.statuses() == {status: n for status, n in (("done", done), ("created", 4 - done)) if n}
    assert uncharged(project)
    everybody = json.loads(told(project, "list", "--all", "--json"))
    assert [row["state"] for row in everybody] == ["stopped", "stopped"]
    assert all(row["command"]["answer"] for row in everybody)


@both
def test_a_command_is_carried_out_once_however_often_it_is_heard(make_project: Make) -> None:
    """Its answer is lost and the row stands unanswered: only the answer is repeated."""
    project = make_slow(make_project, seconds=60)
    with project.daemon("--slots", "1", "--name", "d") as daemon:
        started(project)
        told(project, "reset", "d")
        wait_until(lambda: names(project, "daemon.reset"), what="a reset")
        for _ in range(2):
            project.database.query("UPDATE exp__pyexpd_commands SET answered = NULL, answer = NULL")
            wait_until(
                lambda: (
                    project.database.query("SELECT COUNT(*) FROM exp__pyexpd_commands WHERE answered IS NULL") == [(0,)]
                ),
                what="the answer again",
            )
        assert len(names(project, "daemon.reset")) == 1
        assert len(names(project, "command.received")) == 1
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0


@both
def test_ttin_dumps_what_the_daemon_is_doing(make_project: Make) -> None:
    project = make_slow(make_project, seconds=60, rows=2)
    with project.daemon("--slots", "2", "--name", "d") as daemon:
        started(project, 2)
        daemon.send_signal(signal.SIGTTIN)
        wait_until(lambda: names(project, "daemon.dump"), what="a dump")
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    (dump,) = names(project, "daemon.dump")
    assert sorted(slot["experiment_id"] for slot in dump["slots"]) == [1, 2]
    assert {"heartbeat", "MainThread"} <= set(dump["threads"])
    assert any("heartbeat.py" in line for line in dump["threads"]["heartbeat"])
    assert 0 < dump["lease_left_s"] <= 3


def lead_terminal() -> None:
    """Make the terminal at stdin that of a session which this process leads."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@both
def test_a_terminal_that_is_closed_sends_hup_and_the_daemon_works_on(make_project: Make) -> None:
    """The daemon leads the session of a pseudo-terminal whose other end is closed: the kernel sends HUP."""
    project = make_slow(make_project, seconds=0.3, rows=8)
    parent, child = pty.openpty()
    daemon = subprocess.Popen(
        [PYEXPD, "run", "--slots", "1", "--name", "d", "--until-empty"],
        cwd=project.folder,
        stdin=child,
        stdout=child,
        stderr=child,
        preexec_fn=lead_terminal,  # noqa: PLW1509 nothing else runs threads here
    )
    os.close(child)
    try:
        started(project)
        os.close(parent)
        assert daemon.wait(timeout=120) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
    assert project.statuses() == {"done": 8}
    assert "SIGHUP" in {entry["signal"] for entry in names(project, "signal.received")}


@both
def test_a_step_of_the_schema_that_breaks_with_us_drains_us(make_project: Make) -> None:
    project = make_slow(make_project, seconds=0.8, daemon={"drain_timeout": "60s"})
    with project.daemon("--slots", "1", "--name", "d") as daemon:
        started(project)
        project.database.query("UPDATE exp__pyexpd_meta SET value = '99'")
        assert project.end(daemon) == 69
    assert "was upgraded: it needs schema 99" in project.last_output
    assert project.statuses()["done"] >= 1  # what ran came to its end
    assert uncharged(project)


@both
def test_orders_to_nobody_are_errors_in_one_line(make_project: Make) -> None:
    project = make_slow(make_project, seconds=0)
    nobody = project.pyexpd("daemon", "stop", "--all")
    assert (nobody.returncode, nobody.stderr.splitlines()[0]) == (64, "pyexpd: no daemon is live")
    for arguments in (["stop"], ["stop", "d", "--all"]):
        refused = project.pyexpd("daemon", *arguments)
        assert refused.returncode == 64
        assert "takes names of daemons, or --all" in refused.stderr
    with project.daemon("--name", "d") as daemon:
        wait_until(lambda: names(project, "daemon.started"), timeout=120)
        unknown = project.pyexpd("daemon", "pause", "e")
        assert unknown.returncode == 64
        assert unknown.stderr.splitlines() == ["pyexpd: no daemon e is live", "  live are: d"]
        assert project.pyexpd("daemon", "stop", "d", "--dry-run").stdout == "would ask d to stop\n"
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    assert not names(project, "command.received")


@both
def test_a_daemon_that_does_not_hear_is_named(make_project: Make) -> None:
    """Only the one that asked is told; the command stands."""
    project = make_slow(make_project, seconds=60)
    with project.daemon("--slots", "1", "--name", "d") as daemon:
        started(project)
        project.freeze(daemon)
        asked = project.pyexpd("daemon", "pause", "d")
        daemon.send_signal(signal.SIGCONT)
        assert asked.returncode == 1
        assert "no answer from d" in asked.stderr
        wait_until(lambda: names(project, "command.received"), what="the command all the same")
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0


@both
def test_a_reload_whose_import_hangs_keeps_nobody_from_the_next_command(make_project: Make) -> None:
    project = make_slow(make_project, seconds=0)
    with project.daemon("--slots", "1", "--name", "d") as daemon:
        project.wait_for(done=4)
        code = project.folder / "experiments.py"
        code.write_text(f"import time\ntime.sleep(600)\n{code.read_text()}")
        assert told(project, "reload", "d").startswith("d: nothing changed")
        assert told(project, "stop", "d").startswith("d: stopping")
        assert project.end(daemon) == 0


@both
@pytest.mark.parametrize("delay_s", [0.005, 0.02, 0.03, 0.1])
def test_whatever_comes_amid_a_reset_a_daemon_ends_when_it_is_told(make_project: Make, delay_s: float) -> None:
    """The reset closes connections beside services that use them; a second one, or a stop, may cut it short."""
    project = make_slow(make_project, seconds=60)
    with project.daemon("--slots", "2", "--name", "d") as daemon:
        started(project, 2)
        for number in (signal.SIGUSR2, signal.SIGUSR2, TERM):
            daemon.send_signal(number)
            time.sleep(delay_s)
        assert project.end(daemon) == 0
    assert project.statuses() == {"created": 4}
    assert uncharged(project)
    assert not names(project, "service.failed")
    states = project.database.query("SELECT DISTINCT state FROM exp__pyexpd_daemons")
    assert states == [("stopped",)]
