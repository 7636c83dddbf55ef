"""What `doctor` makes of what it reads; that it reads it from real servers is shown in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from pyexp_daemon.cli.checks import grants, node, server
from pyexp_daemon.cli.checks.finding import Level
from pyexp_daemon.config.credentials import Credentials, Ssl
from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.models import Config
from pyexp_daemon.store.tables import Table
from tests.unit.config.factories import write_config

FOUR = set(grants.DAEMON)


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO `me`@`%`", FOUR),
        ("GRANT SELECT, INSERT, UPDATE, DELETE ON `results`.* TO `me`@`%` WITH GRANT OPTION", FOUR),
        ("GRANT SELECT, INSERT, UPDATE, DELETE ON `results`.`exp` TO `me`@`%`", FOUR),
        ("GRANT ALL PRIVILEGES ON `results`.* TO `me`@`%`", {"ALL PRIVILEGES"}),
        ("GRANT SELECT, INSERT (`x`, `y`), UPDATE (x), DELETE ON `results`.`exp` TO `me`@`%`", {"SELECT", "DELETE"}),
        ("GRANT CREATE TEMPORARY TABLES, SELECT ON `re%`.* TO `me`@`%`", {"CREATE TEMPORARY TABLES", "SELECT"}),
        ("GRANT SELECT ON `result_`.* TO `me`@`%`", {"SELECT"}),
        (r"GRANT SELECT ON `result\_`.* TO `me`@`%`", set()),
        ("GRANT SELECT ON `results`.`other` TO `me`@`%`", set()),
        ("GRANT SELECT ON `result_`.`exp` TO `me`@`%`", set()),
        ("GRANT USAGE ON *.* TO `me`@`%` IDENTIFIED BY PASSWORD '*00'", {"USAGE"}),
        ("GRANT `team`@`%` TO `me`@`%`", set()),
    ],
)
def test_what_a_line_of_show_grants_allows(line: str, allowed: set[str]) -> None:
    """A database in a grant is a pattern, a table is not; some columns are not the table."""
    assert grants.privileges([line], database="results", table="exp") == allowed


def test_a_pattern_with_a_plain_underscore() -> None:
    line = r"GRANT SELECT ON `my\_results`.* TO `me`@`%`"
    assert grants.privileges([line], database="my_results", table="exp") == {"SELECT"}
    assert grants.privileges([line], database="myXresults", table="exp") == set()


def judged(config: Config, *lines: str, is_made: bool = True) -> list[tuple[Level, str]]:
    found = grants.judge(lines, database="results", table=Table.of(config.database), is_made=is_made, mariadb=True)
    return [(finding.level, finding.text) for finding in found]


def test_an_account_for_daemons_is_well_and_one_that_lacks_something_is_not(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    table = config.database.table.name
    daemon = "GRANT SELECT, INSERT, UPDATE, DELETE ON `results`.* TO `me`@`%`"
    assert [level for level, _ in judged(config, daemon)] == [Level.OK, Level.OK]
    assert [level for level, _ in judged(config, daemon, is_made=False)] == [Level.OK, Level.WARNING]
    (level, text), _ = judged(config, daemon.replace(", DELETE", ""))
    assert (level, text) == (Level.ERROR, f"the account lacks DELETE on the tables of {table}")
    (level, text), _ = judged(config)
    assert (level, text) == (Level.ERROR, f"the account lacks SELECT, INSERT, UPDATE, DELETE on the tables of {table}")
    assert [level for level, _ in judged(config, "GRANT ALL PRIVILEGES ON *.* TO `me`@`%`", is_made=False)] == [
        Level.OK,
        Level.OK,
    ]


def test_emissions_are_a_table_that_refers_to_the_experiments(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, extra="CodeCarbon: {tracking_mode: process}"))
    name = config.database.table.name
    plain = Table.of(config.database)
    tracked = Table.of(config.database, codecarbon=True)
    assert set(tracked.names) - set(plain.names) == {f"{name}_codecarbon"}
    lines = [f"GRANT SELECT, INSERT, UPDATE, DELETE ON `results`.`{table}` TO `me`@`%`" for table in plain.names]
    found, *_ = grants.judge(lines, database="results", table=tracked, is_made=True, mariadb=False)
    assert found.text == f"the account lacks SELECT, INSERT, UPDATE, DELETE on {name}_codecarbon"


@pytest.mark.parametrize(
    ("variables", "level"),
    [
        ({"tx_isolation": "READ-COMMITTED", "log_bin": "OFF", "binlog_format": "STATEMENT"}, Level.OK),
        ({"tx_isolation": "READ-COMMITTED", "log_bin": "ON", "binlog_format": "MIXED"}, Level.OK),
        ({"transaction_isolation": "READ-COMMITTED", "log_bin": "ON", "binlog_format": "STATEMENT"}, Level.ERROR),
        ({"transaction_isolation": "REPEATABLE-READ", "log_bin": "OFF"}, Level.ERROR),
    ],
)
def test_isolation_and_binary_log(variables: dict[str, str], level: Level) -> None:
    assert server.isolation(variables).level == level


@pytest.mark.parametrize(
    ("variables", "live", "level"),
    [
        ({"max_connections": "151", "max_user_connections": "0"}, 36, Level.OK),
        ({"max_connections": "151", "max_user_connections": "0"}, 37, Level.WARNING),
        ({"max_connections": "151", "max_user_connections": "8"}, 2, Level.WARNING),
    ],
)
def test_connections_are_four_for_each_daemon(variables: dict[str, str], live: int, level: Level) -> None:
    assert server.connections(variables, live=live).level == level


def test_small_packets_and_lost_seconds_are_warned_of() -> None:
    assert server.packet({"max_allowed_packet": str(16 * 2**20)}).level == Level.OK
    assert server.packet({"max_allowed_packet": str(4 * 2**20)}).level == Level.WARNING
    assert list(server.durability({"innodb_flush_log_at_trx_commit": "1"})) == []
    assert [found.check for found in server.durability({"innodb_flush_log_at_trx_commit": "2", "wsrep_on": "ON"})] == [
        "durability",
        "galera",
    ]


@pytest.mark.parametrize(
    ("status", "place", "level"),
    [
        ({"ssl_cipher": "AES", "ssl_version": "TLSv1.3"}, {"server": "db", "ssl": Ssl()}, Level.OK),
        ({"ssl_cipher": "AES", "ssl_version": "TLSv1.3"}, {"server": "db", "ssl": Ssl(verify=False)}, Level.WARNING),
        ({"ssl_cipher": ""}, {"server": "db"}, Level.WARNING),
        ({"ssl_cipher": ""}, {"server": "localhost"}, Level.OK),
        ({"ssl_cipher": ""}, {"server": "db", "unix_socket": "/run/s"}, Level.OK),
    ],
)
def test_encryption_matters_between_hosts(status: dict[str, str], place: dict[str, object], level: Level) -> None:
    credentials = Credentials.model_validate({"user": "me", "password": SecretStr(""), "origin": "here", **place})
    assert server.encryption(status, credentials).level == level


@pytest.mark.parametrize(
    ("least", "levels"), [("1B", []), ("900GiB", [Level.WARNING]), ("1500GiB", [Level.ERROR]), ("0", [])]
)
def test_little_room_is_a_warning_and_too_little_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: str, levels: list[Level]
) -> None:
    """With 1 TiB free."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**40}))
    config = load_config(write_config(tmp_path, extra=f"Daemon: {{least_disk: {least}, state: {tmp_path}}}"))
    found = [finding for finding in node.places(config) if "are free" in finding.text]
    assert {finding.level for finding in found} == set(levels)


