"""Groups of commands that say what was meant when a command is not there. Imports click only."""

from __future__ import annotations

import difflib

import click

from pyexp_daemon import exceptions


class Group(click.Group):
    """A group whose unknown commands are one line and a hint."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not ctx.resilient_parsing:
            close = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"{ctx.command_path} --help lists what there is"
            kind = "option" if args[0].startswith("-") else "command"
            raise exceptions.UsageError(f"there is no {kind} {args[0]!r}", hint=hint)
        return super().resolve_command(ctx, args)
