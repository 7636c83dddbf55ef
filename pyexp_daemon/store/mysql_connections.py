"""The drivers' connections, made to keep promises that the drivers do not: with TLS, nothing goes in clear, and through
a tunnel it is still the server's own name that has to be in its certificate.

When a server announces no TLS, both drivers log in without it and without a word, and send the password to whoever
asks for it. They are stopped where they know what the server announced and have sent nothing yet.
"""

from __future__ import annotations

from typing import Any

import aiomysql
import pymysql
from pymysql.connections import Connection
from pymysql.constants import CLIENT


class BlockingConnection(Connection):
    """PyMySQL's, which encrypts when it was told to, or sends nothing.

    Args:
        server_name: of whom the certificate must be, when `host` is our end of a tunnel.
    """

    def __init__(self, *, server_name: str | None = None, **options: Any) -> None:
        self._server_name = server_name
        super().__init__(**options)

    def _request_authentication(self) -> None:
        _demand_tls(self, wanted=self.ssl)
        if self._server_name:
            self.host = self._server_name
        super()._request_authentication()  # type: ignore[misc]


class AsyncConnection(aiomysql.Connection):  # type: ignore[misc]  # the driver has no types
    """aiomysql's, likewise."""

    def __init__(self, *, server_name: str | None = None, **options: Any) -> None:
        self._server_name = server_name
        super().__init__(**options)

    async def _request_authentication(self) -> None:
        _demand_tls(self, wanted=self._ssl_context)
        if self._server_name:
            self._host = self._server_name
        await super()._request_authentication()


async def connect(**options: Any) -> AsyncConnection:
    """Log in. What `aiomysql.connect` does, with a connection of ours."""
    connection = AsyncConnection(**options)
    await connection._connect()
    return connection


def _demand_tls(connection: Any, *, wanted: object) -> None:
    """
    Raises:
        pymysql.OperationalError: the connection was to be encrypted, and the server does not offer that.
    """
    if wanted and not connection.server_capabilities & CLIENT.SSL:
        raise pymysql.OperationalError(2026, "the server offers no encryption (TLS), and the credentials demand it")
