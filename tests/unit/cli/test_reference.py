"""docs/reference is complete: every command, option, exit code and event is in it, and none that is not there."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.cli import main

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "pyexp_daemon"
REFERENCE = ROOT / "docs" / "reference"
EVENT = re.compile(r"[a-z]+\.[a-z_]+")
OUTCOMES = "(outcomes)"
"""Stands for keys that are outcomes of attempts."""


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def sections() -> dict[str, str]:
    pieces = re.split(r"^## (.+)$", (REFERENCE / "commands.md").read_text(), flags=re.MULTILINE)
    return {"": pieces[0], **dict(zip(pieces[1::2], pieces[2::2], strict=True))}


COMMANDS = list(commands(main.cli, "pyexpd"))


def test_every_command_has_a_section() -> None:
    assert {title for title in sections() if title.startswith("pyexpd ")} == {path for path, _ in COMMANDS}


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_every_option_is_described(path: str, command: click.Command) -> None:
    text = sections()[path]
    everywhere = sections()[""]
    for parameter in command.params:
        for option in parameter.opts if isinstance(parameter, click.Option) else ():
            assert f"`{option}" in everywhere or re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{path} {option}"
    described = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    known = {option for parameter in command.params for option in parameter.opts}
    assert described - known - {"--help"} == set()


@pytest.mark.parametrize("name", list(main.VERBS))
def test_help_of_the_group_says_what_the_command_says(name: str) -> None:
    """The short texts stand apart, so that the help need not load the commands: they must not drift."""
    command = main.cli.get_command(click.Context(main.cli), name)
    assert command is not None
    assert (command.help or "").partition("\n\n")[0] == main.VERBS[name].help


def subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_exit_code_is_described() -> None:
    described = {
        int(code) for code in re.findall(r"^\| (\d+) \|", (REFERENCE / "exit-codes.md").read_text(), re.MULTILINE)
    }
    used = {kind.exit_code for kind in subclasses(exceptions.PyExperimenterError) if hasattr(kind, "exit_code")}
    assert used | {0, 1, 2, main.INTERRUPTED, main.NOBODY_READS, main.BUG} <= described


@dataclass(frozen=True)
class Saying:
    """One call that logs.

    Args:
        names: the events it may say.
        keys: what it always says of them, but for `**`.
        starred: what `**` brings.
    """

    names: frozenset[str]
    keys: frozenset[str]
    starred: frozenset[str]


STARRED = {
    "_facts(attempt)": "daemon/attempt_log.py:_facts",
    "facts.at_length(self)": "daemon/facts.py:at_length",
    "self._left_out": OUTCOMES,
    "self.completer.totals.outcomes": OUTCOMES,
}
"""What stands behind `**`, unless it is a variable: outcomes, or the file and function that make the dictionary."""


def sayings() -> Iterator[Saying]:
    """Every call in the source that logs an event."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and _is_logging(node.func):
                constants = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
                names = frozenset(str(value) for value in constants if EVENT.fullmatch(str(value)))
                starred = [keyword.value for keyword in node.keywords if keyword.arg is None]
                if names:
                    yield Saying(
                        names,
                        frozenset(_keys_of(node)),
                        frozenset(key for expression in starred for key in _keys_behind(expression, tree)),
                    )


def _is_logging(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        levels = ("debug", "info", "warning", "error", "critical", "exception")
        return isinstance(function.value, ast.Name) and function.value.id == "log" and function.attr in levels
    return isinstance(function, ast.Name) and function.id == "say"


def _keys_of(call: ast.Call) -> Iterator[str]:
    if isinstance(call.func, ast.Attribute) and call.func.attr == "exception":
        yield "exception"
    for keyword in call.keywords:
        if keyword.arg is not None:
            yield "exception" if keyword.arg == "exc_info" else keyword.arg


def _keys_behind(starred: ast.expr, tree: ast.Module) -> Iterator[str]:
    text = ast.unparse(starred)
    if isinstance(starred, ast.Name):
        assigned = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign) and _sets(node, text)
        ]
        assert assigned, f"**{text}: nothing is known of it"
        for value in assigned:
            yield from _keys_in(value)
        return
    assert text in STARRED, f"**{text}: say in STARRED what it brings"
    if STARRED[text] == OUTCOMES:
        yield OUTCOMES
        return
    file, _, name = STARRED[text].partition(":")
    made = ast.walk(ast.parse((PACKAGE / file).read_text()))
    (function,) = (node for node in made if isinstance(node, ast.FunctionDef) and node.name == name)
    yield from _keys_in(function)


def _sets(assignment: ast.Assign | ast.AnnAssign, name: str) -> bool:
    targets = assignment.targets if isinstance(assignment, ast.Assign) else [assignment.target]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _keys_in(node: ast.AST | None) -> Iterator[str]:
    """The keys of the outermost dictionary that is written there."""
    made = next((part for part in ast.walk(node or ast.Pass()) if isinstance(part, ast.Dict) and part.keys), None)
    yield from (str(key.value) for key in (made.keys if made else ()) if isinstance(key, ast.Constant))


def described_events() -> dict[str, set[str]]:
    """Events and their keys, as the table of the reference has them."""
    rows = re.findall(
        r"^\| `([a-z.]+[a-z_.]*)` \|(?:[^|]*)\|(?:[^|]*)\|([^|]*)\|$",
        (REFERENCE / "events.md").read_text(),
        re.MULTILINE,
    )
    return {
        name: set(re.findall(r"`([a-z_]+)`", keys)) | ({OUTCOMES} if "how many of each outcome" in keys else set())
        for name, keys in rows
    }


def test_every_event_is_described_and_no_other() -> None:
    assert {name for saying in sayings() for name in saying.names} == set(described_events())


def test_every_key_of_every_event_is_described_and_no_other() -> None:
    """Where one call says one of two events, `**` may belong to either of them."""
    always: defaultdict[str, set[str]] = defaultdict(set)
    perhaps: defaultdict[str, set[str]] = defaultdict(set)
    for saying in sayings():
        for name in saying.names:
            always[name] |= saying.keys
            (perhaps if len(saying.names) > 1 else always)[name] |= saying.starred
    for name, described in described_events().items():
        assert described - perhaps[name] == always[name] - perhaps[name], name


def test_common_keys_are_described() -> None:
    text = (REFERENCE / "events.md").read_text().partition("| event |")[0]
    for key in ("timestamp", "level", "event", "daemon", "table", "experiment_id", "repeated"):
        assert f"`{key}`" in text
