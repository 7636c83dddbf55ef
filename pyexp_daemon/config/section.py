"""The base of every section of the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from pyexp_daemon.config.mistakes import known_keys

_UNITS = ("_s", "_bytes")
_PLUGINS = "PYDANTIC_DISABLE_PLUGINS"


def yaml_key(attribute: str) -> str:
    """The key of an attribute in YAML: without the unit, for the values there carry their own."""
    for unit in _UNITS:
        attribute = attribute.removesuffix(unit)
    return attribute


class Section(BaseModel):
    """Base of every section: immutable, an unknown key is an error, a key left empty has its default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=yaml_key,
        validate_by_name=True,
        validate_by_alias=True,
        arbitrary_types_allowed=True,
        defer_build=True,  # each section by itself would take longer than what is checked in the end: the whole file
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_empty(cls, content: Any) -> Any:
        if content is None:
            return {}
        if not isinstance(content, Mapping):
            return content
        known = known_keys(cls)
        return {key: value for key, value in content.items() if value is not None or key not in known}


def build(section: type[Section]) -> None:
    """Build what checks a section, without pydantic's plugins: they are looked for in all that is installed.

    That takes 20 ms of every command, and far longer where packages lie on a slow disk.
    """
    before = os.environ.get(_PLUGINS)
    os.environ[_PLUGINS] = "__all__"  # pydantic reads it when a model is built
    try:
        section.model_rebuild()
    finally:
        if before is None:
            del os.environ[_PLUGINS]
        else:
            os.environ[_PLUGINS] = before
