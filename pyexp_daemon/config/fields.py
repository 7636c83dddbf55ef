"""Kinds of values that several sections share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import BeforeValidator, PlainValidator

from pyexp_daemon.config.mistakes import mistake, show


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise mistake(f"expected a whole number, got {show(value)}")
    return value


def _some_text(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise mistake("must not be empty")
    return value


def _free_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise mistake(f"expected a mapping, got {show(value)}")
    return dict(value)


Count = Annotated[int, Ge(1), BeforeValidator(_no_boolean)]
Text = Annotated[str, BeforeValidator(_some_text)]
SomePath = Annotated[Path, BeforeValidator(_some_text)]
FreeMapping = Annotated[dict[str, Any], PlainValidator(_free_mapping)]
