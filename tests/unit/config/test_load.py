from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pyexp_daemon import exceptions
from pyexp_daemon.config import models
from pyexp_daemon.config.load import find_config, load_config
from pyexp_daemon.config.models import DaemonConfig, LimitsConfig, Range, Tries
from pyexp_daemon.daemon.allotment import LAST_WORDS_S
from tests.unit.config.factories import write_config

CONFIGS = Path(__file__).parents[3] / "configs"
KILL_WAIT_S = 30
"""Slurm's KillWait, if the site did not change it."""


def test_the_smallest_file_has_all_defaults(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    assert config.daemon == DaemonConfig()
    assert config.limits == LimitsConfig()
    assert (config.n_jobs, config.function, config.custom, config.codecarbon) == (4, None, {}, {})
    assert config.database.table.keyfields["lr"].values == (0.1, 0.2)
    assert config.database.table.keyfields["seed"].values == Range(0, 3, 1)
    assert config.database.table.resultfields == {"accuracy": "DOUBLE"}
    assert config.database.logtables == {"epochs": {"loss": "DOUBLE"}}


def test_durations_and_sizes_become_numbers(tmp_path: Path) -> None:
    extra = """\
        Daemon: {heartbeat: 500ms, lease: 3s, poll: {longest: 1m}, recycle: {memory: 1GiB}, drain_timeout: 0}
        Limits: {timeout: 2h30m, memory: 8GB, tries: {crash: 5}, backoff: {first: 1s}, log_size: 1MiB, grace: 0s}
        """
    config = load_config(write_config(tmp_path, extra=extra))
    daemon, limits = config.daemon, config.limits
    assert (daemon.heartbeat_s, daemon.lease_s, daemon.poll.longest_s, daemon.drain_timeout_s) == (0.5, 3.0, 60.0, 0.0)
    assert daemon.recycle.memory_bytes == 2**30
    assert (limits.timeout_s, limits.memory_bytes, limits.backoff.first_s) == (9000.0, 8 * 10**9, 1.0)
    assert (limits.log_size_bytes, limits.grace_s) == (2**20, 0.0)


def test_a_partial_budget_keeps_the_other_defaults(tmp_path: Path) -> None:
    tries = load_config(write_config(tmp_path, extra="Limits: {tries: {crash: 5}}")).limits.tries
    assert dict(tries) == {"error": 1, "timeout": 1, "stalled": 2, "crash": 5, "lost": 20}
    assert tries["crash"] == 5
    with pytest.raises(KeyError):
        tries["done"]


def test_an_empty_section_and_an_empty_key_have_their_defaults(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, extra="Daemon:\nLimits:\n  tries:\n  grace:\nCustom:\n"))
    assert (config.daemon, config.limits, config.custom) == (DaemonConfig(), LimitsConfig(), {})


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    with pytest.raises(ValidationError):
        config.n_jobs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.daemon.slots = 3  # type: ignore[misc]


def test_a_configuration_can_be_dumped_and_copied(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    assert config.model_dump()["limits"]["tries"]["lost"] == 20
    assert config.model_copy(update={"project": Path("/elsewhere")}).database_path == Path("/elsewhere/results.db")


def test_interpolation_reads_keys_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOTS", "3")
    extra = (
        'Daemon: {slots: "${oc.env:SLOTS}"}\nCustom: {table: "${PY_EXPERIMENTER.Database.table.name}", deep: {a: [1]}}'
    )
    config = load_config(write_config(tmp_path, extra=extra))
    assert config.daemon.slots == 3
    assert config.custom == {"table": "runs", "deep": {"a": [1]}}
    assert type(config.custom["deep"]) is dict
    assert type(config.custom["deep"]["a"]) is list


def test_yaml_is_read_as_omegaconf_does(tmp_path: Path) -> None:
    values = "[1e-3, 2024-01-31, 1_000, 0x10, .5, yes, null, 1e5]"
    config = load_config(write_config(tmp_path, replace=("[0.1, 0.2]", values)))
    assert config.database.table.keyfields["lr"].values == (0.001, "2024-01-31", 1000, 16, 0.5, True, None, 100000.0)


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    extra = "Custom:\n  base: &base {a: 1, b: 2}\n  derived: {<<: *base, b: 3}\n"
    assert load_config(write_config(tmp_path, extra=extra)).custom["derived"] == {"a": 1, "b": 3}


def test_long_lists_of_values_are_possible(tmp_path: Path) -> None:
    values = f"[{', '.join(map(str, range(20_000)))}]"
    config = load_config(write_config(tmp_path, replace=("[0.1, 0.2]", values)))
    found = config.database.table.keyfields["lr"].values
    assert isinstance(found, tuple)
    assert len(found) == 20_000


def test_custom_and_codecarbon_are_free(tmp_path: Path) -> None:
    config = load_config(
        write_config(tmp_path, extra="Custom: {Any: {thing: 1}, 2: x}\nCodeCarbon: {save_to_file: false}")
    )
    assert config.custom == {"Any": {"thing": 1}, 2: "x"}
    assert config.codecarbon == {"save_to_file": False}


def test_a_keyfield_may_have_no_values(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, replace=(", values: [0.1, 0.2]", "")))
    assert config.database.table.keyfields["lr"].values is None


