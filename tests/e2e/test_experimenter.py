"""`PyExperimenter` but for `execute`: filling, single experiments, attaching, resetting, reading."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyexp_daemon import exceptions
from pyexp_daemon.experiment_status import ExperimentStatus
from pyexp_daemon.experimenter import PyExperimenter
from pyexp_daemon.result_processor import ResultProcessor
from pyexp_daemon.space import Linear
from tests.e2e.study import Study

Make = Callable[..., Study]
Open = Callable[..., PyExperimenter]


@pytest.fixture
def study(make_study: Make) -> Study:
    """x = 0 to 3."""
    return make_study()


@pytest.fixture
def opened(study: Study, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Makes objects in the folder of the study, with a logger that goes nowhere but to caplog."""
    monkeypatch.chdir(study.folder)
    logging.getLogger("tests.study")

    def make(**options: Any) -> PyExperimenter:
        return PyExperimenter("pyexpd.yml", use_codecarbon=False, logger_name="tests.study", **options)

    yield make
    logging.getLogger("tests.study").handlers.clear()


@pytest.fixture
def experimenter(opened: Open) -> PyExperimenter:
    """Its table is filled."""
    made = opened()
    made.fill_table_from_config()
    return made


def pause(keyfields: dict[str, Any]) -> ExperimentStatus:
    return ExperimentStatus.PAUSED


def test_nothing_is_filled_twice(experimenter: PyExperimenter, study: Study) -> None:
    experimenter.fill_table_from_config()
    experimenter.fill_table_with_rows([{"x": 3}, {"x": 4}, {"x": 4.0}, {"x": 5}])
    experimenter.fill_table_from_combination(parameters={"x": [5, 6]})
    assert study.rows_of("ID, x, status") == [(i + 1, i, "created") for i in range(7)]


