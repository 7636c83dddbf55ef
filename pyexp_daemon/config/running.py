"""The sections `Daemon` and `Limits`: how experiments run on this node."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, model_validator

from pyexp_daemon.config.fields import Count, SomePath, Text
from pyexp_daemon.config.mistakes import mistake, show
from pyexp_daemon.config.names import LONGEST_NAME
from pyexp_daemon.config.section import Section
from pyexp_daemon.config.units import Duration, PositiveDuration, PositiveSize, Size

Gpus = Literal["auto"] | int | tuple[int | str, ...]


def _read_gpus(value: Any) -> Gpus:
    if isinstance(value, list | tuple):
        for index, gpu in enumerate(value):
            if not _is_gpu(gpu):
                raise mistake(f"expected a number or an identifier of a GPU, got {show(gpu)}", at=(index,))
        return tuple(value)
    if value == "auto" or (isinstance(value, int) and _is_gpu(value)):
        return "auto" if value == "auto" else value
    raise mistake(f"expected auto, a number or a list of GPUs, got {show(value)}", hint="gpus: [0, 1]")


def _is_gpu(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value >= 0
    return isinstance(value, str) and bool(value.strip())


def _read_queues(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise mistake(f"expected a list, got {show(value)}", hint=f"queues: [{value}]")
    for index, queue in enumerate(value):
        if not isinstance(queue, str) or not 0 < len(queue) <= LONGEST_NAME:
            raise mistake(f"expected a name of at most {LONGEST_NAME} characters, got {show(queue)}", at=(index,))
        if queue in value[:index]:
            raise mistake(f"{show(queue)} is listed twice", at=(index,))
    if not value:
        raise mistake("the list is empty", hint="queues: [default]")
    return tuple(value)


def _read_command(value: Any) -> str | tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise mistake(
            f"expected a command as text or as a list of texts, got {show(value)}", hint="on_event: notify-me.sh"
        )
    if not words or not words[0].strip():
        raise mistake("must not be empty")
    return value if isinstance(value, str) else tuple(words)


# Slurm kills 30 seconds (its KillWait) after its TERM. Until then a daemon inside has waited, has ended its children,
# and has told the database, for which it takes ten seconds at most: 10 + 5 + 10.
def _default_drain_timeout() -> float:
    return 10.0 if _is_in_slurm() else 60.0


def _default_grace() -> float:
    return 5.0 if _is_in_slurm() else 10.0


def _is_in_slurm() -> bool:
    return "SLURM_JOB_ID" in os.environ


class Recycle(Section):
    """When a reused child is replaced; None is never."""

    experiments: Count | None = None
    memory_bytes: PositiveSize | None = None


class Poll(Section):
    """How long an idle daemon waits between two looks at the database."""

    shortest_s: PositiveDuration = 0.1
    longest_s: PositiveDuration = 5.0

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.longest_s < self.shortest_s:
            raise mistake(f"longest ({self.longest_s:g}s) must not be below shortest ({self.shortest_s:g}s)")
        return self


class DaemonConfig(Section):
    """What the daemon of this node does."""

    slots: Count | None = None
    gpus: Annotated[Gpus, PlainValidator(_read_gpus)] = "auto"
    threads: Count | None = None
    python: Text | None = None
    isolation: Literal["reuse", "fresh"] = "reuse"
    recycle: Recycle = Recycle.model_construct()
    queues: Annotated[tuple[str, ...], PlainValidator(_read_queues)] = ("default",)
    heartbeat_s: PositiveDuration = 10.0
    lease_s: PositiveDuration = 60.0
    poll: Poll = Poll.model_construct()
    drain_timeout_s: Duration = Field(default_factory=_default_drain_timeout)
    watchdog_s: PositiveDuration = 300.0
    state: SomePath | None = None
    logs: SomePath | None = None
    on_lease_lost: Literal["finish", "kill"] = "finish"
    canary_s: PositiveDuration = 300.0
    on_event: Annotated[str | tuple[str, ...], PlainValidator(_read_command)] | None = None
    least_disk_bytes: Size = 2**30
    start_jitter_s: Duration = 0.0

    @model_validator(mode="after")
    def _survive_two_missed_heartbeats(self) -> Self:
        if self.lease_s < 3 * self.heartbeat_s:
            raise mistake(
                f"lease ({self.lease_s:g}s) must be at least 3 heartbeats ({self.heartbeat_s:g}s each)",
                hint=f"lease: {3 * self.heartbeat_s:g}s",
                at=("lease",),
            )
        return self


class Tries(Section):
    """How many attempts of an experiment may end so before it becomes `error`; 1 is no retry."""

    error: Count = 1
    timeout: Count = 1
    stalled: Count = 2
    crash: Count = 3
    lost: Count = 20

    def __getitem__(self, outcome: str) -> int:
        """The budget of an outcome by its name, as `tries["crash"]`."""
        if outcome not in type(self).model_fields:
            raise KeyError(outcome)
        return int(getattr(self, outcome))


class Backoff(Section):
    """How long a failed experiment waits for its next attempt: doubling from `first_s` up to `longest_s`."""

    first_s: Duration = 30.0
    longest_s: Duration = 3600.0

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.longest_s < self.first_s:
            raise mistake(f"longest ({self.longest_s:g}s) must not be below first ({self.first_s:g}s)")
        return self


class LimitsConfig(Section):
    """What one attempt may use, and how often an experiment is tried."""

    timeout_s: PositiveDuration | None = None
    stalled_s: PositiveDuration | None = None
    memory_bytes: PositiveSize | None = None
    tries: Tries = Tries.model_construct()
    backoff: Backoff = Backoff.model_construct()
    log_size_bytes: PositiveSize = 64 * 2**20
    grace_s: Duration = Field(default_factory=_default_grace)
