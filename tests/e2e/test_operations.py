"""What keeps a fleet running: notices, metrics, cleaning, a full disk, a late start, GPUs, by the installed command."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pyexp_daemon.cli import clean, main
from tests.e2e.project import HUP, INT, KILL, TERM, Project
from tests.helpers import wait_until, whole_lines

Make = Callable[..., Project]

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)

TELL = "cat >> told; echo >> told"
PROMPT = {"heartbeat": "500ms", "lease": "6s"}


def told(project: Project) -> list[dict[str, Any]]:
    """What `on_event` was told, but for the time."""
    path = project.folder / "told"
    lines = whole_lines(path) if path.exists() else []
    messages = [json.loads(line) for line in lines if line]
    for message in messages:
        assert message.pop("time")
        assert message.pop("table") == "exp"
        assert message.pop("host")
    return messages


def reconfigure(project: Project, **daemon: Any) -> None:
    content = yaml.safe_load(project.config.read_text())
    content["PY_EXPERIMENTER"]["Daemon"] |= daemon
    project.config.write_text(yaml.safe_dump(content))


def names(project: Project) -> list[str]:
    return [event["event"] for event in project.events()]


@both
def test_the_end_of_a_table_is_told_once_by_all_daemons_together(make_project: Make) -> None:
    """Also by a daemon that ends with it; experiments that failed for good are told, those that are tried again not."""
    project = make_project(
        function="mixed", rows=6, daemon={"on_event": TELL}, limits={"tries": {"crash": 2}}, n_jobs=1
    )
    project.fill()
    with (
        project.daemon("--until-empty", "--name", "a") as one,
        project.daemon("--until-empty", "--name", "b") as other,
    ):
        assert (project.end(one), project.end(other)) == (0, 0)
    finished = [message for message in told(project) if message["event"] == "finished"]
    assert [(message["count"], message["details"]) for message in finished] == [
        (1, [{"experiments": {"done": 1, "error": 5}}])
    ]
    failing = [message for message in told(project) if message["event"] == "failing"]
    assert sum(message["count"] for message in failing) == 5
    details = {detail["experiment_id"]: detail for message in failing for detail in message["details"]}
    assert details[4] == {"experiment_id": 4, "outcome": "error", "error": "ValueError: no such luck"}
    assert details[1]["outcome"] == "crash"
    assert len(failing) <= 4  # at most one at the start and one at the end of each daemon


@on_sqlite
def test_a_daemon_that_is_about_to_tell_when_it_is_stopped_tells(make_project: Make) -> None:
    project = make_project(rows=1, daemon={"on_event": TELL})
    project.fill()
    gate = project.folder / "gate"
    with project.daemon("--name", "a", PYEXPD_FAILPOINTS=f"be_first.commit=wait:{gate}") as daemon:
        wait_until(Path(f"{gate}.reached").exists, timeout=120)
        daemon.send_signal(TERM)
        wait_until(lambda: "signal.received" in names(project), timeout=120)
        time.sleep(0.3)  # until it has come to its last look
        gate.touch()
        assert project.end(daemon) == 0
    assert [message["event"] for message in told(project)] == ["finished"]


@on_sqlite
def test_a_function_that_cannot_be_imported_is_told(make_project: Make) -> None:
    project = make_project(function="missing", daemon={"on_event": ["sh", "-c", TELL]})
    project.fill()
    with project.daemon("--name", "a") as daemon:
        (message,) = wait_until(lambda: told(project), timeout=120)
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    assert (message["event"], message["daemon"], message["count"]) == ("paused", "a", 1)
    assert "missing" in message["details"][0]["reason"]


@on_mariadb
def test_the_death_of_a_daemon_is_told(make_project: Make) -> None:
    project = make_project(rows=2, custom={"seconds": 60}, daemon={**PROMPT, "on_event": TELL}, n_jobs=1)
    project.fill()
    with (
        project.daemon("--name", "victim", PYEXPD_HOST_ID="elsewhere") as victim,
        project.daemon("--name", "witness", "--slots", "1"),
    ):
        project.wait_for(running=2)
        victim.send_signal(KILL)
        (message,) = wait_until(lambda: told(project), timeout=120)
    assert (message["event"], message["daemon"]) == ("lost", "witness")
    assert (message["details"][0]["daemon"], message["details"][0]["pid"]) == ("victim", victim.pid)


@on_sqlite
def test_a_command_that_fails_or_hangs_disturbs_nobody(make_project: Make) -> None:
    """Without secrets in its environment; the end of a daemon waits for it five seconds and no longer."""
    project = make_project(rows=3, daemon={"on_event": "env > environment; sleep 600"})
    project.fill()
    done = project.pyexpd("run", "--until-empty", PYEXPD_MYSQL_PASSWORD="hunter2")  # it would wait for ten minutes
    assert done.returncode == 0
    assert project.statuses() == {"done": 3}
    assert "notice.failed" in names(project)
    assert "hunter2" not in (project.folder / "environment").read_text()


@both
def test_a_daemon_without_room_claims_nothing_until_there_is_some(make_project: Make) -> None:
    """More than any disk has is asked for; HUP reads the configuration again."""
    project = make_project(rows=3, daemon={**PROMPT, "least_disk": "9000TiB"})
    project.fill()
    with project.daemon("--name", "a") as daemon:
        wait_until(lambda: "disk.low" in names(project), timeout=120)
        wait_until(lambda: "disk nearly full" in project.pyexpd("status").stdout, timeout=120, interval=0.1)
        assert project.statuses() == {"created": 3}
        reconfigure(project, least_disk="1MiB")
        daemon.send_signal(HUP)
        project.wait_for(done=3)
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    assert [name for name in names(project) if name.startswith("disk.")] == ["disk.low", "disk.enough"]
    assert project.notes()[0][0] == "start"


@on_sqlite
@pytest.mark.parametrize("number", [TERM, INT])
def test_a_daemon_that_waits_to_start_ends_at_once(make_project: Make, number: signal.Signals) -> None:
    """It has not asked the database yet: it does not matter whether there is one. HUP does not end it."""
    project = make_project(daemon={"start_jitter": "1000000h"})
    with project.daemon() as daemon:
        output = project.folder / "daemon-output-0"
        wait_until(lambda: "s (Daemon.start_jitter)" in output.read_text(), timeout=120)
        daemon.send_signal(HUP)
        daemon.send_signal(number)
        assert project.end(daemon) == 0
    assert not project.database.path.exists()


@on_sqlite
def test_a_short_wait_before_the_start(make_project: Make) -> None:
    project = make_project(rows=2, daemon={"start_jitter": "50ms"})
    project.fill()
    done = project.pyexpd("run", "--until-empty")
    assert (done.returncode, project.statuses()) == (0, {"done": 2})


def samples(text: str) -> dict[tuple[str, str], float]:
    """By name, and the label that tells most."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = sample.labels.get("status") or sample.labels.get("outcome") or sample.labels.get("daemon") or ""
            found[sample.name, label] = sample.value
    return found


