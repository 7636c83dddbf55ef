"""docs/migrating.md and docs/howto/python.md name what there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from pyexp_daemon import exceptions
from pyexp_daemon.experimenter import PyExperimenter

DOCS = Path(__file__).parents[2] / "docs"
MIGRATING = (DOCS / "migrating.md").read_text()
METHODS = {name for name, _ in inspect.getmembers(PyExperimenter, inspect.isfunction) if not name.startswith("_")}


def test_every_method_is_named() -> None:
    assert {name for name in METHODS if f"`{name}`" not in MIGRATING} == set()


def test_every_exception_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(\w+(?:Error|Exception|Lost))`", MIGRATING)) - {"ValueError"}
    assert {name for name in named if not hasattr(exceptions, name)} == set()
    assert "LeaseLost" in named


def test_the_signatures_are_those_of_1_4_2() -> None:
    """What is ours besides has to be named in the call."""
    names = {
        name: [
            p.name
            for p in inspect.signature(getattr(PyExperimenter, name)).parameters.values()
            if p.kind is not p.KEYWORD_ONLY
        ]
        for name in METHODS
    }
    assert names["execute"] == ["self", "experiment_function", "random_order", "n_jobs", "max_experiments"]
    assert names["add_experiment_and_execute"] == ["self", "keyfield_values", "experiment_function"]
    assert names["unpause_experiment"] == ["self", "experiment_id", "experiment_function"]
    assert names["attach"] == ["self", "experiment_function", "experiment_id"]
    assert names["reset_experiments"] == ["self", "states"]
    assert names["create_table"] == ["self", "create_database"]
    assert names["get_logtable"] == ["self", "logtable_name"]
    made = inspect.signature(PyExperimenter.__init__).parameters
    assert {name: parameter.default for name, parameter in made.items() if name != "self"} == {
        "experiment_configuration_file_path": "config/experiment_configuration.yml",
        "database_credential_file_path": "config/database_credentials.yml",
        "use_ssh_tunnel": None,
        "table_name": None,
        "database_name": None,
        "use_codecarbon": True,
        "name": "PyExperimenter",
        "logger_name": "py-experimenter",
        "log_level": 20,
        "log_file": "./logs/py-experimenter.log",
    }  # fmt: skip


def test_links_lead_somewhere() -> None:
    for page in (DOCS / "migrating.md", DOCS / "howto" / "python.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
