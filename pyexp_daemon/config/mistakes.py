"""Every mistake in a configuration becomes one line: file, path of the key, what is wrong; and a hint."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from pyexp_daemon import exceptions
from pyexp_daemon.space.values import show as show_python

Keys = tuple[str | int, ...]

MISSING = "required, but missing"
UNKNOWN = "unknown key"

_COLUMNS = (("Database", "table", "keyfields"), ("Database", "table", "resultfields"))
_LOGTABLES = ("Database", "logtables")
_KEY_MARK = "[key]"


def mistake(
    message: str,
    *,
    hint: str | None = None,
    at: Keys = (),
    error: type[exceptions.ConfigError] | None = None,
) -> PydanticCustomError:
    """What a validator raises.

    Args:
        message: what is wrong, without the place.
        hint: what to write instead.
        at: keys below the place that pydantic knows, when the mistake is further down.
        error: the class to raise in the end, when the place alone does not say it.
    """
    context = {"message": message, "hint": hint, "at": at, "error": error}
    return PydanticCustomError("mistake", "{message}", context)


def show(value: Any) -> str:
    """The value in one short line, as YAML would have it."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else show_python(value)


def did_you_mean(key: Any, known: Iterable[str]) -> str | None:
    """A hint when a known key looks like this one."""
    by_lower_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(key).lower(), by_lower_case, n=1)
    return f"did you mean {by_lower_case[close[0]]!r}?" if close else None


def dotted(keys: Keys) -> str:
    """The path of a key: `Database.table.name`, `queues[0]`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key if key.isprintable() else repr(key)}"
    return text.removeprefix(".")


def yaml_keys(field: FieldInfo) -> tuple[str, ...]:
    """The keys that a field may have in YAML, the documented one first."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(choice for choice in alias.choices if isinstance(choice, str))
    return (alias,) if isinstance(alias, str) else ()


def known_keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by every key they may have in YAML."""
    return {key: field for field in section.model_fields.values() for key in yaml_keys(field)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file that was read and did not pass: what is needed to say so in one line.

    `has_secrets`: nothing that stands in the file may be repeated, but the names of keys that are meant to be there.
    """

    file: Path
    content: Mapping[str, Any]
    section: type[BaseModel]
    has_secrets: bool = False

    def first_mistake(self, error: ValidationError) -> exceptions.ConfigError:
        """The exception for the mistake that comes first in the file."""
        found = [_Mistake.of(details) for details in error.errors(include_url=False)]
        first = min(found, key=lambda item: _position(item.keys, self.content))
        message, hint = self._describe(first)
        keys = first.keys
        if self.has_secrets and first.kind == "extra_forbidden":
            keys = keys[:-1]
        line = ": ".join(filter(None, (str(self.file), dotted(keys), message)))
        return _class_of(first)(line, hint=hint)

    def _describe(self, item: _Mistake) -> tuple[str, str | None]:
        if item.kind == "mistake":
            return item.message, item.hint
        if item.kind == "extra_forbidden":
            return self._describe_unknown(item.keys)
        if item.kind == "missing":
            return MISSING, None
        return _describe_type(item, value="" if self.has_secrets else f", got {show(item.value)}")

    def _describe_unknown(self, keys: Keys) -> tuple[str, str | None]:
        section = _section_at(self.section, keys[:-1])
        known = [yaml_keys(field)[0] for field in section.model_fields.values()] if section else []
        if self.has_secrets:
            return f"has an unknown key; possible are {', '.join(known)}", None
        return UNKNOWN, _where_it_belongs(self.section, keys[-1]) or did_you_mean(keys[-1], known)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mistake:
    kind: str
    keys: Keys
    value: Any
    is_name: bool = False
    message: str = ""
    hint: str | None = None
    limit: Any = None
    error: type[exceptions.ConfigError] | None = None

    @classmethod
    def of(cls, details: ErrorDetails) -> _Mistake:
        context = details.get("ctx", {})
        is_name = _KEY_MARK in details["loc"]
        keys = tuple(key for key in details["loc"] if key != _KEY_MARK)
        if is_name:
            keys = (*keys[:-1], str(details["input"]))  # pydantic calls the key `true` 1
        return cls(
            kind=details["type"],
            keys=(*keys, *context.get("at", ())),
            value=details["input"],
            is_name=is_name,
            message=details["msg"],
            hint=context.get("hint"),
            limit=next((context[name] for name in ("ge", "gt", "le", "expected") if name in context), None),
            error=context.get("error"),
        )


def _describe_type(item: _Mistake, *, value: str) -> tuple[str, str | None]:
    match item.kind:
        case "string_type" if item.is_name:
            return f"a name must be text{value}", "put the name in quotes"
        case "string_type":
            return f"expected text{value}", "put it in quotes" if isinstance(item.value, bool | int | float) else None
        case "int_type" | "int_parsing" | "int_from_float":
            return f"expected a whole number{value}", None
        case "bool_type" | "bool_parsing":
            return f"expected true or false{value}", None
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"expected a mapping{value}", None
        case "path_type":
            return f"expected a path{value}", None
        case "literal_error":
            known = str(item.limit).replace("'", "").replace(" or ", ", ").split(", ")
            return f"expected {item.limit}{value}", did_you_mean(item.value, known) if value else None
        case "greater_than_equal":
            return f"must be at least {item.limit}{value}", None
        case "less_than_equal":
            return f"must be at most {item.limit}{value}", None
        case "greater_than":
            return f"must be more than {item.limit}{value}", None
    return item.message, item.hint


def _class_of(item: _Mistake) -> type[exceptions.ConfigError]:
    if item.error:
        return item.error
    place = item.keys[1:]
    if any(place[:3] == columns for columns in _COLUMNS):
        return exceptions.InvalidColumnError
    if place[:2] == _LOGTABLES:
        return exceptions.InvalidLogtableError
    return exceptions.InvalidConfigError


def _position(keys: Keys, content: Any) -> list[int]:
    """Where in the file a key stands; a missing key stands behind all that its mapping has."""
    position = []
    for key in keys:
        if isinstance(content, Mapping):
            names = [str(name) for name in content]
            position.append(names.index(str(key)) if str(key) in names else len(names))
            content = next((value for name, value in content.items() if str(name) == str(key)), None)
        elif isinstance(content, Sequence) and isinstance(key, int):
            position.append(key)
            content = content[key] if key < len(content) else None
    return position


def _section_at(section: type[BaseModel], keys: Keys) -> type[BaseModel] | None:
    """The section that these keys lead to, from `section` downwards."""
    annotation: Any = section
    for key in keys:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = known_keys(annotation).get(str(key))
            annotation = _bare(field.annotation) if field else None
        elif get_origin(annotation) is dict:
            annotation = _bare(get_args(annotation)[1])
        else:
            return None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _bare(annotation: Any) -> Any:
    """The annotation without `| None`."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _where_it_belongs(section: type[BaseModel], key: str | int) -> str | None:
    """A hint when exactly one other section has this very key."""
    places = [dotted(path[:-1]) for path in all_keys(section) if path[-1] == key and len(path) > 1]
    return f"it belongs under {places[0]}" if len(places) == 1 else None


def all_keys(section: type[BaseModel], above: Keys = ()) -> Iterator[Keys]:
    """The path of every key of a section and of the sections in it, the documented spelling only."""
    for field in section.model_fields.values():
        path = (*above, yaml_keys(field)[0])
        yield path
        inner = _section_at(section, path[-1:])
        if inner:
            yield from all_keys(inner, path)