@both
def test_metrics_of_a_fleet_at_work_and_after(make_project: Make) -> None:
    project = make_project(rows=2, function="long_first_time", daemon={**PROMPT, "drain_timeout": "0s"}, n_jobs=2)
    project.fill()
    file = project.folder / "pyexpd.prom"
    file.write_text("the one of before")
    with project.daemon("--name", "a") as daemon:
        project.wait_for(running=2)

        def now() -> dict[tuple[str, str], float]:
            done = project.pyexpd("metrics", "-o", str(file))
            assert (done.returncode, done.stdout) == (0, "")
            return samples(file.read_text())

        wait_until(lambda: now()["pyexpd_slots_busy", "a"] == 2, timeout=120)
        found = now()
        assert found["pyexpd_experiments", "running"] == 2
        assert 0 <= found["pyexpd_oldest_running_seconds", ""] < 60
        assert (found["pyexpd_slots", "a"], found["pyexpd_daemon_paused", "a"]) == (2, 0)
        assert found["pyexpd_daemon_beat_age_seconds", "a"] < 10
        assert file.stat().st_mode & 0o044 == 0o044 & ~_umask()
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    assert project.pyexpd("run", "--until-empty").returncode == 0
    done = project.pyexpd("metrics")
    found = samples(done.stdout)
    assert done.stdout.endswith("\n")
    assert (found["pyexpd_experiments", "done"], found["pyexpd_attempts_total", "done"]) == (2, 2)
    assert found["pyexpd_attempts_total", "released"] == 2
    assert found["pyexpd_done_last_minute", ""] == 2
    assert ("pyexpd_slots", "a") not in found
    assert list(project.folder.glob(".pyexpd.prom*")) == []


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@on_sqlite
def test_metrics_leave_the_old_file_when_there_is_no_table(make_project: Make) -> None:
    project = make_project()
    file = project.folder / "pyexpd.prom"
    file.write_text("the one of before")
    done = project.pyexpd("metrics", "-o", str(file))
    assert done.returncode == 74
    assert file.read_text() == "the one of before"


