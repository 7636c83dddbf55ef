"""Find the configuration file, read it and check it."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from pydantic import Field, ValidationError

from pyexp_daemon import exceptions
from pyexp_daemon.config.document import read_document
from pyexp_daemon.config.mistakes import MISSING, Document, did_you_mean, show
from pyexp_daemon.config.models import Config, Experimenter
from pyexp_daemon.config.section import Section, build

ROOT = "PY_EXPERIMENTER"
USUAL_PLACES = (Path("pyexpd.yml"), Path("config/experiment_configuration.yml"))
_OURS = {"Daemon", "Limits"}
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
    return check_config(path, read_config(path, overrides=overrides), project=project)


def read_config(path: Path, *, overrides: Mapping[str, Any] = _NOTHING) -> dict[str, Any]:
    """What stands in a configuration file, not checked yet; the arguments and faults are those of `load_config`."""
    content = read_document(Path(path), overrides={f"{ROOT}.{key}": value for key, value in overrides.items()})
    return _with_root(path, content)


def check_config(path: Path, content: Mapping[str, Any], *, project: Path | None = None) -> Config:
    """The configuration that some content is, said to be from this file; see `load_config`."""
    build(ConfigFile)
    try:
        checked = ConfigFile.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        raise Document(file=path, content=content, section=ConfigFile).first_mistake(error) from None
    file = Path(path).absolute()
    project = project or (file.parent.parent if file.parent.name == "config" else file.parent)
    return Config.model_construct(**dict(checked.experimenter), path=file, project=project.absolute())


def without_unknown_keys(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The content without the keys that mean nothing, and which those were: PyExperimenter passes over them.

    In the sections that it does not know every key means something, or is a mistake that `check_config` names.
    """
    kept = copy.deepcopy(dict(content))
    left_out = []
    try:
        ConfigFile.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=False):
            *above, last = details["loc"]
            if details["type"] == "extra_forbidden" and not _OURS & set(above):
                left_out.append(".".join(map(str, details["loc"])))
                holder: Any = functools.reduce(lambda section, key: section[key], above, cast("Any", kept))
                del holder[last]
    return kept, left_out


def _with_root(path: Path, content: Any) -> dict[str, Any]:
    if content is None or content == {}:
        raise exceptions.InvalidConfigError(f"{path}: is empty", hint="pyexpd init")
    if not isinstance(content, dict):
        raise exceptions.InvalidConfigError(f"{path}: expected a mapping with the key {ROOT}, got {show(content)}")
    if content.get(ROOT) is None:
        close = [hint for key in content if key != ROOT and (hint := did_you_mean(key, [ROOT]))]
        hint = f"{close[0]}" if close else f"everything belongs under {ROOT}"
        raise exceptions.InvalidConfigError(f"{path}: {ROOT}: {MISSING}", hint=hint)
    return content
