"""The configuration as PyExperimenter's users know it: objects whose attributes may be read, and changed.

What they say is what counts: before each operation they are turned back into the content of a configuration file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyexp_daemon import exceptions
from pyexp_daemon.config.load import ROOT, check_config, read_config, without_unknown_keys
from pyexp_daemon.config.models import Config
from pyexp_daemon.space.samples import Distribution
from pyexp_daemon.space.variables import Match, Repeat

_NO_FILE = Path("configuration")
"""What messages call a configuration that was put together in Python."""


class Cfg:
    """One part of a configuration."""

    def section(self) -> dict[str, Any]:
        """What stands for it in a file below the root."""
        raise NotImplementedError

    def valid(self) -> bool:
        """Whether it can be used; if not, the first mistake is logged."""
        raise NotImplementedError


@dataclass
class Keyfield:
    """A parameter of the experiments: the column's type, and its values in the grid (None: one NULL).

    `when`, which PyExperimenter does not have: other keyfields, and the values with which this one has values at all.
    """

    name: str
    dtype: str
    values: Sequence[Any] | Distribution | None
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def _listed(values: Sequence[Any] | Distribution | None) -> Sequence[Any] | Distribution | None:
    """The values as PyExperimenter has them; what no list can say stays as it is."""
    return values if values is None or isinstance(values, Repeat | Match | Distribution) else list(values)


class DatabaseCfg(Cfg):
    """The section `Database`.

    `resultfields` has the timestamps, too, when there are any, and `logtables` the full names of the tables.
    """

    def __init__(
        self,
        provider: str,
        use_ssh_tunnel: bool,
        database_name: str,
        table_name: str,
        result_timestamps: bool,
        keyfields: Mapping[str, Keyfield] | Iterable[Keyfield],
        resultfields: Mapping[str, str],
        logtables: Mapping[str, Mapping[str, str]],
        logger: logging.Logger,
        *,
        exclude: Sequence[Mapping[str, Sequence[Any]]] = (),
        grids: Sequence[Mapping[str, Any]] = (),
        sample: Mapping[str, Any] | None = None,
    ) -> None:
        self.provider = provider
        self.use_ssh_tunnel = use_ssh_tunnel
        self.database_name = database_name
        self._table_name = table_name
        self.result_timestamps = result_timestamps
        listed = keyfields.values() if isinstance(keyfields, Mapping) else keyfields
        self.keyfields = {keyfield.name: keyfield for keyfield in listed}
        self.exclude, self.grids, self.sample = list(exclude), list(grids), sample
        self.resultfields = dict(resultfields)
        self.logtables = {name: dict(columns) for name, columns in logtables.items()}
        self.logger = logger

    @staticmethod
    def extract_config(config: Any, logger: logging.Logger) -> DatabaseCfg:
        """The section of a configuration that was read (a mapping, of OmegaConf or plain)."""
        return _checked(config, logger).database_configuration

    @property
    def table_name(self) -> str:
        """The experiment table; the logtables are named after it."""
        return self._table_name

    @table_name.setter
    def table_name(self, name: str) -> None:
        self.logtables = {f"{name}__{short}": columns for short, columns in self._logtables().items()}
        self._table_name = name

    def get_experiment_configuration(self) -> list[dict[str, Any]]:
        """The grid: one dict per experiment.

        Raises:
            InvalidValuesInConfiguration: a value does not fit its keyfield.
        """
        from pyexp_daemon.space.grid import grid_of

        return list(grid_of(check_config(_NO_FILE, {ROOT: {"Database": self.section()}})).experiments())

    def section(self) -> dict[str, Any]:
        keyfields = {
            name: {"type": keyfield.dtype, "values": keyfield.values, "when": keyfield.when or None}
            for name, keyfield in self.keyfields.items()
        }
        stamps = {f"{name}_timestamp" for name in self.resultfields} if self.result_timestamps else set()
        return {
            "provider": self.provider,
            "database": self.database_name,
            "use_ssh": self.use_ssh_tunnel,
            "table": {
                "name": self.table_name,
                "keyfields": keyfields,
                "exclude": self.exclude,
                "grids": self.grids,
                "sample": self.sample,
                "resultfields": {name: kind for name, kind in self.resultfields.items() if name not in stamps},
                "result_timestamps": self.result_timestamps,
            },
            "logtables": self._logtables(),
        }

    def valid(self) -> bool:
        return _is_valid({"Database": self.section()}, self.logger)

    def _logtables(self) -> dict[str, dict[str, str]]:
        return {name.removeprefix(f"{self.table_name}__"): columns for name, columns in self.logtables.items()}


class CustomCfg(Cfg):
    """The section `Custom`: what every experiment gets as its third argument."""

    def __init__(self, custom_values: dict[str, Any], logger: logging.Logger) -> None:
        self.custom_values = custom_values
        self.logger = logger

    @staticmethod
    def extract_config(config: Any, logger: logging.Logger) -> CustomCfg:
        """The section of a configuration that was read."""
        return _checked(config, logger).custom_configuration

    def section(self) -> dict[str, Any]:
        return self.custom_values

    def valid(self) -> bool:
        return _is_mapping(self.custom_values, self.logger)


class CodeCarbonCfg(Cfg):
    """The section `CodeCarbon`."""

    def __init__(self, config: dict[str, Any], logger: logging.Logger) -> None:
        self.config = config
        self.logger = logger

    @staticmethod
    def extract_config(config: Any, logger: logging.Logger) -> CodeCarbonCfg:
        """The section of a configuration that was read."""
        return _checked(config, logger).codecarbon_configuration

    def section(self) -> dict[str, Any]:
        return self.config

    def valid(self) -> bool:
        return _is_mapping(self.config, self.logger)


class PyExperimenterCfg(Cfg):
    """A whole configuration."""

    def __init__(
        self,
        n_jobs: int,
        database_configuration: DatabaseCfg,
        custom_configuration: CustomCfg,
        codecarbon_configuration: CodeCarbonCfg,
        logger: logging.Logger,
    ) -> None:
        self.n_jobs = n_jobs
        self.database_configuration = database_configuration
        self.custom_configuration = custom_configuration
        self.codecarbon_configuration = codecarbon_configuration
        self.logger = logger

    @staticmethod
    def extract_config(config_path: str | Path, logger: logging.Logger) -> PyExperimenterCfg:
        """The configuration in a file.

        Raises:
            ConfigError: it cannot be used.
        """
        return _checked(read_config(Path(config_path)), logger, path=Path(config_path))

    @classmethod
    def of(cls, config: Config, logger: logging.Logger) -> PyExperimenterCfg:
        """A loaded configuration, in these words."""
        database, name = config.database, config.database.table.name
        fields = database.table.resultfields
        stamped = {f"{field}_timestamp": "VARCHAR(255)" for field in fields} if database.table.result_timestamps else {}
        return cls(
            config.n_jobs or 1,
            DatabaseCfg(
                database.provider,
                database.use_ssh,
                database.database,
                name,
                database.table.result_timestamps,
                [
                    Keyfield(key, keyfield.type, _listed(keyfield.values), keyfield.when)
                    for key, keyfield in database.table.keyfields.items()
                ],
                {**fields, **stamped},
                {f"{name}__{logtable}": columns for logtable, columns in database.logtables.items()},
                logger,
                exclude=database.table.exclude,
                grids=database.table.grids,
                sample=database.table.sample.model_dump() if database.table.sample else None,
            ),
            CustomCfg(dict(config.custom), logger),
            CodeCarbonCfg(dict(config.codecarbon), logger),
            logger,
        )

    def section(self) -> dict[str, Any]:
        return {
            "n_jobs": self.n_jobs,
            "Database": self.database_configuration.section(),
            "Custom": self.custom_configuration.section(),
            "CodeCarbon": self.codecarbon_configuration.section(),
        }

    def valid(self) -> bool:
        return _is_valid(self.section(), self.logger)


def known_content(path: Path, content: Mapping[str, Any], logger: logging.Logger) -> dict[str, Any]:
    """The content of a file without the keys that mean nothing, each of which is logged."""
    known, left_out = without_unknown_keys(content)
    for key in left_out:
        logger.warning("%s: %s: unknown key, passed over", path, key)
    return known


def _checked(config: Any, logger: logging.Logger, *, path: Path = _NO_FILE) -> PyExperimenterCfg:
    return PyExperimenterCfg.of(check_config(path, known_content(path, _plain(config), logger)), logger)


def _plain(config: Any) -> Any:
    if isinstance(config, dict):
        return config
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=True)


def _is_valid(sections: Mapping[str, Any], logger: logging.Logger) -> bool:
    try:
        check_config(_NO_FILE, {ROOT: sections})
    except exceptions.ConfigError as error:
        logger.error("%s", error)
        return False
    return True


def _is_mapping(values: Any, logger: logging.Logger) -> bool:
    if not isinstance(values, dict):
        logger.error("expected a mapping, got a %s", type(values).__name__)
    return isinstance(values, dict)
