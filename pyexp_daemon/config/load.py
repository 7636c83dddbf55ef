"""Find the configuration file, read it and check it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from pyexp_daemon import exceptions
from pyexp_daemon.config.document import read_document
from pyexp_daemon.config.mistakes import MISSING, Document, did_you_mean, show
from pyexp_daemon.config.models import Config, Experimenter
from pyexp_daemon.config.section import Section

ROOT = "PY_EXPERIMENTER"
USUAL_PLACES = (Path("pyexpd.yml"), Path("config/experiment_configuration.yml"))
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class ConfigFile(Section):
    """What a configuration file holds."""

    experimenter: Experimenter = Field(validation_alias=ROOT)


def find_config(explicit: Path | None) -> Path:
    """The configuration file to use: `explicit`, else $PYEXPD_CONFIG, else the usual places in the working directory.

    Raises:
        NoConfigFileError: there is none; the message names the places looked at.
    """
    named = explicit or (Path(os.environ["PYEXPD_CONFIG"]) if os.environ.get("PYEXPD_CONFIG") else None)
    if named is not None:
        if named.exists():
            return named
        origin = "" if explicit else " (from PYEXPD_CONFIG)"
        raise exceptions.NoConfigFileError(f"{named}: no such file{origin}", hint="pyexpd init")
    for place in USUAL_PLACES:
        if place.exists():
            return place
    looked_at = ", ".join(f"./{place}" for place in USUAL_PLACES)
    raise exceptions.NoConfigFileError(
        f"no configuration file: PYEXPD_CONFIG is not set, and there is none of {looked_at}",
        hint="pyexpd init makes one, -c FILE names one",
    )


def load_config(path: Path, *, overrides: Mapping[str, Any] = _NOTHING, project: Path | None = None) -> Config:
    """The configuration in a file.

    Args:
        path: the YAML file.
        overrides: values that replace those of the file, by dotted key below the root: `Database.table.name`.
        project: the directory to which relative paths belong, if not the file's own.

    Raises:
        ConfigError: one line that names the file and the first key that is wrong.
    """
    path = Path(path)
    content = read_document(path, overrides={f"{ROOT}.{key}": value for key, value in overrides.items()})
    _require_root(path, content)
    try:
        checked = ConfigFile.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        raise Document(file=path, content=content, section=ConfigFile).first_mistake(error) from None
    file = path.absolute()
    project = project or (file.parent.parent if file.parent.name == "config" else file.parent)
    return Config.model_construct(**dict(checked.experimenter), path=file, project=project.absolute())


def _require_root(path: Path, content: Any) -> None:
    if content is None or content == {}:
        raise exceptions.InvalidConfigError(f"{path}: is empty", hint="pyexpd init")
    if not isinstance(content, dict):
        raise exceptions.InvalidConfigError(f"{path}: expected a mapping with the key {ROOT}, got {show(content)}")
    if content.get(ROOT) is None:
        close = [hint for key in content if key != ROOT and (hint := did_you_mean(key, [ROOT]))]
        hint = f"{close[0]}" if close else f"everything belongs under {ROOT}"
        raise exceptions.InvalidConfigError(f"{path}: {ROOT}: {MISSING}", hint=hint)
