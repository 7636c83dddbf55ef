"""The SSH tunnel of PyExperimenter's credentials, through a real sshd to a real server."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyexp_daemon.experimenter import PyExperimenter
from tests.databases import Database
from tests.e2e.project import Project
from tests.helpers import wait_until
from tests.servers import PrivateServer, free_port, spawn
from tests.sshd import PASSPHRASE, Sshd, go_through

Make = Callable[..., Project]
on_mariadb = pytest.mark.parametrize("database", ["mariadb"], indirect=True)


def logins(sshd: Sshd) -> int:
    return sshd.log.count("Accepted publickey")


def refused(project: Project, *command: str) -> list[str]:
    """What a command says that cannot reach the database, without the line about what it works on."""
    done = project.pyexpd(*(command or ("status",)))
    assert done.returncode == 74, done.stderr
    assert PASSPHRASE not in done.stderr + done.stdout
    return [line for line in done.stderr.splitlines() if not line.startswith("configuration ")]


@on_mariadb
@pytest.mark.parametrize("switch", ["use_ssh", "use_ssh_tunnel"])
@pytest.mark.parametrize("spelling", ["passphrase", "ssh_private_key_password"])
def test_all_of_it_goes_through_the_tunnel(make_project: Make, sshd: Sshd, switch: str, spelling: str) -> None:
    """With a private key that is encrypted, in both spellings of what opens it."""
    project = make_project(rows=3)
    sshd.allow(sshd.make_key(sshd.key, passphrase=PASSPHRASE))
    go_through(sshd, project, switch=switch, **{spelling: PASSPHRASE})
    project.fill()
    with project.daemon("--until-empty") as daemon:
        assert project.end(daemon) == 0
    assert project.statuses() == {"done": 3}
    status = project.pyexpd("status")
    assert "done" in status.stdout
    assert "via gate, table exp" in status.stderr
    assert logins(sshd) == 3  # one for each process: fill, run, status
    assert PASSPHRASE not in project.last_output + json.dumps(project.events())
    sshd.kill()
    refused(project)  # nothing went past it


@on_mariadb
def test_a_key_of_an_agent_will_do(make_project: Make, sshd: Sshd, tmp_path: Path) -> None:
    project = make_project(rows=1)
    go_through(sshd, project)
    agent_socket = tmp_path / "agent"
    with (tmp_path / "agent.log").open("wb") as log:
        agent = spawn(["/usr/bin/ssh-agent", "-D", "-a", str(agent_socket)], log=log)
    try:
        wait_until(agent_socket.exists)
        environment = {"SSH_AUTH_SOCK": str(agent_socket)}
        subprocess.run(["/usr/bin/ssh-add", "-q", str(sshd.key)], env=environment, check=True, timeout=120)
        sshd.key.unlink()
        assert project.pyexpd("fill", SSH_AUTH_SOCK=str(agent_socket)).returncode == 0
        agent_socket.unlink()
    finally:
        agent.terminate()
        agent.wait(10)
    message, _ = refused(project)
    assert "Permission denied" in message


@on_mariadb
def test_the_python_interface_goes_through_it_and_closes_it(
    make_project: Make, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project = make_project(rows=3)
    go_through(sshd, project)
    monkeypatch.chdir(project.folder)
    logging.getLogger("tests.tunnel")
    experimenter = PyExperimenter("pyexpd.yml", use_codecarbon=False, logger_name="tests.tunnel")
    experimenter.fill_table_from_config()
    experimenter.add_experiment_and_execute({"x": 7}, lambda keyfields: {"y": 1.0})
    assert len(experimenter.get_table()) == 4
    connection = experimenter.db_connector.connect()
    assert logins(sshd) == 1
    experimenter.close_ssh()
    with pytest.raises(Exception, match=r"Lost connection|Broken|closed"):
        connection.cursor().execute("SELECT 1")
    experimenter.close_ssh()
    assert "No ssh tunnel to close" in caplog.text
    assert len(experimenter.get_table()) == 4
    assert logins(sshd) == 2
    experimenter.close_ssh()


@on_mariadb
def test_a_host_that_is_not_known_is_not_trusted(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    go_through(sshd, project, address="me@127.0.0.1", port=sshd.port)
    sshd.trust(None)
    known = sshd.known_hosts.read_bytes()
    for command in ("fill", "run", "status"):
        assert refused(project, command) == [
            f"pyexpd: no ssh connection to me@127.0.0.1:{sshd.port}: Host key is not trusted for host 127.0.0.1",
            f"  `ssh -p {sshd.port} me@127.0.0.1` shows its key and remembers it, once you say yes",
        ]
    assert sshd.known_hosts.read_bytes() == known
    assert logins(sshd) == 0


@on_mariadb
@pytest.mark.parametrize(
    "told", ["UserKnownHostsFile none", "UserKnownHostsFile /dev/null", "StrictHostKeyChecking no"]
)
def test_nothing_in_the_users_files_makes_it_trust_everybody(make_project: Make, sshd: Sshd, told: str) -> None:
    project = make_project()
    go_through(sshd, project)
    sshd.trust(None)
    sshd.config.write_text(f"{sshd.config.read_text()}  {told}\n")
    assert "Host key is not trusted" in refused(project)[0]
    assert logins(sshd) == 0


@on_mariadb
def test_a_host_with_another_key_is_not_trusted(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    go_through(sshd, project)
    sshd.trust(sshd.make_key(sshd.folder / "another"))
    message, hint = refused(project)
    assert "gate: Host key is not trusted" in message
    assert "either the host was installed anew, or somebody is in between" in hint
    assert logins(sshd) == 0


@on_mariadb
def test_a_key_that_is_not_let_in(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    go_through(sshd, project)
    sshd.allow(sshd.make_key(sshd.folder / "another"))
    message, hint = refused(project)
    assert "no ssh connection to gate: Permission denied" in message
    assert hint == "  `ssh gate` has to log in without a question"


@on_mariadb
@pytest.mark.parametrize("passphrase", [None, "wrong"])
def test_a_key_that_does_not_open(make_project: Make, sshd: Sshd, passphrase: str | None) -> None:
    project = make_project()
    go_through(sshd, project, passphrase=passphrase)
    sshd.allow(sshd.make_key(sshd.key, passphrase=PASSPHRASE))
    message, hint = refused(project)
    assert message.startswith("pyexpd: no ssh connection to gate: ")
    assert hint == f"  ssh_private_key_password in the credentials does not open {sshd.key}"


@on_mariadb
def test_keys_that_are_missing_or_do_not_open_are_passed_over(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    go_through(sshd, project, passphrase=PASSPHRASE)
    sshd.make_key(sshd.home / ".ssh" / "other", passphrase="another one")
    keys = ("none", "other", "id_ed25519")
    sshd.config.write_text(sshd.config.read_text() + "".join(f"  IdentityFile ~/.ssh/{name}\n" for name in keys))
    project.fill()


@on_mariadb
def test_nobody_there(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    go_through(sshd, project)
    sshd.kill()
    assert refused(project) == ["pyexpd: no ssh connection to gate: Connection refused"]
    assert refused(project, "run") == ["pyexpd: no ssh connection to gate: Connection refused"]


@on_mariadb
def test_no_database_behind_it(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    port = free_port()
    go_through(sshd, project, remote_port=port)
    message, hint = refused(project)
    assert message.startswith(f"pyexpd: database mysql://127.0.0.1:{port}/{project.database.name} via gate is not")
    assert "Connection.Ssh.remote_address and remote_port" in hint


@on_mariadb
def test_without_asyncssh(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    go_through(sshd, project)
    (project.folder / "asyncssh.py").write_text("raise ImportError('No module named asyncssh')")
    done = project.pyexpd("status", PYTHONPATH=str(project.folder))
    assert done.returncode == 74
    *_, message, hint = done.stderr.splitlines()
    assert message.startswith("pyexpd: no ssh connection to gate: asyncssh is needed")
    assert hint == "  pip install 'pyexp-daemon[ssh]'"


@on_mariadb
def test_who_needs_no_tunnel_does_not_load_asyncssh(make_project: Make) -> None:
    project = make_project(rows=1)
    (project.folder / "asyncssh.py").write_text("raise SystemExit('loaded')")
    assert project.pyexpd("fill", PYTHONPATH=str(project.folder)).returncode == 0
    with project.daemon("--until-empty", PYTHONPATH=str(project.folder)) as daemon:
        assert project.end(daemon) == 0
    assert project.statuses() == {"done": 1}


# The end on this host


def answers(port: int) -> bool:
    """Whether a MySQL server greets there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        return b"mysql_native_password" in connection.recv(200)
    return False