@pytest.fixture
def aged(make_project: Make) -> Project:
    """Five experiments, done in their second attempt, by a daemon that ended; all of it 40 days ago but the last."""
    project = make_project(function="fails_once", limits={"tries": {"error": 2}}, n_jobs=1)
    with (project.folder / "experiments.py").open("a") as functions:
        functions.write(
            "\n\ndef fails_once(keyfields, rp, custom):\n"
            "    print('hello', flush=True)\n"
            "    open(rp.workdir / 'model', 'w').write('mine')\n"
            "    if rp.attempt == 1:\n"
            "        raise ValueError('not yet')\n"
        )
    project.fill()
    done = project.pyexpd("run", "--until-empty", "--name", "old")
    assert done.returncode == 0, done.stderr
    assert project.statuses() == {"done": 5}
    for place in (*logs(project), *work(project), *work(project, "*/*"), *locks()):
        if place.name not in ("5", "5-1.log", "5-2.log") and place.parent.name != "5":
            _age(place)
    for column, table in (("ended", "attempts WHERE experiment_id < 5"), ("beat_at", "daemons WHERE 1 = 1")):
        name, _, where = table.partition(" WHERE ")
        old = f"{column} - 40 * 86400" if project.database.provider == "sqlite" else f"{column} - INTERVAL 40 DAY"
        project.database.query(f"UPDATE exp__pyexpd_{name} SET {column} = {old} WHERE {where}")
    return project


def _age(path: Path) -> None:
    then = time.time() - 40 * 86400
    os.utime(path, (then, then))


def logs(project: Project) -> list[Path]:
    return sorted((project.folder / ".pyexpd" / "exp").glob("*-*.log"))


def work(project: Project, pattern: str = "*") -> list[Path]:
    return sorted((project.folder / ".pyexpd" / "exp" / "work").glob(pattern))


def locks() -> list[Path]:
    return sorted(Path(os.environ["STATE_DIRECTORY"], "names").rglob("*.lock"))


