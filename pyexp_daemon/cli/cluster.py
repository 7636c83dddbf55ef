"""`pyexpd cluster`: the allocation of a batch system, and scripts that ask for one."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import click

from pyexp_daemon import exceptions, log
from pyexp_daemon.cli.context import at_least, json_option, print_json
from pyexp_daemon.cli.groups import Group
from pyexp_daemon.cli.times import iso_time, show_duration, show_time
from pyexp_daemon.config.mistakes import show
from pyexp_daemon.daemon.allocation import Allocation, detect
from pyexp_daemon.daemon.resources import count_cpus, own_gpus

_TEMPLATES = {"slurm": "slurm.sbatch", "oar": "oar.sh"}
_WALLTIME = re.compile(r"([0-9]{1,6}):([0-5][0-9]):([0-5][0-9])")

LONGEST_NOTICE_S = 600
"""So long before its end a job is told at the earliest; a short one when three quarters are over."""


@click.group("cluster", cls=Group, no_args_is_help=False)
def cluster_command() -> None:
    """Show the allocation of the batch system, or write a batch script."""


@click.command("detect")
@json_option
def _detect(*, as_json: bool) -> None:
    """Show what `pyexpd run` takes from the batch system here: CPUs, GPUs, name, end.

    Slurm, OAR and MPI launches are known by their environment; when it ends is asked of squeue and oarstat where the
    environment does not say.
    """
    log.set_up_for_command()
    allocation = detect()
    if as_json:
        print_json(_document(allocation))
        return
    if allocation is None:
        click.echo(f"no allocation: this is no job of Slurm or OAR, and no MPI launch; {count_cpus(None)} CPUs")
        return
    for name, value in _facts(allocation):
        click.echo(f"{name:<8} {value}")


def _facts(allocation: Allocation) -> list[tuple[str, str]]:
    import time

    facts = [("system", allocation.system), ("name", allocation.job or "as outside: host and number")]
    facts.append(("cpus", str(count_cpus(allocation))))
    gpus = own_gpus(allocation)
    if gpus is not None:
        facts.append(("gpus", ", ".join(gpus) or "none"))
    ends = allocation.ends
    left = "" if ends is None else f" (in {show_duration(max(0.0, ends - time.time()))})"
    facts.append(("ends", "nobody knows, or never" if ends is None else show_time(ends) + left))
    return facts


def _document(allocation: Allocation | None) -> dict[str, object]:
    return {
        "system": allocation and allocation.system,
        "name": allocation and allocation.job,
        "cpus": count_cpus(allocation),
        "gpus": own_gpus(allocation),
        "ends": iso_time(allocation.ends) if allocation else None,
    }


def _read_walltime(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not _WALLTIME.fullmatch(value):
        raise exceptions.UsageError(f"--time {show(value)} is no time", hint="hours:minutes:seconds, such as 24:00:00")
    if not _seconds_of(value):
        raise exceptions.UsageError(f"--time {show(value)} is no time at all, which Slurm takes for no limit")
    return value


def _seconds_of(walltime: str) -> int:
    hours, minutes, seconds = map(int, walltime.split(":"))
    return (hours * 60 + minutes) * 60 + seconds


@click.command("template")
@click.argument("system", type=click.Choice(sorted(_TEMPLATES)))
@click.option("--daemons", type=at_least(1), default=4, show_default=True, metavar="N", help="Members of the array.")
@click.option("--cpus", type=at_least(1), default=8, show_default=True, metavar="N", help="CPUs of each.")
@click.option(
    "--time", "walltime", default="24:00:00", show_default=True, callback=_read_walltime, help="For how long."
)
@click.option("--gpus", type=at_least(0), default=0, show_default=True, metavar="N", help="GPUs of each.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it to this new file.")
def _template(*, system: str, daemons: int, cpus: int, walltime: str, gpus: int, output: Path | None) -> None:
    """Write a batch script that runs daemons: an array of them, told before the end, queued again.

    SYSTEM is slurm or oar. What may have to be changed in it is marked.
    """
    text = (resources.files("pyexp_daemon.cli") / "templates" / _TEMPLATES[system]).read_text(encoding="utf-8")
    notice_s = min(LONGEST_NOTICE_S, _seconds_of(walltime) // 4)
    places = {"DAEMONS": daemons, "CPUS": cpus, "TIME": walltime, "GPUS": gpus, "NOTICE": notice_s}
    for name, value in places.items():
        text = text.replace(f"@{name}@", str(value))
    text = re.sub(r"^.*@if gpus@\n", "", text, flags=re.MULTILINE) if not gpus else text.replace(" @if gpus@", "")
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise exceptions.UsageError(f"{output} cannot be written: {error.strerror}") from error
    click.echo(f"wrote {output}")


cluster_command.add_command(_detect)
cluster_command.add_command(_template)
