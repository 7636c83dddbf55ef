"""Services: what runs for as long as a daemon lives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from pyexp_daemon.log import get_logger

log = get_logger()


async def kept_up(service: Callable[[], Awaitable[None]]) -> None:
    """Run a service for as long as the daemon lives: no fault of one turn may end them all."""
    while True:
        try:
            return await service()
        except Exception:
            log.exception("service.failed", service=service.__name__)
            await anyio.sleep(5)
