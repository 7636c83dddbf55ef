"""What users of PyExperimenter call, every public method of it; the name of the package is the argument.

After each call the tables are read through the package, and written to `diary.json` in the end: a list of
`{what, outcome, tables}`, the outcome being what the call returned, or the name of the exception.
"""

# ruff: noqa: BLE001
# mypy: ignore-errors

import importlib
import json
import sys
from pathlib import Path

package = sys.argv[1]
PyExperimenter = importlib.import_module(f"{package}.experimenter").PyExperimenter
ResultProcessor = importlib.import_module(f"{package}.result_processor").ResultProcessor
ExperimentStatus = importlib.import_module(f"{package}.experiment_status").ExperimentStatus
exceptions = importlib.import_module(f"{package}.exceptions")

diary = []


def opened(folder=".", use_codecarbon=False, **options):
    return PyExperimenter(
        experiment_configuration_file_path=f"{folder}/pyexpd.yml",
        database_credential_file_path="database_credentials.yml",
        use_codecarbon=use_codecarbon,
        log_level="WARNING",
        log_file="logs/parity.log",
        **options,
    )


def note(what, call, *arguments, reads=None, **options):
    """Make a call; write down what became of it, and what is then in the tables that `reads` give."""
    try:
        outcome = repr(call(*arguments, **options))
    except Exception as error:
        print(what, "raised", repr(error), file=sys.stderr)
        outcome = type(error).__name__
    diary.append(
        {"what": what, "outcome": outcome, "tables": {name: written(read()) for name, read in (reads or {}).items()}}
    )


def written(frame):
    content = frame.to_dict("split")
    return {
        "columns": content["columns"],
        "dtypes": [str(dtype) for dtype in frame.dtypes],
        "rows": [[repr(value) for value in row] for row in content["data"]],
    }


def finish(keyfields, result_processor, custom):
    for step in range(2):
        result_processor.process_logs({"steps": {"step": step, "loss": 1 / (3 + step), "word": "näh 🎲"}})
    result_processor.process_results({"received": repr(list(keyfields.items()))})
    result_processor.process_results(
        {
            "score": keyfields["c"] * 2 + custom["offset"],
            "passed": keyfields["seed"] % 2 == 0,
            "rounds": keyfields["seed"],
            "since": "2024-02-29 12:30:00",
            "text": f'it\'s a "{custom["nested"]["word"]}";\n{type(result_processor).__name__}',
        }
    )


def every_end(keyfields, result_processor, custom):
    """One end for each kernel."""
    if keyfields["kernel"] == "raises":
        result_processor.process_results({"score": 0.25})
        raise ValueError("no such luck")
    if keyfields["kernel"] == "invalid":
        return "finished"
    if keyfields["kernel"] == "exits":
        return ExperimentStatus.RUNNING
    return ExperimentStatus[keyfields["kernel"].upper()]


def mistaken(keyfields, result_processor, custom):
    """Calls that are refused, by the names of their exceptions."""
    names = []
    for call, argument in (
        (result_processor.process_results, {"score": 1.0, "nothing": 1}),
        (result_processor.process_logs, {"steps": {"nothing": 1}}),
    ):
        try:
            call(argument)
        except Exception as error:
            names.append(type(error).__name__)
    result_processor.process_results({"text": " ".join(names)})


def attaching(keyfields, result_processor, custom):
    def beside(other):
        other.process_logs({"steps": {"step": 7, "loss": 0.5}})
        other.process_results({"score": 0.5})
        return other.experiment_id == result_processor.experiment_id

    try:
        outcome = repr(opened().attach(beside, result_processor.experiment_id))
    except ValueError as error:
        outcome = type(error).__name__
    result_processor.process_results({"text": outcome})


def seen(keyfields, result_processor, custom):
    result_processor.process_results({"text": " ".join(sorted(keyfields))})


def double(keyfields, result_processor, custom):
    result_processor.process_results({"y": keyfields["x"] * 2.0})


