from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.config.credentials import Credentials, find_credentials, load_credentials
from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.store import mark_of
from tests.unit.config.factories import write_config

SECRET = "hunter2"
GOOD = f"CREDENTIALS: {{Database: {{user: me, password: {SECRET}}}, Connection: {{Standard: {{server: db}}}}}}"
EXAMPLE = Path(__file__).parents[3] / "configs" / "credentials.example.yml"


@pytest.fixture(autouse=True)
def _no_other_source(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "PASSWORD", "HOST", "PORT", "SOCKET"):
        monkeypatch.delenv(f"PYEXPD_MYSQL_{name}", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(write_config(tmp_path))


def write(folder: Path, text: str = GOOD, *, mode: int = 0o600) -> Path:
    file = folder / "database_credentials.yml"
    folder.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


def login(credentials: Credentials) -> tuple[str, str, str, int]:
    return credentials.user, credentials.password.get_secret_value(), credentials.server, credentials.port


def test_the_file_beside_the_configuration_is_read(config: Config, tmp_path: Path) -> None:
    file = write(tmp_path)
    credentials = load_credentials(config)
    assert find_credentials(config, None) == file
    assert login(credentials) == ("me", SECRET, "db", 3306)
    assert (credentials.unix_socket, credentials.ssl, credentials.ssh, credentials.warning) == (None, None, None, None)


def test_the_sources_have_an_order(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYEXPD_MYSQL_USER", "env")
    assert load_credentials(config).user == "env"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "systemd"))
    write(tmp_path / "systemd", GOOD.replace("me", "systemd"))
    assert load_credentials(config).user == "systemd"
    write(tmp_path)
    assert load_credentials(config).user == "me"
    explicit = write(tmp_path / "explicit", GOOD.replace("me", "explicit"))
    assert load_credentials(config, explicit).user == "explicit"


