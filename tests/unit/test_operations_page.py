"""docs/operations.md names nothing that is not there: commands, options, keys, events, exit codes, links."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from pyexp_daemon.cli import main
from pyexp_daemon.cli.checks import grants
from pyexp_daemon.config.mistakes import all_keys
from pyexp_daemon.config.models import Experimenter
from pyexp_daemon.daemon import notices

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", PAGE)


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and what is left of them."""
    command: click.Command = main.cli
    while words and isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("text", sorted({code for code in CODE if code.startswith("pyexpd ")}))
def test_every_command_exists_with_its_options(text: str) -> None:
    command, rest = find_command(text.split()[1:])
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known
    assert not isinstance(command, click.Group)


def test_every_key_exists() -> None:
    keys = {".".join(map(str, path)) for path in all_keys(Experimenter)}
    named = {code.partition(":")[0] for code in CODE if code.startswith(("Daemon.", "Limits."))}
    assert named <= keys
    assert {"Daemon.on_event", "Daemon.least_disk", "Daemon.start_jitter"} <= named


def test_every_event_exists() -> None:
    events = (DOCS / "reference" / "events.md").read_text()
    for code in CODE:
        if re.fullmatch(r"(notice|disk|daemon|node)\.\w+", code):
            assert f"| `{code}` |" in events


def test_exit_codes_are_those_of_the_reference() -> None:
    reference = (DOCS / "reference" / "exit-codes.md").read_text()
    _, _, section = PAGE.partition("## Exit codes")
    codes = re.findall(r"^\| (\d+) \|", section.partition("\n## ")[0], re.MULTILINE)
    assert {"0", "64", "69", "70", "74", "75"} == set(codes)
    assert set(codes) <= set(re.findall(r"^\| (\d+) \|", reference, re.MULTILINE))


def test_figures_and_names_are_those_of_the_code() -> None:
    assert f"once in {notices.PAUSE_S:g} s" in PAGE
    assert f"After {notices.TIMEOUT_S:g} s" in PAGE
    assert f"it has {notices.LAST_S:g} s" in PAGE
    assert f"the first {notices.MOST_DETAILS} in" in PAGE
    assert ", ".join(grants.DAEMON) in PAGE
    assert ", ".join((*grants.DAEMON, *grants.OPERATOR)) in PAGE
    told = re.findall(r"^\| `(\w+)` \| (?:one daemon|the daemon)", PAGE, re.MULTILINE)
    assert set(told) == set(get_args(notices.Kind))


def test_the_example_of_a_message_has_its_keys() -> None:
    (text,) = re.findall(r"```json\n(.+?)\n```", PAGE, re.DOTALL)
    message: dict[str, Any] = json.loads(text)
    assert list(message) == ["event", "table", "daemon", "host", "time", "count", "details"]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE))))
def test_links_lead_somewhere(target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (DOCS / path) if path else DOCS / "operations.md"
    assert file.exists()
    if anchor:
        titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