def work():
    """Everything, on a table with log tables and timestamps, one experiment at a time: IDs and logs are comparable."""
    study = opened(name="job 7")
    reads = {"experiments": study.get_table, "steps": lambda: study.get_logtable("steps")}

    note("create_table", study.create_table, reads=reads)
    note("create_table, again", study.create_table, create_database=False)
    note("create_table with the database", study.create_table, create_database=True)
    note("fill_table_from_config", study.fill_table_from_config, reads=reads)
    note("fill_table_from_config, again", study.fill_table_from_config, reads=reads)
    note(
        "fill_table_from_combination",
        study.fill_table_from_combination,
        fixed_parameter_combinations=[{"kernel": "raises", "c": 0.5}, {"kernel": "error", "c": 1.5}],
        parameters={"seed": [0, 10], "flag": [True, False]},
        reads=reads,
    )
    rows = [{"seed": 20, "kernel": kernel, "c": 1.0, "flag": True} for kernel in ("paused", "done", "error", "invalid")]
    note("fill_table_with_rows", study.fill_table_with_rows, rows, reads=reads)
    note("fill_table_with_rows of none", study.fill_table_with_rows, [])
    note("fill_table_from_combination of none", study.fill_table_from_combination, [], {})
    note("fill_table_from_combination of too few", study.fill_table_from_combination, [], {"seed": [1]})
    note(
        "fill_table_from_combination of one twice",
        study.fill_table_from_combination,
        [{"seed": 1}],
        {"seed": [1], "kernel": ["rbf"], "c": [1.0], "flag": [True]},
    )

    note("execute 2", study.execute, finish, max_experiments=2, reads=reads)
    note("execute 0", study.execute, finish, max_experiments=0)
    note("execute mistaken", study.execute, mistaken, False, 1, 1, reads=reads)
    note("execute attaching", study.execute, attaching, max_experiments=1, reads=reads)
    note("execute the grid", study.execute, finish, max_experiments=12, reads=reads)
    note("execute to every end", study.execute, every_end, reads=reads)
    note("execute when nothing is left", study.execute, finish)
    note("execute more than there are", study.execute, finish, max_experiments=1)

    (paused,) = study.get_table().query("status == 'paused'")["ID"]
    note("unpause_experiment", study.unpause_experiment, int(paused), finish, reads=reads)
    note("unpause_experiment, not paused", study.unpause_experiment, int(paused), finish)
    note("attach", study.attach, lambda result_processor: result_processor.experiment_id, 1)

    added = {"seed": 30, "kernel": "added", "c": 1.0, "flag": False}
    note("add_experiment_and_execute", study.add_experiment_and_execute, dict(added), seen, reads=reads)
    note("add_experiment_and_execute, again", study.add_experiment_and_execute, dict(added), seen, reads=reads)

    plain_connection(study, reads)

    note("reset_experiments of none", study.reset_experiments)
    note("reset_experiments", study.reset_experiments, "error", reads=reads)
    note("execute what was reset", study.execute, finish, reads=reads)
    note("reset_experiments of two", study.reset_experiments, "done", "paused", reads=reads)
    note("reset_experiments of all", study.reset_experiments, "all", reads=reads)
    note("execute all again", study.execute, finish, reads=reads)

    study.config.database_configuration.resultfields.pop("rounds")
    note("create_table of another structure", study.create_table)
    note("get_codecarbon_table", study.get_codecarbon_table)
    note("close_ssh", study.close_ssh)


def plain_connection(study, reads):
    connector = study.db_connector
    connection = connector.connect()
    cursor = connector.cursor(connection)
    connector.execute(cursor, "SELECT status, COUNT(*) FROM exp GROUP BY status ORDER BY status")
    note("fetchall", lambda: [tuple(row) for row in connector.fetchall(cursor)])
    connector.execute(cursor, "UPDATE exp SET text = 'by hand' WHERE ID = 1")
    note("commit", connector.commit, connection)
    connector.execute(cursor, "UPDATE exp SET text = 'not committed' WHERE ID = 1")
    note("close_connection", connector.close_connection, connection, reads=reads)
    connection = connector.connect()
    cursor = connector.cursor(connection)
    note("execute a mistake", connector.execute, cursor, "SELECT nothing FROM exp")
    note("close_connection, again", connector.close_connection, connection)


def work_on_another_table(database):
    """Named by the arguments: without logs, in any order, with several jobs."""
    study = opened("other", table_name="another", database_name=database, use_ssh_tunnel=False)
    reads = {"experiments": study.get_table}
    note("another: fill", study.fill_table_from_config, reads=reads)
    note("another: random order", study.execute, double, random_order=True, max_experiments=4)
    note("another: two jobs", study.execute, double, n_jobs=2, reads=reads)
    note("another: its name", lambda: (study.config.database_configuration.table_name, study.name))
    note("another: delete_table", study.delete_table)
    note("another: get_table", study.get_table)
    note("another: fill again", study.fill_table_from_config, reads=reads)
    note("another: delete_table again", study.delete_table)


def measured(keyfields, result_processor, custom):
    sum(range(10**6))
    if keyfields["x"] == 1:
        raise ValueError("no such luck")


def work_with_emissions():
    study = opened("measured", use_codecarbon=True)
    reads = {"experiments": study.get_table, "emissions": study.get_codecarbon_table}
    note("measured: fill", study.fill_table_from_config, reads=reads)
    note("measured: execute", study.execute, measured, reads=reads)
    note("measured: files", lambda: [path.name for path in Path().iterdir() if path.name == ".codecarbon.config"])
    note("measured: delete_table", study.delete_table)


if __name__ == "__main__":
    work()
    work_on_another_table(sys.argv[2])
    work_with_emissions()
    Path("diary.json").write_text(json.dumps(diary, indent=1))