@pytest.mark.parametrize(
    ("mask", "daemon", "level", "text"),
    [
        ("4,5", "{}", Level.OK, "2 slots, {}, GPUs 4, 5, one for each slot"),
        ("4,5", "{slots: 1}", Level.OK, "1 slot, {}, GPUs 4, 5, one for each slot, 1 of them unused"),
        ("4,5", "{slots: 3}", Level.WARNING, "3 slots, {}, GPUs 4, 5: slots share GPUs"),
        ("4,5", "{slots: 3, gpus: 0}", Level.OK, "3 slots, {}, GPUs hidden from experiments"),
    ],
)
def test_gpus_and_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: str, daemon: str, level: Level, text: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    found = node.hardware(load_config(write_config(tmp_path, extra=f"Daemon: {daemon}", replace=("  n_jobs: 4\n", ""))))
    assert (found.level, found.text) == (level, text.format("2 usable CPUs"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (None, []),
        ("missing-program | mail", []),
        (("sh", "-c", "true"), []),
        (("./tell",), []),
        (("missing-program", "x"), ["there is no program missing-program"]),
        (("./missing",), ["there is no program ./missing"]),
        (("./no-program",), ["there is no program ./no-program"]),
    ],
)
def test_a_program_that_is_to_be_told_and_is_not_there_is_a_warning(
    command: str | tuple[str, ...] | None, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tell").touch(mode=0o755)
    (tmp_path / "no-program").touch(mode=0o644)
    config = load_config(write_config(tmp_path), overrides={"Daemon.on_event": command} if command else {})
    found = list(node.told(config))
    assert [finding.text for finding in found] == words
    assert all(finding.level is Level.WARNING for finding in found)