def test_sql_words_are_fine_as_names(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, replace=("lr:", "select:")))
    assert list(config.database.table.keyfields) == ["select", "seed"]


@pytest.mark.parametrize("key", ["use_ssh", "use_ssh_tunnel"])
def test_both_spellings_of_the_tunnel_are_read(tmp_path: Path, key: str) -> None:
    config = load_config(write_config(tmp_path, replace=("database: results", f"database: results\n    {key}: true")))
    assert config.database.use_ssh
    assert not load_config(config.path, overrides={"Database.use_ssh": False}).database.use_ssh


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    overrides = {
        "Database.table.name": "other",
        "Daemon.heartbeat": "1s",
        "n_jobs": 2,
        "Custom.x": "${PY_EXPERIMENTER.n_jobs}",
    }
    config = load_config(write_config(tmp_path), overrides=overrides)
    assert (config.database.table.name, config.daemon.heartbeat_s, config.n_jobs) == ("other", 1.0, 2)
    assert config.custom == {"x": 2}


def test_relative_paths_belong_to_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("project/exp.yml"), overrides={"Daemon.logs": "logs"})
    assert config.path == tmp_path / "project/exp.yml"
    assert config.project == tmp_path / "project"
    assert config.database_path == tmp_path / "project/results.db"
    assert config.logs == tmp_path / "project/logs/runs"


def test_a_folder_called_config_belongs_to_the_project_above(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path / "config"))
    assert config.project == tmp_path
    assert config.database_path == tmp_path / "results.db"
    assert config.logs == tmp_path / "config/.pyexpd/runs"


def test_the_caller_may_name_the_project(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path), project=tmp_path / "cwd").database_path == tmp_path / "cwd/results.db"


def test_an_absolute_database_stays_where_it_is(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), overrides={"Database.database": "/data/x.v1"})
    assert config.database_path == Path("/data/x.v1.db")


def test_a_mysql_database_is_no_file(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), overrides={"Database.provider": "mysql"})
    with pytest.raises(ValueError, match="SQLite"):
        _ = config.database_path


def test_the_state_folder_has_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_config(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert load_config(file).state == Path("/home/me/.local/state/pyexpd")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert load_config(file).state == Path("/xdg/pyexpd")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/pyexpd/a:/var/lib/pyexpd/b")
    assert load_config(file).state == Path("/var/lib/pyexpd/a")
    assert load_config(file, overrides={"Daemon.state": "~/s"}).state == Path("/home/me/s")


def test_the_logs_folder_has_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_config(tmp_path)
    monkeypatch.setenv("LOGS_DIRECTORY", "/var/log/pyexpd/a")
    assert load_config(file).logs == Path("/var/log/pyexpd/a/runs")
    assert load_config(file, overrides={"Daemon.logs": "logs"}).logs == tmp_path / "logs/runs"
    other = {"Daemon.logs": "logs", "Database.table.name": "other"}
    assert load_config(file, overrides=other).logs == tmp_path / "logs/other"


def test_the_number_of_slots_has_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "usable_cpus", lambda: 7)
    file = write_config(tmp_path)
    assert load_config(file, overrides={"Daemon.slots": 9}).slots() == 9
    assert load_config(file).slots() == 4
    assert load_config(file, overrides={"n_jobs": None}).slots() == 7


