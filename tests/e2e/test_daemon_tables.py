"""Tables that others made or make at the same time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import closing

import pytest
import yaml

from tests.databases import Database
from tests.e2e.project import PYEXPD, Project
from tests.helpers import FIXTURES, load_dump

both = pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
ADOPTED = FIXTURES / "pyexperimenter-1.4.2"


@both
def test_two_fillers_at_once_add_each_row_once(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=6000)
    fillers = [
        subprocess.Popen(
            [PYEXPD, "fill"],
            cwd=project.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [filler.communicate(timeout=120)[0] for filler in fillers]
    assert [filler.returncode for filler in fillers] == [0, 0], said
    added = [int(line.split()[1].rstrip(",")) for text in said for line in text.splitlines() if line[:6] == "added "]
    assert sum(added) == 6000
    assert project.database.query("SELECT COUNT(*), COUNT(DISTINCT x), MAX(ID) FROM exp") == [(6000, 6000, 6000)]


@both
def test_a_table_half_run_by_pyexperimenter_is_adopted_and_finished(database: Database, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Its own `running` rows stay as they are; nothing of what it stored changes."""
    with closing(database.connect()) as connection:
        load_dump(connection, ADOPTED / ("sqlite.sql" if database.provider == "sqlite" else "mariadb.sql"))
    described = yaml.safe_load((ADOPTED / "configuration.yml").read_text())["PY_EXPERIMENTER"]["Database"]
    table = described["table"]["name"]
    function = "def run(keyfields, rp, custom):\n    pass\n"
    database.write_config(
        tmp_path,
        table=table,
        keyfields=described["table"]["keyfields"],
        resultfields=described["table"]["resultfields"],
        logtables=described.get("logtables"),
        function="finish:run",
    )
    (tmp_path / "finish.py").write_text(function)

    def pyexpd(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYEXPD, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    before = dict(database.query(f"SELECT status, COUNT(*) FROM {table} GROUP BY status"))
    done = f"SELECT * FROM {table} WHERE status = 'done' AND pyexpd_token IS NULL ORDER BY ID"
    assert before["created"]
    assert before["running"]
    refused = pyexpd("run", "--until-empty")
    assert (refused.returncode, "adopted" in refused.stderr) == (69, True), refused.stderr
    filled = pyexpd("fill")
    assert filled.returncode == 0, filled.stderr
    assert "equal parameters" in filled.stdout + filled.stderr
    kept = database.query(done.replace("*", "ID, start_date, end_date, name, machine"))
    ran = pyexpd("run", "--until-empty")
    assert ran.returncode == 0, ran.stderr
    after = dict(database.query(f"SELECT status, COUNT(*) FROM {table} GROUP BY status"))
    assert "created" not in after
    assert after["running"] == before["running"]
    now = database.query(done.replace("*", "ID, start_date, end_date, name, machine"))
    assert [row for row in now if row[0] in {old[0] for old in kept}] == kept
    assert pyexpd("fill").stdout.startswith("added 0") or "added 0" in pyexpd("fill").stdout


@both
def test_each_attempt_records_what_it_used(make_project: Callable[..., Project]) -> None:
    project = make_project(rows=2, custom={"seconds": 0.05})
    project.fill()
    assert project.pyexpd("run", "--until-empty", "--name", "node-7").returncode == 0
    rows = project.database.query(
        "SELECT cpu_seconds, peak_rss_bytes, code_version, pid, host FROM exp__pyexpd_attempts"
    )
    for cpu_seconds, peak_rss_bytes, code_version, pid, host in rows:
        assert 0 <= cpu_seconds < 1
        assert 5 * 2**20 < peak_rss_bytes < 200 * 2**20
        assert code_version.startswith("sha256:")
        assert pid > 1
        assert host
    assert set(project.database.query("SELECT name FROM exp")) == {("node-7",)}
