"""Where a command works: the options that name configuration and credentials, before the verb and after it.

Imports click only: this is loaded for `pyexpd --help`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

C = TypeVar("C", bound=Callable[..., Any])


@dataclass(slots=True)
class Place:
    """The files named on the command line."""

    config: Path | None = None
    credentials: Path | None = None


def place_of(context: click.Context) -> Place:
    """What was said so far, before the verb or after it."""
    place = context.find_root().ensure_object(Place)
    assert isinstance(place, Place)
    return place


def configuration_options(command: C) -> C:
    """The options `-c` and `--credentials`; what stands after the verb wins."""
    for decorate in (
        click.option(
            "--credentials",
            type=click.Path(path_type=Path),
            expose_value=False,
            callback=_remember,
            help="File with the database's user and password.",
        ),
        click.option(
            "-c",
            "--config",
            type=click.Path(path_type=Path),
            expose_value=False,
            callback=_remember,
            help="Configuration file; default: $PYEXPD_CONFIG, pyexpd.yml, config/experiment_configuration.yml.",
        ),
    ):
        command = decorate(command)
    return command


def _remember(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None and parameter.name is not None:
        setattr(place_of(context), parameter.name, value)
