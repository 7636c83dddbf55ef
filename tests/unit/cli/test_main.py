"""How a command ends: codes and lines, whatever is raised."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from pyexp_daemon import exceptions
from pyexp_daemon.cli import main
from pyexp_daemon.cli.place import configuration_options, place_of
from pyexp_daemon.config.load import load_config
from pyexp_daemon.space.grid import grid_of

TEMPLATES = Path(main.__file__).parent / "templates"


def end(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int | str | None:
    """What `pyexpd status` exits with when it raises this."""

    @click.command("status")
    def failing() -> None:
        raise error

    monkeypatch.setattr(main.Commands, "get_command", lambda self, context, name: failing)
    with pytest.raises(SystemExit) as ended:
        main.main(["status"])
    return ended.value.code


def test_own_error_is_its_line_its_hint_and_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = exceptions.DatabaseConnectionError("first\nsecond", hint="do this")
    assert end(monkeypatch, error) == 74
    assert capsys.readouterr().err == "pyexpd: first second\n  do this\n"


def test_bug_is_one_line_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(monkeypatch, KeyError("luck")) == 70
    said = capsys.readouterr().err
    assert said.startswith("pyexpd: this is a bug of pyexpd: KeyError: 'luck'\n")
    assert "Traceback" not in said
    monkeypatch.setenv("PYEXPD_DEBUG", "1")
    assert end(monkeypatch, KeyError("luck")) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_interrupt_is_130_without_a_word(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(monkeypatch, error) == 130
    assert capsys.readouterr().err == ""


def test_place_is_taken_before_and_after_the_verb() -> None:
    seen = []

    @click.command("probe")
    @configuration_options
    @click.pass_context
    def probe(context: click.Context) -> None:
        seen.append(place_of(context).config)

    for arguments in (["-c", "a.yml"], ["--config=b.yml"]):
        with main.cli.make_context("pyexpd", [*arguments, "status"]) as context:
            probe.main([], parent=context, standalone_mode=False)
        with main.cli.make_context("pyexpd", ["status"]) as context:
            probe.main(arguments, parent=context, standalone_mode=False)
        with main.cli.make_context("pyexpd", ["-c", "z.yml", "status"]) as context:
            probe.main(arguments, parent=context, standalone_mode=False)
    assert seen == [Path("a.yml")] * 3 + [Path("b.yml")] * 3


def test_template_is_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "pyexpd.yml"
    file.write_text((TEMPLATES / "pyexpd.yml").read_text())
    assert len(grid_of(load_config(file))) == 15


def test_keys_that_the_template_comments_out_exist(tmp_path: Path) -> None:
    """Taking away the comment signs gives a configuration, too."""
    text = (TEMPLATES / "pyexpd.yml").read_text()
    file = tmp_path / "pyexpd.yml"
    file.write_text(re.sub(r"^( +)# (?=[a-z]+: )", r"\1", text, flags=re.MULTILINE))
    load_config(file)
    content = yaml.safe_load(file.read_text())["PY_EXPERIMENTER"]
    assert set(content["Limits"]) == {"timeout", "memory", "tries"}
    assert set(content["Daemon"]) == {"slots", "queues", "isolation"}
