"""Who we are to the MySQL server, and where it is. No password leaves here in a message or a repr."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Any, Self

from annotated_types import Ge, Le
from pydantic import AliasChoices, ConfigDict, Field, SecretStr, ValidationError, model_validator

from pyexp_daemon import exceptions
from pyexp_daemon.config.document import read_document
from pyexp_daemon.config.fields import SomePath, Text
from pyexp_daemon.config.mistakes import MISSING, Document, mistake
from pyexp_daemon.config.models import Config
from pyexp_daemon.config.section import Section, build

FILE_NAME = "database_credentials.yml"
ROOT = "CREDENTIALS"
VARIABLES = "PYEXPD_MYSQL_"

Port = Annotated[int, Ge(1), Le(65535)]


class SecretSection(Section):
    """Base of the sections of the credentials file: pydantic's own messages show no values."""

    model_config = ConfigDict(hide_input_in_errors=True)


class Ssl(SecretSection):
    """How the connection is encrypted; paths are absolute once loaded."""

    ca: SomePath | None = None
    cert: SomePath | None = None
    key: SomePath | None = None
    verify: bool = True

    def below(self, folder: Path) -> Ssl:
        """The same, relative paths taken to be below a folder."""
        paths = {name: getattr(self, name) for name in ("ca", "cert", "key")}
        return self.model_copy(update={name: folder / path.expanduser() for name, path in paths.items() if path})


class Ssh(SecretSection):
    """PyExperimenter's section of that name: a tunnel to the database.

    `server`, which PyExperimenter connects to, is not needed: our end of the tunnel is known. Without a `port` it is
    the one of ~/.ssh/config, or 22.
    """

    server: Text | None = None
    address: Text
    port: Port | None = None
    ssh_private_key_password: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("ssh_private_key_password", "passphrase")
    )
    remote_address: Text = "127.0.0.1"
    remote_port: Port = 3306
    local_address: Text = "127.0.0.1"
    local_port: Port = 3306

    def __str__(self) -> str:
        return f"{self.address}:{self.port}" if self.port else self.address


class Standard(SecretSection):
    """Where the server listens: a host, or a socket on this one."""

    server: Text | None = None
    port: Port = 3306
    unix_socket: SomePath | None = None
    ssl: Ssl | None = None

    @model_validator(mode="after")
    def _know_a_way(self) -> Self:
        if self.server is None and self.unix_socket is None:
            raise mistake(f"{MISSING} (or a unix_socket)", at=("server",))
        return self


class Connection(SecretSection):
    """The ways to the server."""

    standard: Standard | None = Field(default=None, validation_alias="Standard")
    ssh: Ssh | None = Field(default=None, validation_alias="Ssh")

    @model_validator(mode="after")
    def _have_one(self) -> Self:
        if self.standard is None and self.ssh is None:
            raise mistake(MISSING, at=("Standard",))
        return self


class Account(SecretSection):
    """A user of the database; the password may be empty where the socket tells who one is."""

    user: Text
    password: SecretStr = SecretStr("")


class CredentialsRoot(SecretSection):
    """What stands below CREDENTIALS."""

    database: Account = Field(validation_alias="Database")
    connection: Connection = Field(validation_alias="Connection")


class CredentialsFile(SecretSection):
    """What a credentials file holds."""

    credentials: CredentialsRoot = Field(validation_alias=ROOT)


class Credentials(SecretSection):
    """How to log in to the MySQL server.

    `ssh` is the tunnel to go through, None when the way is direct. `origin` says where they come from, for messages;
    `warning` is one line to print, or None.
    """

    user: str
    password: SecretStr
    server: str = "localhost"
    port: int = 3306
    unix_socket: str | None = None
    ssl: Ssl | None = None
    ssh: Ssh | None = None
    origin: str
    warning: str | None = None


def find_credentials(config: Config, explicit: Path | None = None) -> Path | None:
    """The credentials file: `explicit`, else beside the configuration, else systemd's; None when there is none."""
    if explicit is not None:
        return explicit
    folders = [config.path.parent]
    if os.environ.get("CREDENTIALS_DIRECTORY"):
        folders.append(Path(os.environ["CREDENTIALS_DIRECTORY"]))
    return next((folder / FILE_NAME for folder in folders if (folder / FILE_NAME).exists()), None)


