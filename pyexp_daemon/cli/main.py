"""The command `pyexpd`: finds the verb, and turns whatever goes wrong into a line of text and an exit code.

The verbs live in modules of their own that are loaded when one of them is called, so that `pyexpd --help` stays fast.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import click

import pyexp_daemon
from pyexp_daemon import exceptions
from pyexp_daemon.cli.groups import Group
from pyexp_daemon.cli.place import configuration_options

INTERRUPTED = 130
NOBODY_READS = 141
BUG = 70

THREADS_S = 2.0
"""How long threads may take to end when everything else has."""


@dataclass(frozen=True, slots=True)
class _Verb:
    """Where a command is, and what `pyexpd --help` says of it."""

    module: str
    help: str


VERBS: Mapping[str, _Verb] = {
    "init": _Verb("init", "Write a commented configuration and a function to start from."),
    "doctor": _Verb("doctor", "Say what is wrong before anything runs."),
    "fill": _Verb("fill", "Insert the experiments of the configuration that the table lacks."),
    "run": _Verb("run", "Run experiments on this node until stopped."),
    "status": _Verb("status", "Show counts by status, speed, code versions and daemons."),
    "wait": _Verb("wait", "Wait until all experiments are finished, wherever they run."),
    "list": _Verb("listing", "List experiments."),
    "show": _Verb("show", "Show one experiment, its attempts, and what happens to it next."),
    "logs": _Verb("logs", "Show what the daemons did, or what an attempt printed."),
    "reset": _Verb("change", "Put experiments back to 'created'; their results are cleared."),
    "cancel": _Verb("change", "Cancel experiments; running ones are stopped."),
    "delete": _Verb("change", "Delete experiments with their results, log rows, emissions, snapshots and attempts."),
    "set": _Verb("change", "Change the queue or the priority of experiments."),
    "export": _Verb("export", "Write experiments and their results, or a table of aggregated results."),
    "clean": _Verb(
        "clean",
        "Delete old logs, attempts of done experiments, daemons that ended, snapshots of experiments that are gone.",
    ),
    "metrics": _Verb("metrics", "Print the state of the table and its daemons for Prometheus."),
    "daemon": _Verb("daemon", "List the daemons of the table, and tell them what to do."),
    "cluster": _Verb("cluster", "Show the allocation of the batch system, or write a batch script."),
    "db": _Verb("db", "Create, upgrade, extend, copy, merge, release or drop the tables, or show their version."),
}
"""Every command of the top level, in the order of the help."""


class Commands(Group):
    """The group `pyexpd`, which imports a verb's module when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        gc.disable()  # what is loaded stays: nobody need look whether it may go, now and when the process ends
        try:
            module = importlib.import_module(f"pyexp_daemon.cli.{verb.module}")
        finally:
            gc.freeze()
            gc.enable()
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@configuration_options
@click.version_option(pyexp_daemon.__version__, "--version", message="pyexpd %(version)s")
def cli() -> None:
    """Experiments as rows of a database table: fill it, run daemons on every node, watch, reset, export."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        arguments: None takes those of this process, which is ours then: threads that hang end with it.
    """
    if "_PYEXPD_COMPLETE" in os.environ:
        cli.main(prog_name="pyexpd")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_pipe()
        code = NOBODY_READS
    if arguments is None:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process, which is ours.

    A thread that hangs, on a disk that does not answer say, is not waited for: that might take for ever.
    """
    deadline = time.monotonic() + THREADS_S
    for thread in threading.enumerate():
        if thread.daemon or thread is threading.current_thread():
            continue
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            sys.stderr.flush()  # stdout was flushed before
            os._exit(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        with cli.make_context("pyexpd", arguments) as context:
            answer = cli.invoke(context)
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _report(_translated(error))
    except exceptions.PyExperimenterError as error:
        return _report(error)
    except Exception as error:  # noqa: BLE001 a bug of ours is one line for the user, too
        return _report_bug(error)
    return answer if isinstance(answer, int) else 0


def _report(error: exceptions.PyExperimenterError) -> int:
    _say(f"pyexpd: {_one_line(str(error))}")
    if error.hint:
        _say(f"  {_one_line(error.hint)}")
    _show_traceback()
    return error.exit_code


def _report_bug(error: Exception) -> int:
    _say(f"pyexpd: this is a bug of pyexpd: {type(error).__name__}: {_one_line(str(error))}")
    if not _show_traceback():
        _say("  PYEXPD_DEBUG=1 shows where; please report it")
    return BUG


def _show_traceback() -> bool:
    if os.environ.get("PYEXPD_DEBUG") != "1":
        return False
    import traceback

    _say(traceback.format_exc())
    return True


def _translated(error: click.ClickException) -> exceptions.UsageError:
    """What click says of wrong arguments, in one line and a hint."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pyexpd"
    hint = f"{command} --help shows what it takes"
    if isinstance(error, click.NoSuchOption):
        close = sorted(error.possibilities or ())
        message = f"there is no option {error.option_name!r}"
        return exceptions.UsageError(message, hint=f"did you mean {close[0]!r}?" if close else hint)
    message = _one_line(error.format_message()).rstrip(".")
    return exceptions.UsageError(message[:1].lower() + message[1:], hint=hint)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(text: str) -> None:
    click.echo(text, err=True)


def _leave_pipe() -> None:
    """Nobody reads our output any more: what is still buffered goes nowhere, without a complaint at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
