"""The reference names every key that the code reads, and the commented examples show it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyexp_daemon.config.credentials import CredentialsRoot
from pyexp_daemon.config.mistakes import all_keys
from pyexp_daemon.config.models import Experimenter, Keyfield
from pyexp_daemon.config.section import Section

ROOT = Path(__file__).parents[3]
REFERENCE = (ROOT / "docs" / "reference" / "configuration.md").read_text()


def documented(part: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|.*\|.*\|$", part, flags=re.MULTILINE))


def keys_of(section: type[Section]) -> set[str]:
    return {".".join(map(str, path)) for path in all_keys(section)}


def test_the_reference_names_exactly_the_keys_of_the_configuration() -> None:
    keyfields = {f"Database.table.keyfields.<name>.{key}" for key in keys_of(Keyfield)}
    configuration, _, _ = REFERENCE.partition("## Credentials")
    assert documented(configuration) == keys_of(Experimenter) | keyfields


def test_the_reference_names_exactly_the_keys_of_the_credentials() -> None:
    _, _, credentials = REFERENCE.partition("## Credentials")
    assert documented(credentials) == keys_of(CredentialsRoot)


@pytest.mark.parametrize("name", ["sqlite.yml", "mysql.yml"])
def test_the_examples_show_every_key(name: str) -> None:
    text = (ROOT / "configs" / name).read_text()
    shown = set(re.findall(r"(\w+):", text))
    wanted = {key.rpartition(".")[2] for key in keys_of(Experimenter)} | keys_of(Keyfield)
    assert wanted - shown <= ({"use_ssh"} if name == "sqlite.yml" else set())
