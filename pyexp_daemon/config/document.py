"""From a YAML file to plain containers: read, overridden, interpolated; every fault is one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pyexp_daemon import exceptions

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "tag:yaml.org,2002:merge"
_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*"
    r"|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN))$"
)


class _Loader(_Base):  # type: ignore[misc]
    """YAML as OmegaConf reads it: 1e5 is a number, dates stay text. Without its limit of 10,000 values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_document(path: Path, *, overrides: Mapping[str, Any] | None = None, has_secrets: bool = False) -> Any:
    """The content of a YAML file with overrides and interpolations applied; None when it is empty.

    Args:
        path: the file; also how messages call it.
        overrides: values by dotted key, set before interpolation.
        has_secrets: keep everything that stands in the file out of messages.

    Raises:
        NoConfigFileError: there is no such file.
        InvalidConfigError: it cannot be read, is no YAML, or an interpolation fails.
    """
    # Raised here, outside the handlers: a secret must not travel on as the context of the exception.
    content, fault = _parse(path, _read(path), has_secrets=has_secrets)
    if fault is None and isinstance(content, dict):
        for key, value in (overrides or {}).items():
            _override(content, key, value)
        if _has_interpolations(content):
            content, fault = _interpolate(path, content, has_secrets=has_secrets)
    if fault is not None:
        raise fault
    return content


def read_value(text: str) -> Any:
    """A value as it would stand in the file, behind a key.

    Raises:
        InvalidConfigError: it is no YAML.
    """
    value, fault = _parse(Path(text), text, has_secrets=False)
    if fault is not None:
        raise exceptions.InvalidConfigError(
            f"{text!r} is no value", hint="as in the configuration: 3, 0.1, true, null, text, or 'text with: signs'"
        )
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        fault: exceptions.ConfigError = exceptions.NoConfigFileError(f"{path}: no such file", hint="pyexpd init")
    except IsADirectoryError:
        fault = exceptions.InvalidConfigError(f"{path}: is a directory, not a file")
    except UnicodeDecodeError as error:
        fault = exceptions.InvalidConfigError(f"{path}: is not UTF-8 text (byte {error.start + 1})")
    except OSError as error:
        fault = exceptions.InvalidConfigError(f"{path}: cannot be read: {error.strerror}")
    raise fault


def _parse(path: Path, text: str, *, has_secrets: bool) -> tuple[Any, exceptions.ConfigError | None]:
    loader = _Loader(text.encode())
    try:
        root = loader.get_single_node()
        if root is None:
            return None, None
        _check_nodes(root, (), set())
        return loader.construct_document(root), None
    except yaml.MarkedYAMLError as error:
        return None, _syntax_error(path, text, error, has_secrets=has_secrets)
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        return None, exceptions.InvalidConfigError(f"{path}:{line}: a control character, which YAML does not allow")
    except RecursionError:
        return None, exceptions.InvalidConfigError(f"{path}: is nested too deeply")
    except ValueError as error:
        reason = "a number cannot be read" if has_secrets else str(error).partition("\n")[0]
        return None, exceptions.InvalidConfigError(f"{path}: {reason}")
    finally:
        loader.dispose()


def _check_nodes(node: yaml.Node, above: tuple[yaml.Node, ...], checked: set[int]) -> None:
    """Refuse a key that appears twice in one mapping, and a value that contains itself."""
    if any(node is outer for outer in above):
        raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
    if id(node) in checked or isinstance(node, yaml.ScalarNode):
        return
    checked.add(id(node))
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
    for child in _children(node):
        _check_nodes(child, (*above, node), checked)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    for child in node.value:
        yield from child if isinstance(child, tuple) else (child,)


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key.start_mark)
        if key.tag != _MERGE and (key.tag, key.value) in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key.value} appears twice", problem_mark=key.start_mark)
        seen.add((key.tag, key.value))


def _syntax_error(
    path: Path, text: str, error: yaml.MarkedYAMLError, *, has_secrets: bool
) -> exceptions.InvalidConfigError:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return exceptions.InvalidConfigError(f"{path}: not valid YAML")
    place = f"{path}:{mark.line + 1}:{mark.column + 1}"
    lines = text.splitlines()
    if mark.line < len(lines) and re.match(r" *\t", lines[mark.line]):
        return exceptions.InvalidConfigError(f"{place}: a tab in the indentation", hint="YAML is indented by spaces")
    if has_secrets:
        return exceptions.InvalidConfigError(f"{place}: not valid YAML", hint="put text with special signs in quotes")
    return exceptions.InvalidConfigError(f"{place}: {' '.join(str(error.problem).split())}")


def _override(content: dict[str, Any], dotted_key: str, value: Any) -> None:
    *above, last = dotted_key.split(".")
    if above and above[0] not in content:
        return  # a file without its root stays one, and is refused for that
    for key in above:
        if not isinstance(content.get(key), dict):
            content[key] = {}
        content = content[key]
    content[last] = value


def _has_interpolations(content: Any) -> bool:
    """Whether OmegaConf has to look at it; it takes seconds for long lists of values."""
    if isinstance(content, dict):
        return any(map(_has_interpolations, content.values()))
    if isinstance(content, list):
        return any(map(_has_interpolations, content))
    return isinstance(content, str) and "${" in content


def _interpolate(path: Path, content: Any, *, has_secrets: bool) -> tuple[Any, exceptions.ConfigError | None]:
    from omegaconf import OmegaConf  # 8 MiB in every daemon, for the few files that interpolate
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(content), resolve=True), None
    except (OmegaConfBaseException, ValueError) as error:
        return None, _interpolation_error(path, error, has_secrets=has_secrets)


def _interpolation_error(path: Path, error: Exception, *, has_secrets: bool) -> exceptions.InvalidConfigError:
    if has_secrets:
        hint = r"${oc.env:NAME} reads a variable; where the two signs are meant, write \${"
        return exceptions.InvalidConfigError(f"{path}: an interpolation fails", hint=hint)
    place = f"{path}: {getattr(error, 'full_key', None) or 'interpolation'}"
    reason = str(error).partition("\n")[0]
    variable = re.search(r"Environment variable '([^']*)' not found", reason)
    if variable:
        hint = f"export {variable[1]}, or write ${{oc.env:{variable[1]},default}}"
        return exceptions.InvalidConfigError(f"{place}: {variable[0]}", hint=hint)
    return exceptions.InvalidConfigError(f"{place}: {reason}")
