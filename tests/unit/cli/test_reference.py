"""docs/reference is complete: every command, option, exit code and event is in it, and none that is not there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


def events() -> Iterator[tuple[str, str]]:
    """Every event that the source logs, with the file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and _is_logging(node.func):
                for constant in ast.walk(node.args[0]):
                    if isinstance(constant, ast.Constant) and EVENT.fullmatch(str(constant.value)):
                        yield str(constant.value), path.name


def _is_logging(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        levels = ("debug", "info", "warning", "error", "critical", "exception")
        return isinstance(function.value, ast.Name) and function.value.id == "log" and function.attr in levels
    return isinstance(function, ast.Name) and function.id == "say"


def test_every_event_is_described_and_no_other() -> None:
    described = set(re.findall(r"^\| `([a-z.]+[a-z_.]*)` \|", (REFERENCE / "events.md").read_text(), re.MULTILINE))
    assert {name for name, _ in events()} == described
