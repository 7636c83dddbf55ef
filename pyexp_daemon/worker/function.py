"""The user's experiment function: imported, checked, called. Runs in the child: standard library only, Python 3.9."""

# ruff: noqa: PTH100, PTH118
# Paths are plain text here: a child without pathlib is smaller.

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pyexp_daemon import exceptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

MOST_ARGUMENTS = 3
"""keyfields, result_processor, custom_fields: as many of them as the function has room for."""

_HAS_VARARGS = 0x04
_IS_GENERATOR_OR_ASYNC = 0x20 | 0x80 | 0x200


class Function:
    """An experiment function that can be called.

    Args:
        call: the user's function.
        spec: what messages call it.

    Raises:
        FunctionError: it cannot be called as an experiment function.
    """

    def __init__(self, call: Callable[..., Any], *, spec: str) -> None:
        self._call = call
        self._arguments = _count_arguments(call, spec)
        self.source_file = _source_file(call)

    @classmethod
    def imported(cls, spec: str, *, project: str) -> Function:
        """The function of that name.

        Args:
            spec: `module:function`, or `path/to/file.py:function` relative to the project directory.
            project: the project directory, first on `sys.path`.

        Raises:
            FunctionError: it is not where it should be, or cannot be called as an experiment function.
            BaseException: whatever importing the user's module raises.
        """
        module, call = _import_named(spec, project)
        function = cls(call, spec=spec)
        function.source_file = function.source_file or getattr(module, "__file__", None)
        return function

    def __call__(self, *arguments: Any) -> Any:
        """Call it with as many of `arguments` (keyfields, result_processor, custom_fields) as it takes."""
        return self._call(*arguments[: self._arguments])


def make_store(spec: str, *, project: str, custom: Any) -> Mapping[str, Any]:
    """What a function makes for all experiments of this process: called once, with the custom fields if it takes any.

    Args:
        spec: as for `Function.imported`.

    Raises:
        FunctionError: it is not where it should be, raises something, or returns no mapping.
    """
    try:
        _, call = _import_named(spec, project)
        store = call(custom) if _positional_arguments(call)[1] else call()
    except exceptions.FunctionError as error:
        raise exceptions.FunctionError(f"the store: {error}", hint=error.hint) from error
    except (Exception, SystemExit) as error:
        raise exceptions.FunctionError(f"the store {spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(store, Mapping):
        raise exceptions.FunctionError(
            f"the store {spec} returned a {type(store).__name__}", hint='return a dict such as {"dataset": …}'
        )
    return MappingProxyType(dict(store))


def _import_named(spec: str, project: str) -> tuple[ModuleType, Callable[..., Any]]:
    """
    Raises:
        FunctionError: there is nothing of that name that can be called.
        BaseException: whatever importing the user's module raises.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise exceptions.FunctionError(
            f"the function is given as {spec!r}", hint="write module:function or path/to/file.py:function"
        )
    put_first_on_path(project)
    module = _import_file(project, place) if place.endswith(".py") else importlib.import_module(place)
    return module, _find(module, name, spec)


def put_first_on_path(folder: str) -> None:
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)


def _import_file(project: str, place: str) -> ModuleType:
    path = os.path.abspath(os.path.join(project, place))
    folder, file_name = os.path.split(path)
    name = file_name[: -len(".py")]
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return loaded  # the store and the function may be in one file
    if loaded is not None:
        raise exceptions.FunctionError(
            f"the file {place} has the name of the module {name!r}, which is loaded already", hint="rename the file"
        )
    if folder not in sys.path:
        sys.path.insert(1, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _find(module: ModuleType, name: str, spec: str) -> Callable[..., Any]:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise exceptions.FunctionError(f"{spec}: there is no {name} in {module.__file__ or module.__name__}")
        found = getattr(found, part)
    if not callable(found):
        raise exceptions.FunctionError(f"{spec}: {name} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def _count_arguments(function: Callable[..., Any], spec: str) -> int:
    """How many of the three arguments to pass.

    Raises:
        FunctionError: it cannot be called with one to three positional arguments, or does not run when called.
    """
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & _IS_GENERATOR_OR_ASYNC:
        raise exceptions.FunctionError(f"{spec} is a generator or async function", hint="write a plain function")
    required, room = _positional_arguments(function)
    if required > MOST_ARGUMENTS or room == 0:
        raise exceptions.FunctionError(
            f"{spec} takes {required or 'no'} positional arguments",
            hint="it is called with one to three: keyfields, result_processor, custom_fields",
        )
    return min(room, MOST_ARGUMENTS)


def _positional_arguments(function: Callable[..., Any]) -> tuple[int, int]:
    """How many positional arguments it needs, and for how many it has room."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_kwonlyargcount or hasattr(function, "__self__"):
        return _positional_arguments_by_signature(function)  # `inspect` costs a child 10 ms and 3 MiB: only when needed
    required = code.co_argcount - len(function.__defaults__ or ())
    return required, MOST_ARGUMENTS if code.co_flags & _HAS_VARARGS else code.co_argcount


def _positional_arguments_by_signature(function: Callable[..., Any]) -> tuple[int, int]:
    import inspect

    required, room = 0, 0
    for parameter in inspect.signature(function, follow_wrapped=False).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            room = MOST_ARGUMENTS
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            room += 1
            required += parameter.default is parameter.empty
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise exceptions.FunctionError(f"the function needs the keyword argument {parameter.name!r}")
    return required, room


def _source_file(function: Callable[..., Any]) -> str | None:
    """Where the function is written, behind decorators that leave a trace."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    return None if code is None else os.path.abspath(code.co_filename)
