"""`pyexpd init`: a configuration and a function to start from."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import click

from pyexp_daemon import exceptions

FILES = ("pyexpd.yml", "experiments.py")


@click.command("init")
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
def init_command(folder: Path) -> None:
    """Write a commented configuration and a function to start from.

    They are pyexpd.yml and experiments.py, in DIR or the current folder. Nothing is overwritten.
    """
    there = [name for name in FILES if os.path.lexists(folder / name)]
    if there:
        raise exceptions.UsageError(
            f"{folder / there[0]} exists already; nothing was written", hint="pyexpd init ANOTHER_DIR"
        )
    templates = resources.files("pyexp_daemon.cli") / "templates"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write((templates / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise exceptions.UsageError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    for name in FILES:
        click.echo(f"wrote {folder / name}")
    here = "" if folder == Path() else f"cd {folder} && "
    click.echo(f"next: {here}pyexpd fill && pyexpd run --until-empty")
    click.echo("pyexpd doctor says what is wrong, if anything is")
