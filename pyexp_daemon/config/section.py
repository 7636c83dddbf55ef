"""The base of every section of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from pyexp_daemon.config.mistakes import known_keys

_UNITS = ("_s", "_bytes")


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
