"""A PostgreSQL server of our own, from Debian's packages: on a disk, with fsync on, reached by a socket only."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import NotToBeHad, ServerFailed

START_S = 60.0


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    programs: Path
    sockets: Path

    @property
    def dsn(self) -> str:
        return f"postgresql://bench@/postgres?host={self.sockets}"

    def query(self, sql: str) -> list[list[str]]:
        """The rows of one statement, as text."""
        lines = _run([str(self.programs / "psql"), "-XAt", self.dsn, "-c", sql]).splitlines()
        return [line.split("|") for line in lines]


def programs() -> Path:
    """The folder with initdb and postgres.

    Raises:
        NotToBeHad: PostgreSQL is not installed.
    """
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if versions:
        return versions[-1].parent
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    raise NotToBeHad("PostgreSQL is not installed (Debian: apt install postgresql)")


@contextmanager
def running(base: Path) -> Iterator[Postgres]:
    """A server with nothing in it, its files below `base`; gone afterwards, and when this process is.

    Raises:
        NotToBeHad: it cannot run here.
    """
    bin_, user = programs(), _unprivileged_user()
    data = base / "postgres"
    # Whoever reaches the socket may do everything, so nobody else reaches it.
    with tempfile.TemporaryDirectory(prefix="pg") as sockets:
        data.mkdir(mode=0o700)
        if user is not None:
            base.chmod(0o711)
            for folder in (data, Path(sockets)):
                os.chown(folder, user.pw_uid, user.pw_gid)
        become = _become(user)
        _run([*become, str(bin_ / "initdb"), "-D", str(data), "-U", "bench", "--auth=trust", "-E", "UTF8"], cwd=base)
        options = ("-D", str(data), "-k", sockets, "-c", "listen_addresses=", "-c", "fsync=on")
        with (base / "postgres.log").open("wb") as log:
            server = subprocess.Popen(
                [*become, str(bin_ / "postgres"), *options], cwd=base, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            postgres = Postgres(bin_, Path(sockets))
            _wait_until_it_answers(postgres, server, base / "postgres.log")
            yield postgres
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom the server runs as: PostgreSQL refuses root. None: us."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NotToBeHad("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _become(user: pwd.struct_passwd | None) -> list[str]:
    """Run what follows as this user; it ends with this process."""
    options = [] if user is None else [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *options, "--pdeathsig", "INT", "--"]


def _wait_until_it_answers(postgres: Postgres, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            postgres.query("SELECT 1")
        except NotToBeHad as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise ServerFailed(log.read_text(errors="replace")[-500:]) from error
            time.sleep(0.05)
        else:
            return


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotToBeHad(f"PostgreSQL: {' '.join((done.stderr or done.stdout).splitlines()[-2:])}")
    return done.stdout