def load_credentials(config: Config, explicit: Path | None = None) -> Credentials:
    """The credentials of a file, else of systemd, else of the variables PYEXPD_MYSQL_*.

    Raises:
        ConfigError: there are none, or they are wrong: one line, without any secret.
    """
    file = find_credentials(config, explicit)
    if file is not None:
        return _from_file(file, config)
    if _variable("USER") or _variable("HOST") or _variable("SOCKET"):
        if config.database.use_ssh:
            raise exceptions.InvalidConfigError(
                f"{config.path}: Database.use_ssh: the tunnel is described in a credentials file only",
                hint=f"{ROOT}.Connection.Ssh in {FILE_NAME}, beside the configuration",
            )
        return _from_environment()
    raise exceptions.NoConfigFileError(
        f"no database credentials: neither {config.path.parent / FILE_NAME} nor $CREDENTIALS_DIRECTORY/{FILE_NAME}"
        f" exists, and {VARIABLES}USER is not set",
        hint="--credentials FILE names a file",
    )


def _from_file(file: Path, config: Config) -> Credentials:
    content = read_document(file, has_secrets=True)
    if not isinstance(content, dict) or content.get(ROOT) is None:
        raise exceptions.InvalidConfigError(f"{file}: {ROOT}: {MISSING}")
    checked, fault = _check(file, content)
    # Raised outside the handler: pydantic's error holds the values and must not travel on as the context.
    if checked is None:
        raise fault or exceptions.InvalidConfigError(f"{file}: cannot be used")
    _find_the_way(checked.connection, file, config)
    return _together(checked, config, origin=str(file), warning=_warn_if_readable_by_all(file))


def _find_the_way(connection: Connection, file: Path, config: Config) -> None:
    """
    Raises:
        InvalidConfigError: the way that the configuration wants is not described.
    """
    use_ssh = config.database.use_ssh
    section, described = ("Ssh", connection.ssh) if use_ssh else ("Standard", connection.standard)
    if described is None:
        raise exceptions.InvalidConfigError(
            f"{file}: {ROOT}.Connection.{section}: {MISSING}",
            hint=f"Database.use_ssh is {str(use_ssh).lower()} in {config.path}",
        )


def _check(file: Path, content: dict[str, Any]) -> tuple[CredentialsRoot | None, exceptions.ConfigError | None]:
    build(CredentialsFile)
    try:
        return CredentialsFile.model_validate(content, by_alias=True, by_name=False).credentials, None
    except ValidationError as error:
        document = Document(file=file, content=content, section=CredentialsFile, has_secrets=True)
        return None, document.first_mistake(error)


def _together(checked: CredentialsRoot, config: Config, *, origin: str, warning: str | None) -> Credentials:
    standard, ssh = checked.connection.standard, checked.connection.ssh
    server = (standard and standard.server) or (ssh and ssh.server) or "localhost"
    return Credentials.model_construct(
        user=checked.database.user,
        password=checked.database.password,
        server=server,
        port=standard.port if standard else 3306,
        unix_socket=str(standard.unix_socket.expanduser()) if standard and standard.unix_socket else None,
        ssl=standard.ssl.below(config.project) if standard and standard.ssl else None,
        ssh=ssh if config.database.use_ssh else None,
        origin=origin,
        warning=warning,
    )


def _from_environment() -> Credentials:
    user, port = _variable("USER"), _variable("PORT") or "3306"
    if not user:
        raise exceptions.InvalidConfigError(f"{VARIABLES}USER: {MISSING}; the other {VARIABLES}* variables are set")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise exceptions.InvalidConfigError(f"{VARIABLES}PORT: expected a number from 1 to 65535")
    return Credentials.model_construct(
        user=user,
        password=SecretStr(_variable("PASSWORD") or ""),
        server=_variable("HOST") or "localhost",
        port=int(port),
        unix_socket=_variable("SOCKET"),
        origin=f"{VARIABLES}*",
    )


def _variable(name: str) -> str | None:
    return os.environ.get(f"{VARIABLES}{name}") or None


def _warn_if_readable_by_all(file: Path) -> str | None:
    if file.stat().st_mode & stat.S_IROTH:
        return f"{file} can be read by everybody on this host; chmod 600 {file}"
    return None
