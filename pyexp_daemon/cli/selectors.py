"""The options with which a command is told which experiments it is about."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from pyexp_daemon import exceptions
from pyexp_daemon.store.selection import Selection, select
from pyexp_daemon.store.tables import Table


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which experiments were named."""

    ids: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    where: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        return bool(self.ids or self.statuses or self.where)

    @property
    def is_by_status(self) -> bool:
        """Whether the status is part of what was named."""
        return bool(self.statuses) or any(re.match(r"\s*status\b", text, re.IGNORECASE) for text in self.where)

    def of(self, table: Table) -> Selection:
        """The experiments of this table that were named; all when nothing was."""
        return select(table, ids=self.ids, statuses=self.statuses, where=self.where)

    def required(self, table: Table) -> Selection:
        """The same, but nothing named is a mistake: what changes rows changes no more than it was told to.

        Raises:
            SelectorError: no experiments were named.
        """
        if not self.is_given:
            raise exceptions.SelectorError(
                "no experiments are selected", hint="name them as 7, 3-9, 1,5 or all, or use --status or --where"
            )
        return self.of(table)


def selector(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add EXPERIMENTS, --status and --where to a command; it receives them as `chosen`."""

    @functools.wraps(function)
    def call(
        *arguments: Any, experiments: tuple[str, ...], statuses: tuple[str, ...], where: tuple[str, ...], **others: Any
    ) -> Any:
        return function(*arguments, chosen=Chosen(experiments, statuses, where), **others)

    decorators = (
        click.option(
            "--where", multiple=True, metavar="CONDITION", help="A condition such as 'lr < 0.01'; repeatable."
        ),
        click.option("--status", "statuses", multiple=True, metavar="STATUS", help="Of this status; repeatable."),
        click.argument("experiments", nargs=-1, metavar="[EXPERIMENTS]..."),
    )
    for decorate in decorators:
        call = decorate(call)
    return call
