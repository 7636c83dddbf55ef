"""Real database servers for the tests, private to this process: MariaDB and MySQL 9.

A server's files are in memory (or in the temporary folder), it listens on a free port of 127.0.0.1, it runs as the
current user, and it ends with this process however that ends. Nothing is installed: a server that the machine lacks is
unpacked from the distribution's packages into `.cache/`, once, and run with the loader and the libraries of those
packages. That needs no root.

    PYEXPD_TEST_MYSQL_URL   mysql://user:password@host:port/   use this server as `mariadb` instead of a private one
    PYEXPD_TEST_MYSQL9_URL  the same for `mysql9`
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, TypeAlias
from urllib.parse import quote, unquote, urlsplit

import pymysql

Flavour = Literal["mariadb", "mysql9"]
Connection: TypeAlias = "pymysql.connections.Connection[Any]"

CACHE = Path(__file__).parent.parent / ".cache"
USER = "pyexpd"
PASSWORD = "pyexpd-test"  # of servers that live for one test run and listen on 127.0.0.1 only
AS_ME = ("--user=root",) if os.geteuid() == 0 else ()

START_S = 60.0
STOP_S = 30.0


class NotToBeHad(Exception):
    """This server cannot run on this machine; the text says why."""


class ServerFailed(Exception):
    """A server that should run does not; the text has the end of its log."""


class Server:
    """The address of a server, and an account on it that may do everything."""

    def __init__(self, *, flavour: Flavour, host: str, port: int, user: str = USER, password: str = PASSWORD) -> None:
        self.flavour = flavour
        self.host = host
        self.port = port
        self.user = user
        self.password = password

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.flavour} at {self.host}:{self.port}>"

    @classmethod
    def at(cls, url: str, flavour: Flavour) -> Server:
        """A server that somebody else runs: mysql://user:password@host:port/."""
        parts = urlsplit(url)
        if parts.scheme != "mysql" or not parts.hostname:
            raise NotToBeHad(f"{parts.scheme}://… is no mysql://user:password@host:port/")
        server = Server(
            flavour=flavour,
            host=parts.hostname,
            port=parts.port or 3306,
            user=unquote(parts.username or "root"),
            password=unquote(parts.password or ""),
        )
        server.connect().close()
        return server

    @property
    def url(self) -> str:
        """mysql://user:password@host:port/."""
        return f"mysql://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{self.host}:{self.port}/"

    def connect(self, database: str | None = None) -> Connection:
        """A plain blocking connection in autocommit mode."""
        return pymysql.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            database=database,
            autocommit=True,
            charset="utf8mb4",
            connect_timeout=10,
            read_timeout=60,
            write_timeout=60,
        )

    def query(self, sql: str, values: tuple[object, ...] = (), *, database: str | None = None) -> list[tuple[Any, ...]]:
        """The rows of one statement on a connection of its own."""
        with self.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall())

    def create_database(self) -> str:
        """The name of a new, empty database."""
        name = f"pyexpd_{secrets.token_hex(4)}"
        self.query(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, whatever still holds locks in it."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SHOW FULL PROCESSLIST")
            for session, _user, _host, database, *_ in cursor.fetchall():
                if database == name:
                    with suppress(pymysql.MySQLError):
                        cursor.execute(f"KILL {session}")
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")