@on_mariadb
def test_two_daemons_of_a_host_have_a_tunnel_each_and_one_of_them_the_local_port(
    make_project: Make, sshd: Sshd
) -> None:
    """Others on the host may count on it, and whoever finds it taken works all the same."""
    project = make_project(rows=40, function="gated")
    port = free_port()
    go_through(sshd, project, local_port=port)
    project.fill()
    with project.daemon("--name", "one", "--slots", "2") as one:
        wait_until(lambda: answers(port), timeout=120)
        with project.daemon("--name", "two", "--slots", "2", "--until-empty") as two:
            at_work = "SELECT DISTINCT name FROM exp WHERE status = 'running'"
            wait_until(lambda: len(project.database.query(at_work)) == 2, timeout=120, what="both work")
            project.open_gate()
            project.wait_for(done=40)
            assert project.end(two) == 0
        assert answers(port)
        one.terminate()
        assert project.end(one) == 0
    assert not answers(port)
    assert all(len(runs) == 1 for runs in project.runs().values())
    assert len(project.database.query("SELECT DISTINCT daemon FROM exp__pyexpd_attempts")) == 2


@on_mariadb
def test_a_local_port_that_is_taken_is_no_reason_to_fail(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        port = somebody.getsockname()[1]
        go_through(sshd, project, local_port=port)
        project.fill()
        done = project.pyexpd("doctor")
        line = next(line for line in done.stdout.splitlines() if " tunnel: " in line)
        assert line.startswith("ok")
        assert line.endswith(f", for {port} is taken")


@on_mariadb
def test_doctor_names_the_tunnel(make_project: Make, sshd: Sshd) -> None:
    project = make_project()
    go_through(sshd, project, local_port=free_port())
    project.fill()

    def findings() -> dict[str, dict[str, str]]:
        done = project.pyexpd("doctor", "--json")
        return {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}

    found = findings()
    assert found["tunnel"]["text"].startswith("through gate to 127.0.0.1:")
    assert found["database"]["text"].endswith("via gate")
    assert found["encryption"]["text"] == "by ssh, to gate"
    sshd.kill()
    found = findings()
    assert found["tunnel"] == {
        "level": "error",
        "check": "tunnel",
        "text": "no ssh connection to gate: Connection refused",
        "hint": None,
    }
    assert "database" not in found


def test_the_server_hears_that_a_command_has_ended(private_mariadb: PrivateServer, sshd: Sshd, tmp_path: Path) -> None:
    name = private_mariadb.create_database()
    project = Project(
        Database(provider="mysql", flavour="mariadb", name=name, server=private_mariadb), tmp_path / "project"
    )
    go_through(sshd, project)
    project.fill()
    for commands in range(2, 20):
        assert project.pyexpd("status").returncode == 0
        aborted = int(private_mariadb.query("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")[0][1])
        if commands - aborted >= 3:  # on a loaded machine one may end before its last word is passed on
            return
    pytest.fail(f"{aborted} of {commands} commands said no good-bye")
