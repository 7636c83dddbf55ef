"""`pyexpd daemon`: who works on the table, and what they are told from here."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace, command, count_of, json_option, print_json, warn
from pyexp_daemon.cli.fleet import LIVE, called, labels, look
from pyexp_daemon.cli.groups import Group
from pyexp_daemon.cli.place import configuration_options
from pyexp_daemon.model import Daemon, make_token
from pyexp_daemon.store import commands, daemons

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore

LOOK_S = 0.2
EVERY = (*LIVE, "stopped", "dead")
_MARGIN_S = 5.0


@click.group("daemon", cls=Group, no_args_is_help=False)
@configuration_options
def daemon_command() -> None:
    """List the daemons of the table, and tell them what to do."""


@command("list")
@click.option("--all", "everybody", is_flag=True, help="Also those that have ended or died.")
@json_option
def _list(workplace: Workplace, *, everybody: bool, as_json: bool) -> None:
    """List the daemons: state, slots, last beat, last command and its answer."""
    with workplace.experiments() as store:
        workplace.announce()
        fleet = look(store, workplace, states=EVERY if everybody else LIVE)
    if as_json:
        print_json(fleet.documents())
    else:
        click.echo("\n".join(fleet.describe()) or "no daemon is live")


def _telling(name: str, summary: str, details: str) -> click.Command:
    """The command that asks daemons to do what it is called."""

    @command(name)
    @click.argument("names", nargs=-1, metavar="[NAME…]")
    @click.option("--all", "everybody", is_flag=True, help="Every daemon of the table.")
    @click.option("--dry-run", is_flag=True, help="Only say who would be asked.")
    @click.option("--no-wait", is_flag=True, help="Do not wait until they have answered.")
    @json_option
    def tell(
        workplace: Workplace, *, names: tuple[str, ...], everybody: bool, dry_run: bool, no_wait: bool, as_json: bool
    ) -> int:
        if bool(names) == everybody:
            raise exceptions.UsageError(
                f"daemon {name} takes names of daemons, or --all", hint="pyexpd daemon list shows their names"
            )
        with workplace.experiments() as store:
            live = store.read(daemons.look(workplace.table, states=LIVE))
            chosen = _choose(live, names, order=name)
            known_as = labels(live)
            workplace.announce()
            if dry_run:
                click.echo(f"would ask {_named(chosen, known_as)} to {name}")
                return 0
            token = make_token()
            uuids = [row.incarnation for row in chosen]
            store.run(commands.ask(workplace.table, incarnations=uuids, command=name, asked_by=_who(), token=token))
            answers = {} if no_wait else _wait_for_answers(store, workplace, chosen, token)
        return _report(chosen, answers, known_as, name=name, waited=not no_wait, as_json=as_json)

    which = "NAME is a name that one live daemon has, NAME@HOST, or an id."
    heard = "Daemons hear it with their next heartbeat, from whichever node it is said."
    tell.help = f"{summary}\n\n{details} {which} {heard}"
    return tell


def _choose(live: Sequence[Daemon], wanted: Sequence[str], *, order: str) -> list[Daemon]:
    """The live daemons that are meant; all for none.

    Raises:
        UsageError: one is not there, or several could be meant: nobody is asked then.
    """
    known_as = labels(live)
    if not live:
        raise exceptions.UsageError("no daemon is live", hint="pyexpd daemon list --all shows those that have ended")
    ids = set()
    for text in wanted:
        found = called(live, text)
        if not found:
            raise exceptions.UsageError(f"no daemon {text} is live", hint=f"live are: {_named(live, known_as)}")
        if len(found) > 1:
            raise exceptions.UsageError(
                f"{len(found)} live daemons are called {text}",
                hint=f"pyexpd daemon {order} NAME@HOST, or the id: {_named(found, known_as)}; --all asks every daemon",
            )
        ids.add(found[0].id)
    return [row for row in live if not wanted or row.id in ids]


def _named(rows: Sequence[Daemon], known_as: Mapping[int, str]) -> str:
    return ", ".join(known_as[row.id] for row in rows)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"[:255]


def _wait_for_answers(
    store: BlockingStore, workplace: Workplace, chosen: Sequence[Daemon], token: str
) -> dict[int, str]:
    """What the daemons answer, in their order, as far as it comes while they may be thought alive."""
    end = time.monotonic() + max(row.lease_s for row in chosen) + _MARGIN_S
    answers: dict[int, str] = {}
    while time.monotonic() < end:
        found = store.read(commands.asked(workplace.table, token=token))
        answers = {row.id: told.answer or "" for row in chosen if (told := found[row.incarnation]).answered is not None}
        if len(answers) == len(chosen):
            break
        time.sleep(LOOK_S)
    return answers


def _report(
    chosen: Sequence[Daemon],
    answers: Mapping[int, str],
    known_as: Mapping[int, str],
    *,
    name: str,
    waited: bool,
    as_json: bool,
) -> int:
    silent = [row for row in chosen if row.id not in answers]
    if as_json:
        print_json(
            [
                {"id": row.id, "name": row.name, "host": row.host, "command": name, "answer": answers.get(row.id)}
                for row in chosen
            ]
        )
    elif waited:
        for row in chosen:
            if row.id in answers:
                click.echo(f"{known_as[row.id]}: {answers[row.id]}")
    else:
        click.echo(f"asked {count_of(len(chosen), 'daemon')} to {name}")
    if waited and silent:
        warn(f"no answer from {_named(silent, known_as)}; the command stands until they end")
    return 1 if waited and silent else 0


_COMMANDS: Sequence[tuple[str, str, str]] = (
    ("drain", "Claim nothing more, finish what runs, end.", "Without a deadline: what runs takes as long as it takes."),
    ("stop", "End soon: what runs has Daemon.drain_timeout.", "What is not finished then is handed back, uncharged."),
    ("pause", "Claim nothing until resumed.", "What runs goes on. (pause and unpause of experiments are others.)"),
    ("resume", "Go on claiming.", "Also after a pause that a daemon has made by itself."),
    ("reset", "Hand back what runs, uncharged, and begin anew.", "With fresh code and the configuration as it is now."),
    ("reload", "Read the configuration again and use fresh code.", "What runs goes on and is not touched."),
)
for _command in (_list, *(_telling(*described) for described in _COMMANDS)):
    daemon_command.add_command(_command)
