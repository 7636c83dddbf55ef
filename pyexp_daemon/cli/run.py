"""`pyexpd run`: the daemon of this node in the foreground, or one experiment in this process."""

from __future__ import annotations

import itertools
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import anyio
import click

from pyexp_daemon import events, exceptions, log
from pyexp_daemon.cli.context import Workplace, at_least, command
from pyexp_daemon.cli.names import names_folder
from pyexp_daemon.daemon.errands import briefly
from pyexp_daemon.daemon.hosts import LockFile
from pyexp_daemon.daemon.jitter import wait_at_random
from pyexp_daemon.model import Outcome, Status
from pyexp_daemon.store import occasions

if TYPE_CHECKING:
    from rich.console import Console

    from pyexp_daemon.daemon.supervisor import Supervisor

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What the command line asks of a daemon."""

    function: str | None
    slots: int | None
    name: str | None
    until_empty: bool
    max_experiments: int | None
    random_order: bool


@command("run")
@click.argument("experiment", type=at_least(0), required=False)
@click.option("--here", is_flag=True, help="Run EXPERIMENT in this process, with the terminal attached.")
@click.option(
    "--slots", type=at_least(1), metavar="N", help="Experiments at once; default: Daemon.slots, GPUs or CPUs."
)
@click.option("--until-empty", is_flag=True, help="End when nothing is left to do, instead of waiting for more.")
@click.option("--max-experiments", type=at_least(1), metavar="N", help="End after so many.")
@click.option("--random-order", is_flag=True, help="Take experiments of one priority in random order.")
@click.option("--function", metavar="MODULE:NAME", help="The experiment function, instead of the configuration's.")
@click.option("--name", help="Name of this daemon; default: host and a number.")
def run_command(
    workplace: Workplace,
    *,
    experiment: int | None,
    here: bool,
    function: str | None,
    slots: int | None,
    name: str | None,
    until_empty: bool,
    max_experiments: int | None,
    random_order: bool,
) -> int | None:
    """Run experiments on this node until stopped.

    This is the daemon, in the foreground. Ctrl-C (or TERM) waits for the running experiments for a while, hands
    back what does not finish, and ends.

    With EXPERIMENT and --here: run this one experiment in this process, for debugging.
    """
    wish = _Wish(
        function=function,
        slots=slots,
        name=name,
        until_empty=until_empty,
        max_experiments=max_experiments,
        random_order=random_order,
    )
    if name is not None and not _NAME.fullmatch(name):
        raise exceptions.UsageError(
            f"{name!r} is no name for a daemon", hint="letters, digits and . _ @ + -, up to 100"
        )
    if here != (experiment is not None):
        raise exceptions.UsageError(
            "--here and the number of an experiment go together", hint="pyexpd run 7 --here runs experiment 7"
        )
    named = _function(workplace, function)
    if experiment is not None:
        return _run_here(workplace, experiment, wish, function=named)
    _run_daemon(workplace, wish)
    return None


def _function(workplace: Workplace, given: str | None) -> str:
    function = given or workplace.config.function
    if function is None:
        raise exceptions.InvalidConfigError(
            f"{workplace.file}: PY_EXPERIMENTER.Function: required to run experiments, but missing",
            hint="Function: my_project.train:run, or --function my_project.train:run",
        )
    place, _, name = function.rpartition(":")
    if not place or not name:
        raise exceptions.UsageError(
            f"--function {function!r} is not module:function", hint="my_project.train:run or path/to/file.py:run"
        )
    return function


def _run_daemon(workplace: Workplace, wish: _Wish) -> None:
    from pyexp_daemon.daemon.options import RunOptions
    from pyexp_daemon.daemon.resources import count_slots, own_allocation
    from pyexp_daemon.daemon.supervisor import Supervisor
    from pyexp_daemon.daemon.systemd import Notifier

    config = workplace.config
    console = _console()
    say = _speaker(console)
    if config.daemon.start_jitter_s and not wait_at_random(config.daemon.start_jitter_s, say=say):
        return
    with workplace.experiments() as store:
        is_finished = store.read(occasions.is_finished(workplace.table))
    allocation = own_allocation()
    job = allocation.job if allocation else None
    with _name_taken(workplace, wish.name, job) as name:
        events.set_up_for_daemon(
            config.logs,
            name=name,
            table=workplace.table.name,
            terminal=console,
            to_stdout=not sys.stdout.isatty(),
        )
        workplace.announce()
        options = RunOptions(
            function=wish.function,
            slots=wish.slots or count_slots(config, allocation),
            name=name,
            until_empty=wish.until_empty,
            max_experiments=wish.max_experiments,
            at_random=wish.random_order,
            credentials=workplace.credentials,
            allocation=allocation,
            say=say,
            notifier=Notifier(os.environ),
        )

        def say_finished() -> None:
            if not wish.until_empty:
                say(f"table {workplace.table.name} is finished; waiting for new experiments (Ctrl-C ends the daemon)")

        if is_finished:
            say_finished()
        supervisor = Supervisor(config, options)
        services: list[Callable[[], Any]] = []
        if console is not None:
            from pyexp_daemon.cli.live import LiveLine

            services = [LiveLine(supervisor, console, is_finished=is_finished, say_finished=say_finished).run]
        try:
            _serve(supervisor, services)
        finally:
            events.say_left_out()


def _serve(supervisor: Supervisor, services: list[Callable[[], Any]]) -> None:
    async def serve() -> None:
        async with anyio.create_task_group() as tasks:
            for service in services:
                tasks.start_soon(service)
            await supervisor.run()
            tasks.cancel_scope.cancel()

    try:
        anyio.run(serve)
    except BaseExceptionGroup as group:
        raise exceptions.cause_of(group) from group


def _console() -> Console | None:
    """The terminal on stderr, if there is one."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(file=cast("TextIO", events.Indifferent(sys.stderr)))


