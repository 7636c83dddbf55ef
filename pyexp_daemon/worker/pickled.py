"""A function of a script or notebook on its way into the children: by value, in a file that only this user can read.

Modules travel by reference, what belongs to `__main__` by value. Children read what their own daemon wrote for this
call, never anything that was stored: standard library only there, and Python 3.9.
"""

# ruff: noqa: PTH123
# Paths are plain text here: a child without pathlib is smaller.

from __future__ import annotations

import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions
from pyexp_daemon.worker.function import Function, put_first_on_path

if TYPE_CHECKING:
    from collections.abc import Callable


def write(path: str, function: Callable[..., Any], custom: Any) -> None:
    """Put a function, the custom fields, and where modules are found into a new file.

    Raises:
        FunctionError: one of them cannot be pickled.
    """
    import cloudpickle

    try:
        parts = cloudpickle.dumps(function), cloudpickle.dumps(custom)
    except Exception as error:
        raise exceptions.FunctionError(
            f"{name_of(function)} cannot be sent to a child process: {type(error).__name__}: {error}",
            hint="open files, connections and locks inside the function, not around it",
        ) from error
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        pickle.dump((sys.path, *parts), file)


def name_of(function: Callable[..., Any]) -> str:
    """What messages call a function."""
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


class Pickled:
    """What `write` wrote, as a child finds it."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._path, self._function, self._custom = pickle.load(file)

    def function(self, *, project: str) -> Function:
        """The function.

        Args:
            project: first on `sys.path`; the folders of the writer's follow.

        Raises:
            FunctionError: it cannot be called as an experiment function.
            BaseException: whatever importing its modules raises.
        """
        sys.path += [folder for folder in self._path if folder not in sys.path]
        put_first_on_path(project)
        call = pickle.loads(self._function)
        function = Function(call, spec=name_of(call))
        if function.source_file and not os.path.exists(function.source_file):  # noqa: PTH110
            function.source_file = None  # a cell of a notebook
        return function

    def custom(self) -> Any:
        """A fresh copy of the custom fields."""
        return pickle.loads(self._custom)