def test_rows_are_left_as_they_are_and_checked(experimenter: PyExperimenter, study: Study) -> None:
    rows = [{"x": 7}]
    experimenter.fill_table_with_rows(rows)
    assert rows == [{"x": 7}]
    with pytest.raises(exceptions.EmptyFillDatabaseCallError):
        experimenter.fill_table_with_rows([])
    with pytest.raises(exceptions.EmptyFillDatabaseCallError, match="there are no experiments"):
        experimenter.fill_table_from_space({"x": Linear(0, 1, 0)})
    for wrong in ({"y": 1}, {"x": 1, "y": 2}, {}, {"x": "seven"}):
        with pytest.raises(ValueError, match="row 2"):
            experimenter.fill_table_with_rows([{"x": 8}, wrong])
    assert len(study.rows_of()) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no combination"),
        ({"parameters": {"x": []}}, "no combination"),
        ({"parameters": {"x": [1], "z": [2]}}, "'z' is not a keyfield"),
        ({"parameters": {"x": [1]}, "fixed_parameter_combinations": [{"x": 2}]}, "x: among the parameters and among"),
        ({"fixed_parameter_combinations": [{"z": 2}]}, "'z' is not a keyfield"),
    ],
)
def test_combinations_that_do_not_match_insert_nothing(
    experimenter: PyExperimenter, study: Study, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(exceptions.ParameterCombinationError, match=message):
        experimenter.fill_table_from_combination(**arguments)
    assert len(study.rows_of()) == 4


def test_fixed_combinations_are_crossed_with_parameters(make_study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(keyfields={name: {"type": "INT"} for name in ("a", "b", "c", "d")})
    monkeypatch.chdir(study.folder)
    experimenter = PyExperimenter("pyexpd.yml", use_codecarbon=False)
    experimenter.fill_table_from_combination([{"a": 1, "d": 2}, {"a": 2, "d": 4}], {"c": [5, 6], "b": [1, 2]})
    # as PyExperimenter: of the parameters the first two keyfields, b and c, in this order, the fixed ones innermost
    assert study.rows_of("a, b, c, d") == [(a, b, c, d) for b in (1, 2) for c in (5, 6) for a, d in ((1, 2), (2, 4))]


def test_a_database_that_is_missing_is_made_when_asked_for(
    study: Study, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    name = study.database.name + "_new"
    experimenter = opened(database_name=name)
    try:
        if study.database.server:
            assert "create_table(create_database=True) makes it" in caplog.text
            with pytest.raises(exceptions.DatabaseConnectionError):
                experimenter.create_table()
        experimenter.create_table(create_database=True)
        experimenter.create_table(create_database=True)
        experimenter.fill_table_from_config()
        assert len(experimenter.get_table()) == 4
    finally:
        if study.database.server:
            study.database.server.drop_database(name)


def test_a_table_of_another_structure_is_left_alone(experimenter: PyExperimenter, opened: Open, study: Study) -> None:
    other = opened()
    del other.config.database_configuration.resultfields["y"]
    with pytest.raises(exceptions.TableHasWrongStructureError):
        other.fill_table_from_config()
    assert len(study.rows_of()) == 4


def test_reading_and_running_without_a_table_make_nothing(opened: Open) -> None:
    experimenter = opened()
    calls: list[Callable[[], object]] = [
        experimenter.get_table,
        lambda: experimenter.execute(pause),
        lambda: experimenter.reset_experiments("all"),
        lambda: experimenter.attach(lambda result_processor: None, 1),
    ]
    for call in calls:
        with pytest.raises(exceptions.DatabaseConnectionError) as caught:
            call()
        assert "fill_table_from_config() makes the table" in (caught.value.hint or "")


def test_one_experiment_is_added_and_run_in_this_process(experimenter: PyExperimenter, study: Study) -> None:
    seen = []

    def run(keyfields: dict[str, Any], result_processor: ResultProcessor, custom: dict[str, Any]) -> None:
        seen.append((keyfields, result_processor.experiment_id, custom, threading.get_ident()))
        result_processor.process_results({"y": 1.5})

    given = {"x": 9}
    experimenter.add_experiment_and_execute(given, run)
    assert seen == [({"x": 9}, 5, {}, threading.get_ident())]
    assert given == {"x": 9}
    assert study.rows_of("ID, x, status, y")[-1] == (5, 9, "done", 1.5)


def test_one_that_is_there_is_not_run(
    experimenter: PyExperimenter, study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    experimenter.add_experiment_and_execute({"x": 3}, lambda keyfields: pytest.fail("it ran"))
    assert "Experiment already exists in the table, and is not run: {'x': 3}" in caplog.text
    assert study.statuses() == {"created": 4}


def test_one_that_others_made_is_not_run(experimenter: PyExperimenter, study: Study) -> None:
    """A row without a fingerprint is known by its parameters."""
    study.database.query("INSERT INTO exp (x, status) VALUES (7, 'paused')")
    experimenter.add_experiment_and_execute({"x": 7}, lambda keyfields: pytest.fail("it ran"))
    assert study.statuses() == {"created": 4, "paused": 1}


def test_added_ones_that_fail_or_pause_say_so(experimenter: PyExperimenter, study: Study) -> None:
    def fails(keyfields: dict[str, Any]) -> None:
        raise ValueError("no such luck")

    experimenter.add_experiment_and_execute({"x": 10}, fails)
    experimenter.add_experiment_and_execute({"x": 11}, pause)
    assert [row[:2] for row in study.rows_of("x, status, error")][-2:] == [(10, "error"), (11, "paused")]
    assert "no such luck" in study.rows_of("error")[-2][0]


def test_a_paused_one_goes_on(experimenter: PyExperimenter, study: Study) -> None:
    experimenter.add_experiment_and_execute({"x": 100}, pause)
    experimenter.unpause_experiment(5, lambda keyfields: {"y": keyfields["x"]})
    assert study.rows_of()[-1] == (5, "done", 100.0)
    for number in (5, 1, 77):
        with pytest.raises(exceptions.NoPausedExperimentsException):
            experimenter.unpause_experiment(number, pause)


def test_an_interrupt_leaves_a_paused_one_paused_and_an_added_one_created(
    experimenter: PyExperimenter, study: Study
) -> None:
    def interrupted(keyfields: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    experimenter.add_experiment_and_execute({"x": 100}, pause)
    with pytest.raises(KeyboardInterrupt):
        experimenter.unpause_experiment(5, interrupted)
    with pytest.raises(KeyboardInterrupt):
        experimenter.add_experiment_and_execute({"x": 101}, interrupted)
    assert [row[1] for row in study.rows_of()][-2:] == ["paused", "created"]


def test_of_two_who_unpause_one_wins(experimenter: PyExperimenter, opened: Open, study: Study) -> None:
    experimenter.add_experiment_and_execute({"x": 100}, pause)
    runs: list[int] = []
    lost: list[Exception] = []
    both = threading.Barrier(2)

    def unpause(one: PyExperimenter) -> None:
        both.wait(10)
        try:
            one.unpause_experiment(5, lambda keyfields: runs.append(1))
        except exceptions.NoPausedExperimentsException as error:
            lost.append(error)

    threads = [threading.Thread(target=unpause, args=(one,)) for one in (experimenter, opened())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(runs), len(lost)) == (1, 1)
    assert study.rows_of()[-1][1] == "done"


def test_another_process_writes_for_a_running_experiment_until_it_is_over(
    experimenter: PyExperimenter, opened: Open, study: Study
) -> None:
    other = opened()
    kept: list[ResultProcessor] = []

    def beside(result_processor: ResultProcessor) -> str:
        kept.append(result_processor)
        result_processor.process_logs({"steps": {"loss": 0.5}})
        result_processor.process_results({"y": 2.0})
        return "what it returns"

    def run(keyfields: dict[str, Any], result_processor: ResultProcessor) -> None:
        result_processor.process_logs({"steps": {"loss": 0.25}})
        assert other.attach(beside, result_processor.experiment_id) == "what it returns"
        result_processor.process_logs({"steps": {"loss": 0.75}})

    experimenter.add_experiment_and_execute({"x": 100}, run)
    assert study.rows_of()[-1] == (5, "done", 2.0)
    losses = {row[0] for row in study.database.query("SELECT loss FROM exp__steps WHERE experiment_id = 5")}
    assert losses == {0.25, 0.5, 0.75}
    with pytest.raises(exceptions.UsageError):  # it was over when the function returned
        kept[0].process_results({"y": 3.0})


def test_what_comes_after_the_experiment_moved_on_is_refused(experimenter: PyExperimenter, study: Study) -> None:
    experimenter.add_experiment_and_execute({"x": 100}, pause)

    def late(result_processor: ResultProcessor) -> None:
        result_processor.process_results({"y": 1.0})  # of a paused one, that is still paused
        experimenter.reset_experiments("paused")
        result_processor.process_results({"y": 2.0})

    with pytest.raises(exceptions.LeaseLost):
        experimenter.attach(late, 5)
    assert study.rows_of()[-1] == (5, "created", None)
    with pytest.raises(exceptions.SelectorError, match="no experiment 77"):
        experimenter.attach(late, 77)


def test_what_is_attached_is_checked_as_results_are(experimenter: PyExperimenter) -> None:
    with pytest.raises(exceptions.InvalidResultFieldError):
        experimenter.attach(lambda result_processor: result_processor.process_results({"z": 1}), 1)
    with pytest.raises(exceptions.MissingLogTableError):
        experimenter.attach(lambda result_processor: result_processor.process_logs({"z": {"loss": 1}}), 1)


def test_experiments_are_reset_in_place(experimenter: PyExperimenter, study: Study) -> None:
    experimenter.add_experiment_and_execute({"x": 100}, lambda keyfields, rp: rp.process_logs({"steps": {"loss": 1}}))
    experimenter.add_experiment_and_execute({"x": 101}, pause)
    experimenter.reset_experiments("done", ExperimentStatus.PAUSED)
    assert study.statuses() == {"created": 6}
    assert [row[0] for row in study.rows_of()] == [1, 2, 3, 4, 5, 6]
    assert study.database.query("SELECT * FROM exp__steps") == []


def test_all_are_reset_running_ones_too(experimenter: PyExperimenter, study: Study) -> None:
    def run(keyfields: dict[str, Any]) -> dict[str, float]:
        experimenter.reset_experiments("all")
        return {"y": 1.0}

    with pytest.raises(exceptions.LeaseLost):
        experimenter.add_experiment_and_execute({"x": 100}, run)
    assert study.statuses() == {"created": 5}


def test_a_misspelt_state_resets_nothing(
    experimenter: PyExperimenter, study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(exceptions.SelectorError, match="there is no status 'erorr'"):
        experimenter.reset_experiments("created", "erorr")
    experimenter.reset_experiments()
    assert "No states given" in caplog.text


def test_the_table_goes_with_all_that_is_beside_it(experimenter: PyExperimenter, study: Study) -> None:
    experimenter.delete_table()
    experimenter.delete_table()
    with pytest.raises(exceptions.DatabaseConnectionError):
        experimenter.get_table()
    experimenter.fill_table_from_config()
    assert study.statuses() == {"created": 4}


def test_tables_are_frames_without_columns_of_ours(experimenter: PyExperimenter) -> None:
    experimenter.add_experiment_and_execute({"x": 100}, lambda keyfields, rp: rp.process_logs({"steps": {"loss": 1}}))
    table, steps = experimenter.get_table(), experimenter.get_logtable("steps")
    assert list(table.columns) == [
        "ID", "x", "creation_date", "status", "start_date", "name", "machine", "y", "end_date", "error"
    ]  # fmt: skip
    assert list(table["x"]) == [0, 1, 2, 3, 100]
    assert list(steps.columns) == ["ID", "experiment_id", "timestamp", "loss"]
    assert list(steps["experiment_id"]) == [5]
    with pytest.raises(exceptions.DatabaseConnectionError, match="exp__stops does not exist"):
        experimenter.get_logtable("stops")
    with pytest.raises(ValueError, match="CodeCarbon is not used"):
        experimenter.get_codecarbon_table()


def test_the_connector_gives_plain_connections(experimenter: PyExperimenter, study: Study) -> None:
    connector = experimenter.db_connector
    connection = connector.connect()
    cursor = connector.cursor(connection)
    mark = "%s" if study.database.server else "?"
    connector.execute(cursor, f"UPDATE exp SET status = 'error' WHERE ID = {mark}", (2,))
    connector.commit(connection)
    connector.execute(cursor, "SELECT ID, status FROM exp ORDER BY ID")
    assert [tuple(row) for row in connector.fetchall(cursor)][:2] == [(1, "created"), (2, "error")]
    with pytest.raises(exceptions.DatabaseConnectionError):
        connector.execute(cursor, "SELECT nothing FROM nowhere")
    connector.close_connection(connection)


def test_the_configuration_may_be_read_and_changed(opened: Open, study: Study) -> None:
    experimenter = opened(table_name="other")
    config = experimenter.config
    assert config.database_configuration.table_name == "other"
    assert config.database_configuration.logtables == {"other__steps": {"loss": "DOUBLE"}}
    assert config.database_configuration.keyfields["x"].dtype == "INT"
    assert config.n_jobs == 1
    assert config.valid()
    config.database_configuration.keyfields["x"].values = [5]
    config.database_configuration.table_name = "third"
    experimenter.fill_table_from_config()
    assert study.database.query("SELECT x FROM third") == [(5,)]
    assert experimenter.get_logtable("steps").empty


def test_keys_that_mean_nothing_are_passed_over(study: Study, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    content = yaml.safe_load(study.config.read_text())
    content["PY_EXPERIMENTER"]["Database"]["remark"] = "mine"
    study.config.write_text(yaml.safe_dump(content))
    opened().fill_table_from_config()
    assert "PY_EXPERIMENTER.Database.remark: unknown key, passed over" in caplog.text
    content["PY_EXPERIMENTER"]["Daemon"]["leese"] = "3s"
    study.config.write_text(yaml.safe_dump(content))
    with pytest.raises(exceptions.InvalidConfigError, match="leese"):
        opened()


def test_bad_arguments_change_nothing(experimenter: PyExperimenter) -> None:
    with pytest.raises(ValueError, match="n_jobs is 0"):
        experimenter.execute(pause, n_jobs=0)
    with pytest.raises(ValueError, match="max_experiments is -2"):
        experimenter.execute(pause, max_experiments=-2)


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_credentials_that_cannot_be_used(study: Study, opened: Open) -> None:
    file = study.folder / "database_credentials.yml"
    good = yaml.safe_load(file.read_text())
    file.write_text("CREDENTIALS:\n  Database: {user: somebody, password: hidden-word}\n")
    with pytest.raises(exceptions.DatabaseCreationError) as unusable:
        opened()
    good["CREDENTIALS"]["Database"]["password"] = "hidden-word"
    file.write_text(yaml.safe_dump(good))
    with pytest.raises(exceptions.DatabaseConnectionError) as refused:
        opened()
    assert "hidden-word" not in f"{unusable.value!r} {refused.value!r} {refused.value.__cause__!r}"


def test_a_new_logger_writes_to_its_file(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(study.folder)
    name = f"new.{tmp_path.name}.{study.database.flavour}"
    PyExperimenter("pyexpd.yml", use_codecarbon=False, logger_name=name, log_file="deep/er/log.txt", log_level="INFO")
    assert "Initialized and connected" in (study.folder / "deep" / "er" / "log.txt").read_text()
    for handler in logging.getLogger(name).handlers:
        handler.close()


def test_importing_it_loads_little() -> None:
    heavy = {"pandas", "numpy", "codecarbon", "asyncssh", "pyarrow", "structlog", "anyio", "pydantic", "pymysql"}
    code = "import pyexp_daemon.experimenter, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(loaded.stdout.split())


def test_its_names_are_where_they_were() -> None:
    from pyexp_daemon.config import Cfg, CodeCarbonCfg, CustomCfg, DatabaseCfg, Keyfield, PyExperimenterCfg

    for name in (Cfg, CodeCarbonCfg, CustomCfg, DatabaseCfg, Keyfield, PyExperimenterCfg):
        assert isinstance(name, type)
    logger = logging.getLogger("tests.study")
    database = DatabaseCfg(
        "sqlite", False, "results", "exp", True, {"x": Keyfield("x", "INT", [1, 2])},
        {"y": "INT", "y_timestamp": "VARCHAR(255)"}, {"exp__steps": {"loss": "DOUBLE"}}, logger,
    )  # fmt: skip
    config = PyExperimenterCfg(2, database, CustomCfg({}, logger), CodeCarbonCfg({}, logger), logger)
    assert config.valid()
    assert database.get_experiment_configuration() == [{"x": 1}, {"x": 2}]
    database.provider = "postgres"
    assert not config.valid()
