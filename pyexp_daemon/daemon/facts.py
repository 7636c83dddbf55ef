"""What a daemon says of itself: in short with every beat, in words to systemd, at length when asked for a dump."""

from __future__ import annotations

import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import anyio

from pyexp_daemon.daemon.health import STEADY_S
from pyexp_daemon.daemon.systemd import describe
from pyexp_daemon.store.migrations import VERSION

if TYPE_CHECKING:
    from pyexp_daemon.daemon.supervisor import Supervisor

SILENT_BEATS, LEAST_SILENT_S = 6, 10.0
"""An experiment without a sign of life for so many heartbeats, and no less than so many seconds, is named."""

_MOST_SILENT = 20
_FRAMES = 8


def in_short(daemon: Supervisor) -> dict[str, Any]:
    """The column `facts` of the daemons table; its keys are listed in docs/reference/tables.md."""
    return {
        "schema": VERSION,
        "running": len(daemon.pool.running),
        "queued": len(daemon.pool.queued),
        "steady": sum(seconds > STEADY_S for seconds in daemon.pool.running_for().values()),
        "ended": daemon.completer.totals.outcomes,
        "rescued": daemon.rescue.rescued,
        "reconnects": daemon.link.reconnects,
        "spool_bytes": daemon.completer.spool.size_bytes,
        "paused": daemon.paused,
        "draining": daemon.control.draining,
        "queues": daemon.claimer.queues,
        "keyfields": list(daemon.table.keyfields),
        "gpus": daemon.pool.settings.gpus,
        "silent": _silent(daemon),
    }


def _silent(daemon: Supervisor) -> dict[int, float]:
    """The longest silent experiments and for how many seconds they have been."""
    least_s = max(LEAST_SILENT_S, SILENT_BEATS * daemon.config.daemon.heartbeat_s)
    silent = daemon.pool.silent(least_s).items()
    return dict(sorted(silent, key=lambda item: -item[1])[:_MOST_SILENT])


def in_words(daemon: Supervisor) -> str:
    """What `systemctl status` shows."""
    states = {
        "draining": daemon.control.draining,
        "the database is away": daemon.link.is_away,
        f"paused ({daemon.paused})": daemon.paused is not None,
    }
    return describe(
        running=len(daemon.pool.running),
        slots=daemon.options.slots,
        ended=daemon.completer.totals.outcomes,
        state=", ".join(state for state, holds in states.items() if holds) or None,
    )


def at_length(daemon: Supervisor) -> dict[str, Any]:
    """The keys of the event `daemon.dump`."""
    frames = sys._current_frames()
    heartbeat = daemon.membership.heartbeat
    return {
        "slots": daemon.pool.describe(),
        "queued": [claim.experiment_id for claim in daemon.pool.queued],
        "unwritten": daemon.completer.waiting,
        "paused": daemon.paused,
        "lease_left_s": round(daemon.membership.lease_left_s, 1),
        "last_errors": [error for error in (daemon.link.last_error, heartbeat.last_error) if error],
        "tasks": sorted(task.name or "" for task in anyio.get_running_tasks()),
        "threads": {
            thread.name: traceback.format_stack(frames[thread.ident])[-_FRAMES:]
            for thread in threading.enumerate()
            if thread.ident in frames
        },
    }
