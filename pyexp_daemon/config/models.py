"""The whole configuration, section by section. Defaults live here and in the two modules below, nowhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from pyexp_daemon.config.cpus import usable_cpus
from pyexp_daemon.config.database import DatabaseConfig, Keyfield, TableConfig
from pyexp_daemon.config.fields import Count, FreeMapping
from pyexp_daemon.config.mistakes import mistake, show
from pyexp_daemon.config.running import Backoff, DaemonConfig, LimitsConfig, Poll, Recycle, Tries
from pyexp_daemon.config.section import Section
from pyexp_daemon.space.ranges import Range

__all__ = [
    "Backoff",
    "Config",
    "DaemonConfig",
    "DatabaseConfig",
    "Experimenter",
    "Keyfield",
    "LimitsConfig",
    "Poll",
    "Range",
    "Recycle",
    "TableConfig",
    "Tries",
]


def _read_function(value: Any) -> Any:
    if isinstance(value, str):
        place, _, name = value.rpartition(":")
        if not place or not name:
            hint = "my_project.train:run or path/to/file.py:run"
            raise mistake(f"expected module:function, got {show(value)}", hint=hint)
    return value


class Experimenter(Section):
    """What stands below PY_EXPERIMENTER."""

    n_jobs: Count | None = None
    function: Annotated[str, BeforeValidator(_read_function)] | None = Field(default=None, validation_alias="Function")
    store: Annotated[str, BeforeValidator(_read_function)] | None = Field(default=None, validation_alias="Store")
    database: DatabaseConfig = Field(validation_alias="Database")
    custom: FreeMapping = Field(default_factory=dict, validation_alias="Custom")
    codecarbon: FreeMapping = Field(default_factory=dict, validation_alias="CodeCarbon")
    daemon: DaemonConfig = Field(default_factory=DaemonConfig.model_construct, validation_alias="Daemon")
    limits: LimitsConfig = Field(default_factory=LimitsConfig.model_construct, validation_alias="Limits")

    @model_validator(mode="after")
    def _name_country_offline(self) -> Self:
        if self.codecarbon.get("offline_mode") and not self.codecarbon.get("country_iso_code"):
            raise mistake("offline_mode needs it", at=("CodeCarbon", "country_iso_code"), hint="country_iso_code: DEU")
        return self


class Config(Experimenter):
    """A configuration that was loaded and checked.

    `path` is its file, absolute; `project` the directory to which its relative paths belong. `use_codecarbon` says
    whether emissions are tracked; None: if the file has settings for it.
    """

    path: Path
    project: Path
    use_codecarbon: bool | None = None

    @property
    def tracking(self) -> dict[str, Any] | None:
        """The settings by which emissions are tracked, {} for codecarbon's own; None when they are not tracked."""
        wanted = bool(self.codecarbon) if self.use_codecarbon is None else self.use_codecarbon
        return self.codecarbon if wanted else None

    @property
    def database_path(self) -> Path:
        """The SQLite file, absolute: PyExperimenter's `<database>.db`."""
        if self.database.provider != "sqlite":
            raise ValueError("only an SQLite database is a file")
        return self._in_project(Path(f"{self.database.database}.db"))

    @property
    def logs(self) -> Path:
        """The folder of the daemon's log and of the attempts' logs, absolute.

        One for the table: in `Daemon.logs`, else in systemd's, else beside the configuration. The files are named after
        experiments and attempts, so those of two tables in one folder would overwrite each other.
        """
        base = self.daemon.logs or _folder_of_service("LOGS_DIRECTORY") or self.path.parent / ".pyexpd"
        return self._in_project(base / self.database.table.name)

    @property
    def state(self) -> Path:
        """The folder of spool, locks and sockets, absolute: `Daemon.state`, else systemd's, else one per user."""
        return self._in_project(self.daemon.state or _folder_of_service("STATE_DIRECTORY") or _state_of_user())

    def slots(self) -> int:
        """How many experiments run at once on this node, GPUs not considered."""
        return self.daemon.slots or self.n_jobs or usable_cpus()

    def _in_project(self, path: Path) -> Path:
        return self.project / path.expanduser()


def _folder_of_service(variable: str) -> Path | None:
    """What systemd prepared; it lists several directories with colons between them."""
    first, _, _ = os.environ.get(variable, "").partition(":")
    return Path(first) if first else None


def _state_of_user() -> Path:
    configured = Path(os.environ.get("XDG_STATE_HOME", ""))
    base = configured if configured.is_absolute() else Path("~/.local/state").expanduser()
    return base / "pyexpd"