class PrivateServer(Server):
    """A server of ours, made from a prepared data directory; may be stopped, killed, frozen and started again."""

    def __init__(self, software: Software, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """
        Args:
            environment: what the server's process gets beside ours.
        """
        super().__init__(flavour=software.flavour, host="127.0.0.1", port=free_port())
        self.folder = folder
        self.socket = str(folder / "s")
        self.log = folder / "log"
        self._software = software
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        _servers.add(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The server's process id, None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it answers; at once when it runs already."""
        if self.pid:
            return
        for attempts_left in (2, 1, 0):
            self._process = self._spawn()
            try:
                self._wait_until_it_answers()
            except ServerFailed as error:
                self.kill()
                if not attempts_left or "already in use" not in str(error).lower():
                    raise
                self.port = free_port()
            else:
                return

    def stop(self) -> None:
        """Shut the server down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what a power cut leaves."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop, if it runs, and start again with the same data at the same port."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        _servers.discard(self)

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [
            *self._software.command,
            f"--datadir={self.folder / 'data'}",
            f"--socket={self.socket}",
            f"--pid-file={self.folder / 'pid'}",
            f"--tmpdir={_folder_for_temporary_tables(self.folder)}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
        ]
        with self.log.open("ab") as log:
            return spawn(command, log=log, environment=self._environment)

    def _wait_until_it_answers(self) -> None:
        assert self._process
        deadline = time.monotonic() + START_S
        while True:
            with suppress(pymysql.OperationalError, OSError):
                self.connect().close()
                return
            if self._process.poll() is not None:
                raise ServerFailed(f"{self!r} ended with {self._process.returncode}:\n{self._end_of_log()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self!r} does not answer after {START_S:g} s:\n{self._end_of_log()}")
            time.sleep(0.01)

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if not process or process.poll() is not None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _end_of_log(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


@dataclass(frozen=True, kw_only=True)
class Software:
    """A server's program with its options, and a data directory ready to be copied."""

    flavour: Flavour
    command: tuple[str, ...]
    template: Path

    def server(self, environment: Mapping[str, str] | None = None, *, base: Path | None = None) -> PrivateServer:
        """A new server with nothing in it; not started. Its files are below `base`; without one, in memory."""
        folder = Path(tempfile.mkdtemp(prefix=f"{self.flavour}-", dir=base or _scratch()))
        shutil.copytree(self.template, folder / "data")
        return PrivateServer(self, folder, environment)


@functools.cache
def mariadb() -> Software:
    """MariaDB: the machine's own, else from the distribution's packages.

    Raises:
        NotToBeHad: neither is possible.
    """
    installed = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/usr/local/bin")
    program: tuple[str, ...]
    if installed:
        program, prefix = (installed,), Path(installed).resolve().parent.parent
    else:
        root = unpack("mariadb", "mariadb-server-core", suite=None)
        program, prefix = _by_own_loader(root, "usr/sbin/mariadbd"), root / "usr"
    scripts = _mariadb_scripts(prefix)
    command = (
        *program,
        "--no-defaults",
        *AS_ME,
        f"--basedir={prefix}",
        f"--lc-messages-dir={scripts[0].parent}",
        f"--character-sets-dir={scripts[0].parent / 'charsets'}",
        f"--plugin-dir={_scratch()}",
        "--skip-name-resolve",
        "--character-set-server=utf8mb4",  # as Debian's packages set it up
        "--collation-server=utf8mb4_general_ci",
        "--performance-schema=OFF",
        "--innodb-data-file-path=ibdata1:4M:autoextend",
        "--innodb-autoextend-increment=8",
        "--innodb-temp-data-file-path=ibtmp1:4M:autoextend",
        "--innodb-log-file-size=16M",
        "--aria-log-file-size=8M",
        "--max-connections=300",
    )
    template = Path(tempfile.mkdtemp(prefix="mariadb-template-", dir=_scratch()))
    temporary = f"--tmpdir={_folder_for_temporary_tables(_scratch())}"
    sql = "\n".join(
        (
            "CREATE DATABASE mysql;",
            "USE mysql;",
            "SET @auth_root_socket = NULL;",
            *(script.read_text(encoding="utf-8") for script in scripts),
            "FLUSH PRIVILEGES;",
            *_account(),
        )
    )
    options = ("--bootstrap", temporary, "--log-warnings=0", "--enforce-storage-engine=", f"--datadir={template}")
    _run([*command, *options, "--max-allowed-packet=8M"], stdin=sql, doing="set up a MariaDB data directory")
    return Software(flavour="mariadb", command=command, template=template)


def _folder_for_temporary_tables(folder: Path) -> Path:
    """A folder in which no other server is: one that starts deletes what it finds there of temporary tables."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return temporary


def _mariadb_scripts(prefix: Path) -> list[Path]:
    """The statements that make the system tables, in the order in which mariadb-install-db runs them."""
    for folder in (prefix / "share" / "mysql", prefix / "share" / "mariadb", prefix / "share"):
        for vendor in ("mysql", "mariadb"):
            names = ("system_tables", "performance_tables", "system_tables_data")
            scripts = [folder / f"{vendor}_{name}.sql" for name in names]
            if all(script.exists() for script in scripts):
                return scripts
    raise NotToBeHad(f"the scripts for MariaDB's system tables are not under {prefix}/share")


@functools.cache
def mysql9() -> Software:
    """MySQL 9, which no stable Debian has: from the packages of Debian unstable.

    Raises:
        NotToBeHad: there are no such packages for this machine now.
    """
    root = unpack("mysql9", "mysql-server-core", suite="sid")
    share = root / "usr/share/mysql"
    command = (
        *_by_own_loader(root, "usr/sbin/mysqld"),
        "--no-defaults",
        *AS_ME,
        f"--basedir={root / 'usr'}",
        f"--lc-messages-dir={share}",
        f"--character-sets-dir={share / 'charsets'}",
        f"--plugin-dir={root / 'usr/lib/mysql/plugin'}",
        "--secure-file-priv=NULL",
        "--skip-name-resolve",
        "--performance-schema=OFF",
        "--disable-log-bin",
        "--mysqlx=OFF",
        "--innodb-redo-log-capacity=32M",
        "--max-connections=300",
    )
    key = hashlib.sha256("\n".join((*command, *_account())).encode()).hexdigest()[:12]
    template = root.parent / f"data-{key}"
    with _lock(CACHE / "mysql9.lock"):
        if not template.exists():
            _initialise_mysql(command, template)
    return Software(flavour="mysql9", command=command, template=template)


def _initialise_mysql(command: tuple[str, ...], template: Path) -> None:
    with tempfile.TemporaryDirectory(dir=_scratch()) as folder:
        data, statements = Path(folder, "data"), Path(folder, "account.sql")
        statements.write_text("\n".join(_account()) + "\n", encoding="utf-8")
        _run(
            [*command, "--initialize-insecure", f"--datadir={data}", f"--init-file={statements}"],
            doing="set up a MySQL data directory",
        )
        (data / "auto.cnf").unlink(missing_ok=True)
        part = template.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(data, part)
        part.rename(template)


def _account() -> tuple[str, str]:
    """Statements for the one account, on one line each."""
    return (
        f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';",
        f"GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'%' WITH GRANT OPTION;",
    )


def unpack(name: str, package: str, *, suite: str | None) -> Path:
    """The folder with `package` and all it depends on, from the machine's release or from Debian's `suite`.

    Downloaded once; needs apt-get and dpkg-deb, not root, and installs nothing.
    """
    home = CACHE / name
    with _lock(CACHE / f"{name}.lock"):
        if (home / "root").exists():
            return home / "root"
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise NotToBeHad("it is not installed, and only Debian and its relatives can unpack it without installing")
        debs = _download(home / "apt", package, suite=suite)
        part = home / "root.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for deb in debs:
            _run(["dpkg-deb", "-x", str(deb), str(part)], doing=f"unpack {deb.name}")
        part.rename(home / "root")
    return home / "root"


def _download(apt: Path, package: str, *, suite: str | None) -> list[Path]:
    """Download `package` and everything it depends on, as if nothing were installed."""
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "Dir::State": str(apt),
        "Dir::State::status": str(apt / "status"),
        "Dir::Cache": str(apt),
        "Dir::Cache::archives": str(apt / "archives"),
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "0",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "20",
        "Acquire::https::Timeout": "20",
    }
    if suite:
        keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
        if not keyring.exists():
            raise NotToBeHad("its packages are Debian's, and Debian's archive keys are not on this machine")
        (apt / "sources.list").write_text(f"deb [signed-by={keyring}] {_debian_mirror()} {suite} main\n")
        options |= {"Dir::Etc::sourcelist": str(apt / "sources.list"), "Dir::Etc::sourceparts": "/dev/null"}
    command = ["apt-get", "-qq", "-y", *(f"-o{key}={value}" for key, value in options.items())]
    # A source of the machine that is out of reach is no reason to give up: the download decides.
    subprocess.run([*command, "update"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300)
    _run([*command, "--download-only", "install", package], doing=f"download {package}")
    shutil.rmtree(apt / "lists")
    for index in apt.glob("*.bin"):
        index.unlink()
    return sorted((apt / "archives").glob("*.deb"))


def _debian_mirror() -> str:
    """The mirror from which this machine gets Debian."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    mirrors = [line for line in _run(command, doing="ask for the Debian mirror").split() if "security" not in line]
    if not mirrors:
        raise NotToBeHad("its packages are Debian's, and this machine has no Debian mirror configured")
    return mirrors[0]


def _by_own_loader(root: Path, program: str) -> tuple[str, ...]:
    """The command that runs an unpacked program with its own libraries, the C library included."""
    loaders = [path for path in root.rglob("ld-linux*.so.*") if path.is_file() and not path.is_symlink()]
    if not loaders:
        raise NotToBeHad(f"no dynamic loader among the packages in {root}")
    triplet = loaders[0].parent.name
    libraries = [str(root / folder / triplet) for folder in ("lib", "usr/lib")]
    return (str(loaders[0]), "--library-path", ":".join(libraries), str(root / program))


_servers: set[PrivateServer] = set()

# The kernel's parent-death signal follows the thread that started the process, and a test may restart a server from a
# thread that soon ends.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="starts-servers")
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


def spawn(
    command: list[str], *, log: IO[bytes], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-IS", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C ends the tests in order, not the server under them
        )

    return start() if threading.current_thread() is threading.main_thread() else _starter.submit(start).result()


def _run(command: list[str], *, doing: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotToBeHad(f"could not {doing}: {' '.join(lines[-2:])[:400]}")
    return done.stdout


def free_port() -> int:
    """A port of this machine that nobody uses, nor is likely to get before its server starts.

    Below those that the kernel gives to whoever asks for any, and chosen at random among many test processes.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def _scratch() -> Path:
    """This process's folder for data directories: in memory where there is room, removed at exit.

    It holds a lock while the process lives: the folder of a process that was killed is removed by the next one.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    base = memory if roomy else Path(tempfile.gettempdir())
    remove_abandoned(base)
    unlocked = Path(tempfile.mkdtemp(prefix=".pyexpd-test-", dir=base))
    lock = (unlocked / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    folder = unlocked.rename(base / unlocked.name[1:])
    atexit.register(_clean_up, os.getpid(), folder, lock)
    return folder


def remove_abandoned(base: Path) -> None:
    """Remove the folders of test processes that were killed."""
    for folder in base.glob("pyexpd-test-*"):
        with suppress(OSError), (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _clean_up(owner: int, folder: Path, lock: IO[str]) -> None:
    if os.getpid() != owner:  # a forked child that runs exit handlers
        return
    for server in list(_servers):
        server.close()
    shutil.rmtree(folder, ignore_errors=True)
    lock.close()


FLAVOURS: dict[Flavour, tuple[str, Callable[[], Software]]] = {
    "mariadb": ("PYEXPD_TEST_MYSQL_URL", mariadb),
    "mysql9": ("PYEXPD_TEST_MYSQL9_URL", mysql9),
}


@contextmanager
def running(flavour: Flavour, *, base: Path | None = None) -> Iterator[Server]:
    """A server of this flavour: the one whose URL the environment gives, else a private one while the block lasts.

    Args:
        base: where a private one has its files; by default in memory.

    Raises:
        NotToBeHad: it cannot run here.
    """
    variable, software = FLAVOURS[flavour]
    if url := os.environ.get(variable):
        yield Server.at(url, flavour)
        return
    with software().server(base=base) as server:
        yield server
