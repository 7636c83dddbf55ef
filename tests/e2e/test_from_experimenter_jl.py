"""docs/from-experimenter-jl.md: every name that Experimenter.jl exports is there, and everything in it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.databases import Database
from tests.e2e.project import PYEXPD

PAGE = (Path(__file__).parents[2] / "docs" / "from-experimenter-jl.md").read_text()

EXPORTED = """
    ExperimentDatabase open_db export_db restore_from_db merge_databases! Experiment get_experiment
    get_experiments get_experiment_by_name get_progress Trial get_trial get_trials get_trials_by_name
    get_trials_ids_by_name get_results_from_trial_global_database complete_trial!
    complete_trial_in_global_database mark_trial_as_incomplete! execute_trial execute_trial_and_save_to_db_async
    get_global_store @execute SerialMode MultithreadedMode DistributedMode HeterogeneousMode MPIMode Snapshot
    get_snapshots latest_snapshot save_snapshot! get_latest_snapshot_from_global_database
    save_snapshot_in_global_database LinearVariable LogLinearVariable RepeatVariable IterableVariable
    MatchIterableVariable get_ratio_completed_trials_by_name Store delete_experiment! Cluster.init
    create_slurm_template
""".split()  # noqa: SIM905 one per word
"""What version 0.2.1 exports, and what of the rest its own pages name."""


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("name", EXPORTED)
def test_every_exported_name_has_a_row_or_an_example(name: str) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    left = [row.split("|")[1] for row in rows]
    assert any(re.search(rf"(?<![\w!]){re.escape(name)}(?![\w!])", cell) for cell in left), name


def test_the_page_runs_from_top_to_bottom(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    database.write_config(folder)
    ours = yaml.safe_load((folder / "pyexpd.yml").read_text())["PY_EXPERIMENTER"]["Database"]
    (configuration,) = code("yaml")
    shown = yaml.safe_load(configuration)
    shown["PY_EXPERIMENTER"]["Database"] |= {"provider": ours["provider"], "database": ours["database"]}
    (folder / "pyexpd.yml").write_text(yaml.safe_dump(shown, sort_keys=False))
    (walks,) = code("py")
    (folder / "walks.py").write_text(walks)

    for command in ("fill", "run --until-empty"):
        done = subprocess.run([PYEXPD, *command.split()], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert database.query("SELECT status, COUNT(*) FROM walks GROUP BY status") == [("done", 12)]

    quiet = "import pyexp_daemon.experimenter as module\n"
    begin = 'PyExperimenter("pyexpd.yml"'
    script = "\n".join(code("python")).replace(begin, f"{begin}, use_codecarbon=False")
    # By value: what belongs to the script itself travels to the children.
    (folder / "page.py").write_text(quiet + script)
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert database.query("SELECT status, COUNT(*) FROM walks GROUP BY status") == [("done", 12)]
