"""The keys for operations: what they take, and what of them is a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.config.load import load_config
from tests.unit.config.factories import write_config


def test_nothing_is_told_and_a_gibibyte_is_kept_free_unless_asked_otherwise(tmp_path: Path) -> None:
    daemon = load_config(write_config(tmp_path)).daemon
    assert (daemon.on_event, daemon.least_disk_bytes, daemon.start_jitter_s) == (None, 2**30, 0)


@pytest.mark.parametrize(
    ("written", "command"),
    [("notify --all", "notify --all"), ("[notify, --all]", ("notify", "--all")), ("'a | b'", "a | b"), ("~", None)],
)
def test_a_command_is_a_text_for_the_shell_or_a_list(
    tmp_path: Path, written: str, command: str | tuple[str, ...] | None
) -> None:
    assert load_config(write_config(tmp_path, extra=f"Daemon: {{on_event: {written}}}")).daemon.on_event == command


@pytest.mark.parametrize(
    ("daemon", "message"),
    [
        ("on_event: []", "Daemon.on_event: must not be empty"),
        ("on_event: ' '", "Daemon.on_event: must not be empty"),
        ("on_event: 7", "Daemon.on_event: expected a command as text or as a list of texts, got 7"),
        ("on_event: [notify, 7]", "Daemon.on_event: expected a command as text or as a list of texts"),
        ("on_event: {run: it}", "Daemon.on_event: expected a command as text or as a list of texts"),
        ("least_disk: 5", "Daemon.least_disk: 5 has no unit"),
        ("start_jitter: 30", "Daemon.start_jitter: 30 has no unit"),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, daemon: str, message: str) -> None:
    with pytest.raises(exceptions.InvalidConfigError) as raised:
        load_config(write_config(tmp_path, extra=f"Daemon: {{{daemon}}}"))
    assert message in str(raised.value)