@both
def test_clean_deletes_what_is_old_and_nobody_needs(aged: Project) -> None:
    assert (len(logs(aged)), len(aged.attempts()), len(locks())) == (10, 10, 1)
    columns = "experiment_id, state_id, part, attempt, data"
    aged.database.query(f"INSERT INTO exp__pyexpd_snapshot_parts ({columns}) VALUES (1, 'left', 0, 1, 'x')")
    refused = aged.pyexpd("clean", "--older", "30d")
    assert refused.returncode == 64
    assert "it was not confirmed" in refused.stderr
    dry = json.loads(aged.pyexpd("clean", "--older", "30d", "--dry-run", "--json").stdout)
    assert dry == {
        "dry_run": True,
        "older_seconds": 30 * 86400,
        "logs": {"files": 8, "bytes": sum(path.stat().st_size for path in logs(aged)[:8])},
        "work": {"folders": 0, "bytes": 0},
        "attempts": 4,
        "daemons": 1,
        "commands": 0,
        "snapshots": 0,
        "snapshot_parts": 1,
        "locks": 1,
        "skipped": 0,
    }
    assert (len(logs(aged)), len(aged.attempts()), len(locks())) == (10, 10, 1)
    results = aged.database.query("SELECT * FROM exp ORDER BY ID")
    done = aged.pyexpd("clean", "--older", "30d", "--yes")
    assert done.stdout.startswith("deleted 8 logs (")
    assert ", 1 part of unfinished snapshots, " in done.stdout
    assert aged.database.query("SELECT * FROM exp__pyexpd_snapshot_parts") == []
    assert [path.name for path in logs(aged)] == ["5-1.log", "5-2.log"]
    assert aged.attempts() == [
        *((number, 2, "done") for number in range(1, 5)),
        (5, 1, "error"),
        (5, 2, "done"),
    ]
    assert locks() == []
    assert len(work(aged)) == 5
    assert aged.database.query("SELECT * FROM exp ORDER BY ID") == results
    assert aged.database.query("SELECT COUNT(*) FROM exp__pyexpd_daemons") == [(0,)]
    assert samples(aged.pyexpd("metrics").stdout)["pyexpd_attempts_total", "error"] == 5
    again = aged.pyexpd("clean", "--older", "30d")  # nothing to confirm
    assert again.stdout.startswith("deleted 0 logs (0 B), 0 attempts of done experiments, 0 daemons that ended")


@on_sqlite
def test_clean_deletes_work_only_when_told_and_only_what_is_over(aged: Project) -> None:
    """A folder in which something was changed lately stays; so does that of an experiment that may run again."""
    aged.database.query("UPDATE exp SET status = 'created' WHERE ID = 1")
    (work(aged, "2")[0] / "new").write_text("later")
    done = aged.pyexpd("clean", "--older", "30d", "--work", "--yes")
    assert "2 work folders (" in done.stdout
    assert [path.name for path in work(aged)] == ["1", "2", "5"]


@on_sqlite
def test_clean_skips_what_it_cannot_delete_and_says_so(aged: Project) -> None:
    """A folder in the place of a log is refused to everybody, as a log of another user is to most."""
    odd = aged.folder / ".pyexpd" / "exp" / "1-1.log"
    odd.unlink()
    odd.mkdir()
    _age(odd)
    done = aged.pyexpd("clean", "--older", "30d", "--yes")
    assert done.returncode == 0
    warning = done.stderr.splitlines()[-1]
    assert warning.startswith(f"pyexpd: warning: 1 skipped, for they cannot be read or deleted: {odd}: ")
    assert done.stdout.startswith("deleted 7 logs (")
    assert [path.name for path in logs(aged)] == ["1-1.log", "5-1.log", "5-2.log"]


