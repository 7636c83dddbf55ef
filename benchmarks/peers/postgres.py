"""A PostgreSQL server of our own, from Debian's packages: on a disk, with fsync on, reached by a socket only."""

from __future__ import annotations

import functools
import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import servers
from tests.servers import NotToBeHad

INSTALLED = Path("/usr/lib/postgresql")
START_S = 60.0


@dataclass(frozen=True)
class Software:
    """The folder with the programs, and that with their libraries where the machine's own are not enough."""

    programs: Path
    libraries: Path | None = None

    def command(self, program: str, *arguments: object) -> list[str]:
        """What runs one of the programs."""
        environment = [] if self.libraries is None else ["env", f"LD_LIBRARY_PATH={self.libraries}"]
        return [*environment, str(self.programs / program), *map(str, arguments)]


@functools.cache
def software() -> Software:
    """PostgreSQL: the machine's own, else from the distribution's packages.

    Raises:
        NotToBeHad: neither is possible.
    """
    if installed := _newest(INSTALLED):
        return Software(installed)
    root = servers.unpack("postgresql", "postgresql", suite=None)
    unpacked, libraries = _newest(root / "usr/lib/postgresql"), list(root.glob("usr/lib/*-linux-gnu*"))
    if not unpacked or not libraries:
        raise NotToBeHad(f"PostgreSQL is not among the packages in {root}")
    return Software(unpacked, libraries[0])


def _newest(base: Path) -> Path | None:
    found = sorted(base.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    software: Software
    sockets: Path

    @property
    def dsn(self) -> str:
        return f"postgresql://bench@/postgres?host={self.sockets}"

    def query(self, sql: str) -> list[list[str]]:
        """The rows of one statement, as text."""
        lines = _run(self.software.command("psql", "-XAt", self.dsn, "-c", sql)).splitlines()
        return [line.split("|") for line in lines]


@contextmanager
def running(base: Path) -> Iterator[Postgres]:
    """A server with nothing in it, its files below `base`; gone afterwards, and when this process is.

    Raises:
        NotToBeHad: it cannot run here.
    """
    user, data, log = _unprivileged_user(), base / "postgres", base / "postgres.log"
    with tempfile.TemporaryDirectory(prefix="pg") as sockets:
        postgres = Postgres(software(), Path(sockets))
        data.mkdir(mode=0o700)
        if user is not None:
            base.chmod(0o711)
            for folder in (data, postgres.sockets):  # who reaches the socket may do everything: nobody else does
                os.chown(folder, user.pw_uid, user.pw_gid)
        initdb = postgres.software.command("initdb", "-D", data, "-U", "bench", "--auth=trust", "-E", "UTF8")
        _run([*_become(user), *initdb], cwd=base)
        options = ("-D", data, "-k", sockets, "-c", "listen_addresses=", "-c", "fsync=on")
        command = [*_become(user), *postgres.software.command("postgres", *options)]
        with log.open("wb") as output:
            server = subprocess.Popen(command, cwd=base, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _wait_until_it_answers(postgres, server, log)
            yield postgres
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(START_S)


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
                raise NotToBeHad(f"PostgreSQL does not start: {log.read_text(errors='replace')[-300:]}") from error
            time.sleep(0.05)
        else:
            return


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotToBeHad(f"PostgreSQL: {' '.join((done.stderr or done.stdout).splitlines()[-2:])}")
    return done.stdout
