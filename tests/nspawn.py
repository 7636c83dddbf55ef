"""A real systemd, booted under systemd-nspawn on this machine's own files, for tests of units.

The root of the container is an overlay of `/`, so the interpreter, its libraries and this checkout are where they are
outside, and nothing that is written there reaches the machine. Mounts and processes end with this process, however
that ends: the mounts belong to a namespace of the container alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import servers
from tests.helpers import wait_until

CHECKOUT = Path(__file__).parent.parent
USER = "pyexpd"
"""An account in the container that is neither root nor anybody outside."""

_UID = "61234"
_POWER_OFF = signal.SIGRTMIN + 4

# The upper layer is in memory, for an overlay cannot be written on another overlay, as `/` is in most containers.
_BOOT = r"""
set -eu
base=$1 uid=$2 user=$3
shift 3
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" "$base/root"
cd "$base/root"
rm -rf etc/systemd/system var/log/journal
mkdir -p etc/systemd/system var/lib/$user
: > etc/fstab
rm -f etc/machine-id
echo 6f2d3c5e8a0b4d119e7766554433aa01 > etc/machine-id
echo "$user:x:$uid:$uid::/var/lib/$user:/bin/sh" >> etc/passwd
echo "$user:x:$uid:" >> etc/group
chown "$uid:$uid" "var/lib/$user"
binds=
for folder in "$@"; do
    binds="$binds --bind-ro=$folder"
    above=$(dirname "$folder")
    while [ "$above" != / ]; do
        mkdir -p ".$above"
        chmod o+rx ".$above"
        above=$(dirname "$above")
    done
done
machine=$(basename "$base" | tr _ x)
exec systemd-nspawn --quiet --directory="$base/root" --machine="$machine" --register=no --keep-unit --private-network \
    --resolv-conf=off --timezone=off --console=pipe $binds --boot -- systemd.unit=basic.target
"""

_IN_OWN_MOUNTS = ("/usr/bin/unshare", "--mount", "--propagation=slave", "/bin/sh", "-c", _BOOT, "sh")


class CannotBoot(Exception):
    """No systemd can be booted on this machine; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """A machine of its own, with systemd as its process 1.

    Args:
        pid: of its systemd, as seen from outside.
    """

    pid: int

    def path(self, inside: str) -> Path:
        """A file of the container, to be read and written from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net"]
        done = subprocess.run(
            [*enter, "--", *command],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/", "SYSTEMD_PAGER": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def run_as_user(self, *command: str, timeout: float = 120) -> str:
        """What a command says that USER runs."""
        home = f"HOME=/var/lib/{USER}"
        switch = ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"]
        return self.run("env", home, *switch, *command, timeout=timeout).stdout

    def start_user_manager(self) -> None:
        """A systemd of USER's own, as a login or lingering starts it."""
        folder = self.path("/etc/systemd/system/user@.service.d")
        folder.mkdir()
        # Without PAM, which knows nobody who is not in /etc/shadow.
        (folder / "test.conf").write_text("[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n")
        self.run("install", "-d", "-o", USER, "-g", USER, "-m", "700", f"/run/user/{_UID}")
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "start", f"user@{_UID}.service")

    def systemctl_user(self, *arguments: str) -> str:
        """`systemctl --user` of USER."""
        return self.run_as_user("env", f"XDG_RUNTIME_DIR=/run/user/{_UID}", "systemctl", "--user", *arguments)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        shown = self.run("systemctl", "show", unit, f"--property={','.join(names)}").stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--unit", unit, "--output=cat", "--no-pager").stdout

    def is_alive(self, pid: int) -> bool:
        """Whether a process of the container, by its number there, lives."""
        try:
            stat = self.path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] not in "ZX"


def check() -> None:
    """See whether there is what it takes; whether the kernel plays along, only trying tells.

    Raises:
        CannotBoot: something is missing.
    """
    if os.geteuid() != 0:
        raise CannotBoot("only root can boot a container")
    for tool, package in (("systemd-nspawn", "systemd-container"), ("systemctl", "systemd"), ("nsenter", "util-linux")):
        if shutil.which(tool) is None:
            raise CannotBoot(f"{tool} is missing (package {package})")


@contextmanager
def booted() -> Iterator[Container]:
    """A container while the block lasts.

    Raises:
        CannotBoot: it does not come up; the text has the end of what it said.
    """
    check()
    base = Path(tempfile.mkdtemp(prefix="pyexpd-nspawn-"))
    with (base.parent / f"{base.name}.log").open("w+b") as log:
        process = servers.spawn(
            [*_IN_OWN_MOUNTS, str(base), _UID, USER, *map(str, what_the_interpreter_needs())],
            log=log,
        )
        try:
            yield Container(pid=_wait_for_boot(process, Path(log.name)))
        finally:
            _end(process)
            Path(log.name).unlink()
            base.rmdir()


def what_the_interpreter_needs() -> list[Path]:
    """Folders that must be where they are outside: they may be mounts of their own, or in a home."""
    folders = {Path(sys.prefix), Path(sys.base_prefix), CHECKOUT}
    return sorted(folder for folder in folders if folder != Path("/usr"))


def _wait_for_boot(process: subprocess.Popen[bytes], log: Path) -> int:
    def find() -> int | None:
        if process.poll() is not None:
            raise CannotBoot(f"systemd-nspawn ended: {' '.join(log.read_text(errors='replace').split())[-400:]}")
        pid = _systemd_below(process.pid)
        if pid is None:
            return None
        state = Container(pid=pid).run("systemctl", "is-active", "basic.target", check=False)
        return pid if state.stdout.strip() == "active" else None

    try:
        pid = wait_until(find, timeout=120, interval=0.05, what="basic.target")
    except TimeoutError as error:
        raise CannotBoot(f"{error}: {' '.join(log.read_text(errors='replace').split())[-400:]}") from None
    assert pid is not None
    return pid


def _systemd_below(nspawn: int) -> int | None:
    """The process that is number 1 in its own namespace, and has become systemd."""
    try:
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        for child in children:
            status = Path(f"/proc/{child}/status").read_text()
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if numbers[-1] == "1" and status.startswith("Name:\tsystemd\n"):
                return int(child)
    except OSError:
        return None
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Power it off; a container that does not react goes with its nspawn."""
    with contextlib.suppress(OSError):
        if (pid := _systemd_below(process.pid)) is not None:
            os.kill(pid, _POWER_OFF)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