def test_a_drain_inside_slurm_is_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert load_config(write_config(tmp_path)).daemon.drain_timeout_s == 60.0
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    config = load_config(write_config(tmp_path))
    assert config.daemon.drain_timeout_s == 10.0
    assert config.daemon.drain_timeout_s + config.limits.grace_s + LAST_WORDS_S < KILL_WAIT_S
    assert load_config(write_config(tmp_path, extra="Daemon: {drain_timeout: 5s}")).daemon.drain_timeout_s == 5.0


def test_gpus_are_auto_a_number_or_a_list(tmp_path: Path) -> None:
    for text, gpus in [("auto", "auto"), ("0", 0), ("[0, 2]", (0, 2)), ("[GPU-8f]", ("GPU-8f",)), ("[]", ())]:
        assert load_config(write_config(tmp_path, extra=f"Daemon: {{gpus: {text}}}")).daemon.gpus == gpus


def test_sections_can_be_made_by_name() -> None:
    assert DaemonConfig.model_validate({"heartbeat_s": "1s"}).heartbeat_s == 1.0
    assert Tries(crash=1)["crash"] == 1


@pytest.mark.parametrize("name", ["sqlite.yml", "mysql.yml"])
def test_the_shipped_configurations_load(name: str) -> None:
    config = load_config(CONFIGS / name)
    assert config.daemon == DaemonConfig()
    assert config.limits == LimitsConfig()


@pytest.mark.parametrize("name", ["sqlite.yml", "mysql.yml"])
def test_the_commented_keys_of_the_shipped_configurations_load(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(re.sub(r"^( +)# (\w+: )", r"\1\2", (CONFIGS / name).read_text(), flags=re.MULTILINE))
    config = load_config(file)
    assert config.limits.timeout_s == 9000.0
    assert config.daemon.gpus == "auto"


def test_the_file_has_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYEXPD_CONFIG", raising=False)
    with pytest.raises(exceptions.NoConfigFileError) as caught:
        find_config(None)
    assert str(caught.value) == (
        "no configuration file: PYEXPD_CONFIG is not set, and there is none of"
        " ./pyexpd.yml, ./config/experiment_configuration.yml"
    )
    assert "pyexpd init" in (caught.value.hint or "")
    write_config(tmp_path, name="config/experiment_configuration.yml")
    assert find_config(None) == Path("config/experiment_configuration.yml")
    write_config(tmp_path, name="pyexpd.yml")
    assert find_config(None) == Path("pyexpd.yml")
    monkeypatch.setenv("PYEXPD_CONFIG", str(write_config(tmp_path, name="env.yml")))
    assert find_config(None) == tmp_path / "env.yml"
    explicit = write_config(tmp_path, name="explicit.yml")
    assert find_config(explicit) == explicit


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, name="pyexpd.yml")
    with pytest.raises(exceptions.NoConfigFileError, match=r"^x\.yml: no such file$"):
        find_config(Path("x.yml"))
    monkeypatch.setenv("PYEXPD_CONFIG", "y.yml")
    with pytest.raises(exceptions.NoConfigFileError, match=r"^y\.yml: no such file \(from PYEXPD_CONFIG\)$"):
        find_config(None)


def test_the_plugins_of_pydantic_are_looked_for_by_others_only(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib, pydantic\n"
        "from pyexp_daemon.config.load import load_config\n"
        "load_config(pathlib.Path(sys.argv[1]))\n"
        "import pydantic.plugin._loader as loader\n"
        "assert loader._plugins is None and 'PYDANTIC_DISABLE_PLUGINS' not in os.environ\n"
        "class Model(pydantic.BaseModel):\n"
        "    x: int\n"
        "assert loader._plugins is not None\n"
        "assert Model(x=1).x == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code, write_config(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
