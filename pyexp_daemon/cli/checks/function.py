"""The experiment function, imported by a real slot."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import anyio

from pyexp_daemon import exceptions, log
from pyexp_daemon.cli.checks.finding import Finding, error, ok, warning
from pyexp_daemon.config.models import Config
from pyexp_daemon.daemon.resources import slot_settings
from pyexp_daemon.model import Attempt, Claim, SnapshotHead, SnapshotPart, make_token
from pyexp_daemon.worker.pool import Pool

START_S = 60.0


def examine(config: Config) -> Finding:
    """Whether a child of a daemon can import the function, and how long that takes."""
    function = config.function
    if function is None:
        text = "the configuration names none, so pyexpd run needs --function"
        return warning("function", text, "Function: my_project.train:run")
    try:
        seconds = anyio.run(_import_in_a_slot, config, function)
    except TimeoutError:
        return error("function", f"{function} is not imported within {START_S:g} s")
    except exceptions.PyExperimenterError as problem:
        return Finding.of("function", problem)
    return ok("function", f"{function} is imported by a slot in {seconds:.1f} s")


class _Nobody:
    """Hears what a pool without experiments has to say: nothing."""

    async def results(self, claim: Claim, results: dict[str, Any]) -> None:
        """Never called."""

    async def snapshot(self, claim: Claim, part: SnapshotPart, head: SnapshotHead | None) -> None:
        """Never called."""

    async def look_up(self, claim: Claim, what: str, arguments: dict[str, Any]) -> Any:
        """Never called."""

    async def logs(self, claim: Claim, rows: list[tuple[str, float, dict[str, Any]]]) -> None:
        """Never called."""

    async def finished(self, attempt: Attempt) -> None:
        """Never called."""

    def progress(self, claim: Claim, fraction: float | None, description: str | None) -> None:
        """Never called."""


async def _import_in_a_slot(config: Config, function: str) -> float:
    """Start one child as a daemon does; how long it took.

    Raises:
        FunctionError, ChildrenCannotStart: it cannot run experiments.
        TimeoutError: it says nothing.
    """
    settings = dataclasses.replace(slot_settings(config, function=function, slots=1), incarnation=make_token())
    log.set_up_for_command(silent=True)
    pool = Pool(settings, slots=1, events=_Nobody())
    began = time.monotonic()
    failure: exceptions.PyExperimenterError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.run)
        with anyio.move_on_after(START_S) as patience:
            try:
                await pool.wait_ready()
            except exceptions.PyExperimenterError as error:
                failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if patience.cancelled_caught:
        raise TimeoutError
    return time.monotonic() - began
