"""What every family of column types has to answer about a value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pyexp_daemon.space.sqltypes import SqlType


class Codec(ABC):
    """How the columns of one type hold values. Never asked about NULL, and only about plain values."""

    def __init__(self, sql_type: SqlType) -> None:
        self.type = sql_type

    @abstractmethod
    def store(self, value: Any) -> Any:
        """The value to bind into SQL.

        Raises:
            ValueError: the column cannot hold the value without changing it; the text is the reason.
        """

    @abstractmethod
    def encode(self, stored: Any) -> bytes:
        """The canonical bytes of a value that `store` returned: equal exactly when the column holds equal values."""

    @abstractmethod
    def load(self, value: Any) -> Any:
        """The Python value for the user's function, from what a driver returned.

        Raises:
            ValueError: it is no value of this type.
        """

    def reread(self, value: Any) -> Any:
        """The value as `store` takes it, from what a driver returned; nothing of it is lost on the way."""
        return self.load(value)

    def nearest(self, value: Any) -> Any:
        """What a lenient database would store instead of a value that `store` refuses, or a ValueError."""
        return self.store(value)

    def check_mysql(self, stored: Any) -> None:
        """Refuse with a ValueError what MySQL has no room for."""
        return

    def check_sqlite(self, stored: Any) -> None:
        """Refuse with a ValueError what SQLite would change or has no room for."""
        return