@on_sqlite
def test_clean_without_a_folder_that_can_be_read_cleans_the_rest(aged: Project) -> None:
    folder = aged.folder / ".pyexpd" / "exp"
    folder.rename(folder.with_name("moved"))
    folder.symlink_to(folder)
    done = aged.pyexpd("clean", "--older", "30d", "--yes", "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert (document["logs"]["files"], document["attempts"], document["skipped"]) == (0, 4, 1)
    assert done.stderr.splitlines()[-1].startswith("pyexpd: warning: 1 skipped, for they cannot be read")


@on_sqlite
def test_clean_deletes_files_before_rows(aged: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops it in between, it can be called again and finds what it has not deleted."""
    order: list[str] = []
    monkeypatch.setattr(clean, "_delete_files", lambda *_: order.append("files"))
    monkeypatch.setattr(clean, "_delete_rows", lambda *_, **__: order.append("rows"))
    with pytest.raises(SystemExit) as end:
        main.main(["-c", str(aged.config), "clean", "--older", "30d", "--yes"])
    assert (end.value.code, order) == (0, ["files", "rows"])


@on_sqlite
def test_the_log_of_an_attempt_that_cannot_be_read_is_one_line(aged: Project) -> None:
    odd = aged.folder / ".pyexpd" / "exp" / "1-2.log"
    odd.unlink()
    odd.mkdir()
    for follow in ((), ("-f",)):
        done = aged.pyexpd("logs", "1", *follow)
        assert done.returncode == 64
        assert done.stderr.splitlines()[-1] == f"pyexpd: {odd} cannot be read: Is a directory"


@on_sqlite
def test_two_tables_share_a_folder_for_logs_and_overwrite_nothing(make_project: Make, tmp_path: Path) -> None:
    """Experiments of both have the same numbers."""
    project = make_project(rows=1, function="loud", daemon={"logs": str(tmp_path / "all")})
    with (project.folder / "experiments.py").open("a") as functions:
        functions.write("\n\ndef loud(keyfields, rp, custom):\n    print('from', custom['journal'], flush=True)\n")
    project.fill()
    assert project.pyexpd("run", "--until-empty").returncode == 0
    text = project.config.read_text().replace("name: exp\n", "name: other\n").replace("journal:", "journal: X # ")
    project.config.write_text(text)
    project.fill()
    assert project.pyexpd("run", "--until-empty").returncode == 0
    assert "from X" in (tmp_path / "all" / "other" / "1-1.log").read_text()
    assert str(project.journal) in (tmp_path / "all" / "exp" / "1-1.log").read_text()


@on_sqlite
def test_clean_leaves_names_and_logs_of_what_lives(make_project: Make) -> None:
    project = make_project(rows=1, function="chatty")
    with (project.folder / "experiments.py").open("a") as functions:
        functions.write("\n\ndef chatty(keyfields, rp, custom):\n    print('hello', flush=True)\n    time.sleep(600)\n")
    project.fill()
    with project.daemon("--name", "alive"):
        wait_until(lambda: logs(project), timeout=120)
        for path in (*locks(), *logs(project)):
            _age(path)
        document = json.loads(project.pyexpd("clean", "--older", "30d", "--yes", "--json").stdout)
        assert (document["locks"], document["daemons"], document["logs"]["files"]) == (0, 0, 0)
        assert (len(locks()), len(logs(project))) == (1, 1)


@on_sqlite
@pytest.mark.parametrize("age", ["30", "soon", ""])
def test_clean_wants_an_age_with_a_unit(make_project: Make, age: str) -> None:
    done = make_project().pyexpd("clean", "--older", age)
    assert done.returncode == 64
    assert done.stderr.startswith("pyexpd: --older: ")


@on_sqlite
def test_each_slot_has_a_gpu_of_the_inherited_mask(make_project: Make) -> None:
    """As a batch system gives two GPUs out of eight: two slots, one GPU each, seen by the function and by doctor."""
    project = make_project(function="see", rows=6, resultfields={"gpu": "VARCHAR(20)"})
    with (project.folder / "experiments.py").open("a") as functions:
        functions.write(
            "\n\ndef see(keyfields, rp, custom):\n"
            "    gpu = os.environ['CUDA_VISIBLE_DEVICES']\n"
            "    open('seen-' + gpu, 'w').close()\n"
            "    while not (os.path.exists('seen-4') and os.path.exists('seen-5')):\n"
            "        time.sleep(0.01)\n"
            "    return {'gpu': gpu}\n"
        )
    project.fill()
    doctor = project.pyexpd("doctor", CUDA_VISIBLE_DEVICES="4,5").stdout
    assert "2 slots, " in doctor
    assert "GPUs 4, 5, one for each slot" in doctor
    with project.daemon("--name", "gpus", CUDA_VISIBLE_DEVICES="4,5", OMP_NUM_THREADS="1") as daemon:
        project.wait_for(done=6)
        wait_until(lambda: "4, 5" in project.pyexpd("status").stdout or _gpus(project) == ["4", "5"], timeout=120)
        daemon.send_signal(TERM)
        assert project.end(daemon) == 0
    assert set(project.database.query("SELECT gpu FROM exp")) == {("4",), ("5",)}


def _gpus(project: Project) -> Any:
    ((facts,),) = project.database.query("SELECT facts FROM exp__pyexpd_daemons")
    return json.loads(facts or "{}").get("gpus")
