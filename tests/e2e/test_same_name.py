"""Two daemons of one name, as the delivered units make them on two nodes: an order reaches the one that is meant."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest

from tests.e2e.project import Project
from tests.helpers import wait_until


@pytest.mark.parametrize("database", ["sqlite", "mariadb"], indirect=True)
def test_an_order_reaches_the_daemon_that_is_meant(make_project: Callable[..., Project]) -> None:
    """Here both are on one host for people, so that only the id tells them apart."""
    project = make_project(rows=1, daemon={"heartbeat": "200ms", "lease": "30s"})
    project.fill()
    place = f"grid@{socket.gethostname()}"

    def listed() -> list[int]:
        return [row["id"] for row in json.loads(project.pyexpd("daemon", "list", "--json").stdout)]

    def states(folder: str) -> dict[str, str]:
        return {"PYEXPD_HOST_ID": folder, "STATE_DIRECTORY": str(project.folder / folder)}

    with (
        project.daemon("--name", "grid", **states("one")) as one,
        project.daemon("--name", "grid", **states("two")) as two,
    ):
        wait_until(lambda: len(listed()) == 2, timeout=120, what="two daemons")
        ids = listed()
        for text in ("grid", place):
            refused = project.pyexpd("daemon", "drain", text)
            assert (refused.returncode, refused.stdout) == (64, "")
            said, hint = refused.stderr.splitlines()
            assert said == f"pyexpd: 2 live daemons are called {text}"
            assert f"{place} (id {ids[0]}), {place} (id {ids[1]}); --all asks every daemon" in hint
        shown = project.pyexpd("daemon", "list").stdout
        assert [shown.count(f"daemon {place} (id {number}) (process ") for number in ids] == [1, 1]
        owner = dict(project.database.query("SELECT id, pid FROM exp__pyexpd_daemons"))
        first, other = (one, two) if owner[ids[0]] == one.pid else (two, one)
        answer = project.pyexpd("daemon", "drain", str(ids[0]))
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith(f"{place} (id {ids[0]}): ")
        assert project.end(first) == 0
        assert other.poll() is None
        wait_until(lambda: listed() == [ids[1]], timeout=120, what="one daemon")
        answer = project.pyexpd("daemon", "drain", "grid")
        assert (answer.returncode, answer.stdout.partition(":")[0]) == (0, "grid"), answer.stderr
        assert project.end(other) == 0
