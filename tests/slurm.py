"""A real Slurm of one node: munged, slurmctld and slurmd of the test's own, without systemd, cgroups or a database."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import psutil

from tests.helpers import cannot_run, wait_until
from tests.servers import free_port, spawn

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
KILL_WAIT_S = 15
"""More than the tests need, for machines that have much else to do; see `Slurm.configure`."""
REQUEUED_AFTER_S = 10


class Slurm:
    """A cluster of this machine alone, with two CPUs at least. Jobs run as the user of the tests, which must be root.

    `environment` is what its commands need.
    """

    def __init__(self, folder: Path) -> None:
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing or os.geteuid():
            cannot_run("slurm", f"{', '.join(missing)} not installed" if missing else "it needs root")
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool", "log", "munge"):
            (folder / name).mkdir(parents=True)
        # munged refuses folders that others may write to, above its socket too; /tmp has the sticky bit.
        (folder / "munge").chmod(0o755)
        # A job that is requeued is held back until its credential has expired, two minutes later unless said otherwise.
        host, cpus = socket.gethostname().split(".")[0], max(2, os.cpu_count() or 2)
        self._configuration = f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={REQUEUED_AFTER_S}
CredType=cred/munge
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
OverTimeLimit=0
MinJobAge=300
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
        self._write()

    def __enter__(self) -> Self:
        munge = self.folder / "munge"
        subprocess.run(["mungekey", "-c", "-k", str(munge / "key")], check=True, capture_output=True)
        options = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", f"--socket={munge}/socket", *options)
        wait_until((munge / "socket").exists, timeout=120, what="munged")
        self._start("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self._start("slurmd", "-D", "-f", str(self.folder / "slurm.conf"))

        def is_idle() -> bool:
            return self._run("sinfo", "-h", "-o", "%T").stdout.strip() == "idle"

        wait_until(is_idle, timeout=120, interval=0.2, what="an idle node")
        return self

    def __exit__(self, *_: object) -> None:
        if self._processes:
            self._run("scancel", "--signal=KILL", "--user=root")
        for process in reversed(self._processes):
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for child in family:
                if child.is_running():
                    child.kill()

    def configure(self, *, kill_wait_s: int = KILL_WAIT_S) -> None:
        """Let it wait so long between TERM and KILL from now on."""
        self._write(kill_wait_s)
        self.say("scontrol", "reconfigure")
        assert f"KillWait = {kill_wait_s} sec" in " ".join(self.say("scontrol", "show", "config").split())

    def _write(self, kill_wait_s: int = KILL_WAIT_S) -> None:
        (self.folder / "slurm.conf").write_text(f"{self._configuration}KillWait={kill_wait_s}\n")

    def _start(self, *command: str) -> None:
        with (self.folder / "log" / f"{command[0]}.output").open("wb") as output:
            self._processes.append(
                spawn([shutil.which(command[0]) or command[0], *command[1:]], log=output, environment=self.environment)
            )

    def say(self, *command: str) -> str:
        """What a command of Slurm prints. It must not fail."""
        done = self._run(*command)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)

    def submit(
        self, script: Path, *arguments: str, folder: Path, options: tuple[str, ...] = (), **environment: str
    ) -> int:
        """Submit a batch script; the number of the job."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sbatch", "--parsable", "--export=ALL", *options, str(script), *arguments],
            cwd=folder,
            env={**self.environment, "PATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split(";")[0])

    def states(self, job: int) -> list[str]:
        """The states of the members of a job that are known still, such as RUNNING."""
        return self.say("squeue", "-h", "-t", "all", "-r", "-j", str(job), "-o", "%T").split()

    def wait_for(self, job: int, *states: str, timeout: float = 120) -> None:
        """Wait until all members have one of these states."""

        def reached() -> Any:
            now = self.states(job)
            return now and set(now) <= set(states)

        wait_until(reached, timeout=timeout, interval=0.2, what=f"{job} {'/'.join(states)}, not {self.states(job)}")

    def wait_over(self, job: int, *, timeout: float = 120) -> None:
        """Wait until nothing of the job is running, pending or ending."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait_for(job, *over, timeout=timeout)
        time.sleep(0.2)