def test_a_named_file_that_is_missing_is_an_error(config: Config, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(exceptions.NoConfigFileError, match=r"none\.yml: no such file$"):
        load_credentials(config, tmp_path / "none.yml")


def test_without_any_source_all_of_them_are_named(config: Config, tmp_path: Path) -> None:
    with pytest.raises(exceptions.ConfigError) as caught:
        load_credentials(config)
    assert str(caught.value) == (
        f"no database credentials: neither {tmp_path}/database_credentials.yml nor"
        " $CREDENTIALS_DIRECTORY/database_credentials.yml exists, and PYEXPD_MYSQL_USER is not set"
    )


def test_all_of_it_may_stand_in_the_environment(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"USER": "u", "PASSWORD": SECRET, "HOST": "h", "PORT": "3307", "SOCKET": "/s"}.items():
        monkeypatch.setenv(f"PYEXPD_MYSQL_{name}", value)
    credentials = load_credentials(config)
    assert login(credentials) == ("u", SECRET, "h", 3307)
    assert credentials.unix_socket == "/s"
    assert SECRET not in repr(credentials)


@pytest.mark.parametrize(("name", "value"), [("USER", ""), ("PORT", "x"), ("PORT", "70000")])
def test_a_wrong_variable_is_named(config: Config, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("PYEXPD_MYSQL_HOST", "h")
    monkeypatch.setenv("PYEXPD_MYSQL_USER", "u")
    monkeypatch.setenv(f"PYEXPD_MYSQL_{name}", value)
    with pytest.raises(exceptions.InvalidConfigError, match=f"^PYEXPD_MYSQL_{name}: "):
        load_credentials(config)


def test_everything_of_a_file_is_read(tmp_path: Path) -> None:
    text = """
        CREDENTIALS:
          Database: {user: me, password: ""}
          Connection:
            Standard: {server: db, port: 3307, unix_socket: /run/s, ssl: {ca: ca.pem, key: /k.pem, verify: false}}
            Ssh: {server: 127.0.0.1, address: gate, passphrase: hunter2, local_port: 3310}
        """
    credentials = load_credentials(through_ssh(tmp_path), write(tmp_path, text))
    assert login(credentials) == ("me", "", "db", 3307)
    assert credentials.unix_socket == "/run/s"
    assert credentials.ssl is not None
    assert (credentials.ssl.ca, credentials.ssl.cert) == (tmp_path / "ca.pem", None)
    assert (credentials.ssl.key, credentials.ssl.verify) == (Path("/k.pem"), False)
    assert credentials.ssh is not None
    assert (credentials.ssh.address, credentials.ssh.port, credentials.ssh.local_port) == ("gate", None, 3310)
    assert credentials.ssh.ssh_private_key_password is not None
    assert SECRET not in repr(credentials)
    assert str(credentials.ssh) == "gate"


def through_ssh(folder: Path, key: str = "use_ssh") -> Config:
    return load_config(write_config(folder, replace=("provider: sqlite", f"provider: mysql\n    {key}: true")))


SSH = GOOD.replace("Standard: {server: db}", "Ssh: {address: gate, port: 2222}")


def test_the_tunnel_is_used_when_the_configuration_says_so(config: Config, tmp_path: Path) -> None:
    file = write(tmp_path, SSH.replace("Ssh", "Standard: {server: db}, Ssh"))
    assert load_credentials(config, file).ssh is None
    for key in ("use_ssh", "use_ssh_tunnel"):
        assert str(load_credentials(through_ssh(tmp_path, key), file).ssh) == "gate:2222"


def test_the_way_that_is_wanted_must_be_described(config: Config, tmp_path: Path) -> None:
    file = write(tmp_path, SSH)
    with pytest.raises(exceptions.InvalidConfigError) as caught:
        load_credentials(config, file)
    assert str(caught.value) == f"{file}: CREDENTIALS.Connection.Standard: required, but missing"
    assert caught.value.hint == f"Database.use_ssh is false in {config.path}"
    write(tmp_path)
    with pytest.raises(exceptions.InvalidConfigError) as caught:
        load_credentials(through_ssh(tmp_path), file)
    assert str(caught.value) == f"{file}: CREDENTIALS.Connection.Ssh: required, but missing"
    assert caught.value.hint == f"Database.use_ssh is true in {config.path}"


def test_the_environment_describes_no_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYEXPD_MYSQL_USER", "u")
    config = through_ssh(tmp_path)
    with pytest.raises(exceptions.InvalidConfigError, match="described in a credentials file only"):
        load_credentials(config)


def test_a_tunnel_has_its_own_folder_for_the_database_behind_it(tmp_path: Path) -> None:
    """Neither the port that is free here nor the gateway's password stands for it; gateway and database do."""
    config = through_ssh(tmp_path)
    marks = [
        mark_of(config, credentials=write(tmp_path, SSH.replace("port: 2222", f"port: 2222, {more}")))
        for more in ("local_port: 3306", "local_port: 3307, passphrase: x", "remote_address: db", "remote_port: 3307")
    ]
    marks.append(mark_of(config, credentials=write(tmp_path, SSH.replace("gate", "another"))))
    assert marks[0] == marks[1]
    assert len(set(marks)) == 4


def test_a_socket_needs_no_server(config: Config, tmp_path: Path) -> None:
    credentials = load_credentials(config, write(tmp_path, GOOD.replace("server: db", "unix_socket: /run/s")))
    assert (credentials.server, credentials.unix_socket) == ("localhost", "/run/s")


def test_the_password_may_come_from_a_variable(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    file = write(tmp_path, GOOD.replace(SECRET, '"${oc.env:DB_PASSWORD}"'))
    assert login(load_credentials(config, file)) == ("me", SECRET, "db", 3306)


def test_the_shipped_example_loads(config: Config) -> None:
    assert load_credentials(config, EXAMPLE).server == "db.example.org"


def test_a_file_that_everybody_can_read_is_a_warning(config: Config, tmp_path: Path) -> None:
    file = write(tmp_path, mode=0o644)
    assert load_credentials(config).warning == f"{file} can be read by everybody on this host; chmod 600 {file}"
    file.chmod(0o640)
    assert load_credentials(config).warning is None


BROKEN = [
    ("password: hunter2", "hunter2", ": CREDENTIALS.Database: has an unknown key; possible are user, password"),
    ("{user: me, password: hunter2}", "hunter2", ": CREDENTIALS.Database: expected a mapping"),
    ("password: hunter2", "password: {hunter2: 1}", ": CREDENTIALS.Database.password: expected text"),
    ("password: hunter2", "password: [hunter2]", ": CREDENTIALS.Database.password: expected text"),
    ("user: me, ", "", ": CREDENTIALS.Database.user: required, but missing"),
    ("user: me", "user: [me]", ": CREDENTIALS.Database.user: expected text"),
    ("password: hunter2", "password: 12345", ": CREDENTIALS.Database.password: expected text"),
    ("password: hunter2", "password: *hunter2", ":1:"),
    ("password: hunter2", "password: @hunter2", ":1:"),
    ("password: hunter2", "password: !hunter2 x", ":1:"),
    ("password: hunter2", "hunter2: 1, hunter2: 2", ":1:"),
    ("password: hunter2", "password: '${hunter2}'", ": an interpolation fails"),
    ("password: hunter2", "hunter2: '${nope}'", ": an interpolation fails"),
    ("password: hunter2", "password: 2024-99-hunter2: 5", ":1:"),
    ("server: db", "server: db, port: hunter2", ": CREDENTIALS.Connection.Standard.port: expected a whole number"),
    ("server: db", "server: db, port: 70000", ": CREDENTIALS.Connection.Standard.port: must be at most 65535"),
    ("server: db", "port: 3306", ": CREDENTIALS.Connection.Standard.server: required, but missing (or a unix_socket)"),
    ("{Standard: {server: db}}", "{}", ": CREDENTIALS.Connection.Standard: required, but missing"),
    ("Standard: {server: db}", "Ssh: {port: 22}", ": CREDENTIALS.Connection.Ssh.address: required, but missing"),
    ("server: db", "server: db, ssl: {ca: c, hunter2: 1}", ": CREDENTIALS.Connection.Standard.ssl: has an unknown key"),
    ("server: db", "server: db, ssl: {verify: hunter2}", ": CREDENTIALS.Connection.Standard.ssl.verify: expected true"),
    (GOOD, "hunter2", ": CREDENTIALS: required, but missing"),
    (GOOD, "", ": CREDENTIALS: required, but missing"),
    (GOOD, GOOD + "\nhunter2: 1", ": has an unknown key; possible are CREDENTIALS"),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_a_mistake_is_one_line_without_any_secret(
    config: Config, tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(exceptions.InvalidConfigError) as caught:
        load_credentials(config)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "\n" not in str(caught.value)
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    told = "".join(traceback.format_exception(caught.value)) + repr(chain) + repr(caught.value.hint)
    assert SECRET not in told
    assert "12345" not in told


def test_an_unreadable_file_is_one_line(config: Config, tmp_path: Path) -> None:
    (tmp_path / "database_credentials.yml").mkdir()
    with pytest.raises(exceptions.InvalidConfigError, match=r"credentials\.yml: is a directory, not a file$"):
        load_credentials(config)
