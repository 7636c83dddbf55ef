"""A real sshd on 127.0.0.1, with a home directory from which one can log in to it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import yaml

from tests.helpers import cannot_run, wait_until
from tests.servers import free_port, spawn

if TYPE_CHECKING:
    from tests.e2e.project import Project

SSHD = "/usr/sbin/sshd"
PASSPHRASE = "correct horse"


class Sshd:
    """An SSH server of this test's own; may be killed with its sessions and started again, at the same port.

    `home` is the home directory of somebody who may log in: `~/.ssh/config` calls the server `gate`. No file of the
    account that runs the tests is read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        self.make_key(folder / "host_key")
        self.key = self.make_key(ssh / "id_ed25519")
        self.authorized = folder / "authorized_keys"
        self.known_hosts = ssh / "known_hosts"
        self.config = ssh / "config"
        self.allow(self.key)
        self.trust(folder / "host_key")
        self.config.write_text(f"Host gate\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {self.authorized}\nAuthenticationMethods publickey\nUsePAM no\nStrictModes no\n"
            "PermitRootLogin prohibit-password\nLogLevel VERBOSE\nMaxStartups 100\n"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process one of somebody who may log in, without an agent."""
        return {"HOME": str(self.home), "SSH_AUTH_SOCK": ""}

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def make_key(self, path: Path, *, passphrase: str = "") -> Path:
        """A private key, with the public one beside it."""
        path.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=30)
        return path

    def allow(self, key: Path) -> None:
        """Let in who has this key, and nobody else."""
        self.authorized.write_bytes(key.with_name(f"{key.name}.pub").read_bytes())

    def trust(self, key: Path | None) -> None:
        """Have the home directory know the server by this host key, or not at all."""
        public = key.with_name(f"{key.name}.pub").read_text() if key else ""
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}" if key else "")

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._process = spawn(command, log=log)
        wait_until(self._answers, what="sshd answers")

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self.log
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
        return False

    def sessions(self) -> list[psutil.Process]:
        """The processes that serve who is logged in."""
        assert self._process
        return psutil.Process(self._process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL to the listener and to every session."""
        if self._process is None or self._process.poll() is not None:
            return
        listener = psutil.Process(self._process.pid)
        listener.suspend()  # so that there is no session more than those that are found
        sessions = self.sessions()
        listener.kill()
        for session in sessions:
            with contextlib.suppress(psutil.NoSuchProcess):
                session.kill()
        self._process.wait(10)
        psutil.wait_procs(sessions, timeout=10)


def make_sshd(folder: Path) -> Sshd:
    """A server that can be started, or the test is not run here."""
    for program in (SSHD, "ssh-keygen"):
        if shutil.which(program) is None:
            cannot_run("sshd", f"{program} is missing")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it separates its privileges, as its unit would make it
    return Sshd(folder)


def go_through(sshd: Sshd, project: Project, *, switch: str = "use_ssh", **section: Any) -> None:
    """Have a project reach its database through the server.

    Args:
        switch: how the configuration says so.
        section: more of the section `Ssh` of the credentials.
    """
    server = project.database.server
    assert server
    content = yaml.safe_load(project.config.read_text())
    content["PY_EXPERIMENTER"]["Database"][switch] = True
    project.config.write_text(yaml.safe_dump(content, sort_keys=False))
    credentials = project.folder / "database_credentials.yml"
    content = yaml.safe_load(credentials.read_text())
    ssh = {"server": "127.0.0.1", "address": "gate", "remote_address": server.host, "remote_port": server.port}
    content["CREDENTIALS"]["Connection"]["Ssh"] = {**ssh, **section}
    credentials.write_text(yaml.safe_dump(content, sort_keys=False))
