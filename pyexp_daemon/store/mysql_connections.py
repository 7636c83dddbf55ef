"""Connections that keep promises which the drivers' do not: with TLS, nothing goes in clear, and through a tunnel it is
still the server's own name that has to be in its certificate. Here is PyMySQL's; `mysql_async.py` has aiomysql's.

When a server announces no TLS, both drivers log in without it and without a word, and send the password to whoever
asks for it. They are stopped where they know what the server announced and have sent nothing yet.
"""

from __future__ import annotations

from typing import Any

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
        demand_tls(self, wanted=self.ssl)
        if self._server_name:
            self.host = self._server_name
        super()._request_authentication()  # type: ignore[misc]


def demand_tls(connection: Any, *, wanted: object) -> None:
    """Let a connection go on that is encrypted if it was to be.

    Raises:
        pymysql.OperationalError: the connection was to be encrypted, and the server does not offer that.
    """
    if wanted and not connection.server_capabilities & CLIENT.SSL:
        raise pymysql.OperationalError(2026, "the server offers no encryption (TLS), and the credentials demand it")