def _speaker(console: Console | None) -> Callable[[str], None]:
    """How the daemon tells a person something: above the live line, if there is one."""
    if console is None:
        stderr = events.Indifferent(sys.stderr)
        return lambda text: print(f"pyexpd: {text}", file=cast("TextIO", stderr), flush=True)
    return lambda text: console.print(f"pyexpd: {text}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _name_taken(workplace: Workplace, wanted: str | None, job: str | None) -> Iterator[str]:
    """Hold the name of a daemon as long as it runs: on one host there is one of a name for each table.

    Raises:
        AlreadyRunning: another daemon has the name that was asked for.
    """
    folder = names_folder(workplace)
    try:
        name, lock = _lock_name(folder, wanted, workplace.table.name) if wanted else _lock_any(folder, job)
    except OSError as error:
        raise exceptions.UsageError(
            f"{error.filename or folder} cannot be made or locked: {error.strerror}",
            hint="Daemon.state in the configuration",
        ) from error
    try:
        yield name
    finally:
        briefly(lock.release)  # its disk may hang by now


def _lock_name(folder: Path, name: str, table: str) -> tuple[str, LockFile]:
    try:
        return name, LockFile(folder / f"{name}.lock")
    except exceptions.AlreadyRunning as error:
        raise exceptions.AlreadyRunning(
            f"a daemon of this name runs on this host for table {table}: {error}",
            hint="give this one another --name, or leave it out",
        ) from None


def _lock_any(folder: Path, job: str | None) -> tuple[str, LockFile]:
    """The job of a batch system; else, or when that is taken, `<host>-<n>` with the smallest n that is free."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "host"
    for name in itertools.chain([job] if job else [], (f"{host}-{number}" for number in itertools.count(1))):
        try:
            return name, LockFile(folder / f"{name}.lock")
        except exceptions.AlreadyRunning:
            continue
    raise AssertionError


def _run_here(workplace: Workplace, experiment: int, wish: _Wish, *, function: str) -> int:
    from pyexp_daemon.cli.rows import read_one
    from pyexp_daemon.daemon.here import Here, load_function

    if wish.slots or wish.until_empty or wish.max_experiments or wish.random_order:
        raise exceptions.UsageError(
            "--here takes none of --slots, --until-empty, --max-experiments, --random-order",
            hint=f"pyexpd run {experiment} --here",
        )
    with workplace.experiments() as store:
        row = read_one(store, workplace.table, experiment)
    if row["status"] not in (Status.CREATED, Status.WAITING):
        raise exceptions.UsageError(
            f"experiment {experiment} is {row['status']}, so it cannot be run", hint=f"pyexpd reset {experiment}"
        )
    log.settle()
    loaded = load_function(function, project=workplace.config.project)
    workplace.announce()
    name = wish.name or f"{socket.gethostname()}-here"
    here = Here(workplace.config, name=name, credentials=workplace.credentials)
    try:
        attempt = here.run(experiment, loaded)
    except KeyboardInterrupt:
        click.echo(f"experiment {experiment} was handed back", err=True)
        raise
    if attempt is None:
        raise exceptions.UsageError(
            f"experiment {experiment} is neither created nor waiting, or somebody took it just now",
            hint=f"pyexpd show {experiment} says what it is; pyexpd reset {experiment} makes it created",
        )
    click.echo(f"experiment {experiment}: {attempt.outcome.value}", err=True)
    return 1 if attempt.outcome is Outcome.ERROR else 0
