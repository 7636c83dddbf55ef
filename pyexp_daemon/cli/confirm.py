"""Asking a person before something is done that cannot be taken back."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.context import Workplace


def confirm(workplace: Workplace, what: str, lines: Sequence[str] = (), *, yes: bool) -> None:
    """Announce the workplace, say what is about to be done, and ask; with `yes` it is not asked, and not said.

    Args:
        what: in short, such as `deletes 3 experiments`.
        lines: at length.

    Raises:
        UsageError: nobody can be asked; nothing was announced.
        Abort: the answer was no.
    """
    if not (yes or (sys.stdin is not None and sys.stdin.isatty())):
        raise exceptions.UsageError(f"this {what}; it was not confirmed", hint="add --yes, or --dry-run to look only")
    workplace.announce()
    if not yes:
        click.echo("\n".join(lines or [what]), err=True)
        click.confirm("Go on?", abort=True, err=True)
