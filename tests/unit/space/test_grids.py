"""Several grids as one, and keyfields that are drawn."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyexp_daemon import exceptions
from pyexp_daemon.config.load import load_config
from pyexp_daemon.config.pyexperimenter import DatabaseCfg
from pyexp_daemon.space.grid import Grid, Grids, grid_of

HEAD = """
PY_EXPERIMENTER:
  Database:
    provider: sqlite
    database: results
    table:
      name: runs
      keyfields:
"""
MODELS = """
        model: {type: VARCHAR(20), values: [svm, forest]}
        c: {type: DOUBLE, when: {model: svm}}
        trees: {type: INT, when: {model: [forest, extra]}}
        seed: {type: INT, values: {start: 0, stop: 3}}
"""


def grid(tmp_path: Path, text: str) -> Grid | Grids:
    file = tmp_path / "pyexpd.yml"
    file.write_text(HEAD + text)
    return grid_of(load_config(file))


def rows(of: Grid | Grids) -> list[tuple[Any, ...]]:
    return [values for values, _ in of]


def test_a_union_has_the_experiments_of_each_grid_and_what_is_equal_once(tmp_path: Path) -> None:
    union = grid(
        tmp_path,
        MODELS
        + """
      grids:
        - {model: svm, c: {log: [0.1, 10, 3]}}
        - {model: [forest, extra], trees: [10, 100], seed: [0, 7]}
        - {model: svm, c: [1, 2], seed: 0}
      exclude:
        - {trees: 100, seed: 7}
""",
    )
    assert isinstance(union, Grids)
    wanted: list[tuple[Any, ...]] = [("svm", c, None, seed) for seed in range(3) for c in (0.1, 1.0, 10.0)]
    more = [(model, None, trees, seed) for model in ("forest", "extra") for trees in (10, 100) for seed in (0, 7)]
    wanted += [row for row in more if row[2:] != (100, 7)]
    assert sorted(rows(union), key=repr) == sorted([*wanted, ("svm", 2.0, None, 0)], key=repr)
    assert len(union) == len({mark for _, mark in union}) == len(rows(union)) == 16
    assert [tuple(each.values()) for each in union.experiments()] == rows(union)


def test_a_mistake_in_a_grid_says_in_which(tmp_path: Path) -> None:
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match=r"^grids\[1\]: keyfield seed: 1 is listed twice"):
        grid(tmp_path, MODELS + "      grids: [{model: extra}, {seed: [1, 1]}]\n")
    with pytest.raises(exceptions.ConfigError, match=r"grids\[0\].sed: unknown key") as caught:
        grid(tmp_path, MODELS + "      grids: [{sed: [1]}]\n")
    assert caught.value.hint == "did you mean 'seed'?"
    with pytest.raises(exceptions.ConfigError, match=r"grids\[0\].seed.linear: expected a list of 3"):
        grid(tmp_path, MODELS + "      grids: [{seed: {linear: 3}}]\n")


def test_points_are_drawn_for_each_combination_of_the_others(tmp_path: Path) -> None:
    drawn = grid(
        tmp_path,
        """
        lr: {type: DOUBLE, values: {loguniform: [1e-5, 0.1]}}
        model: {type: VARCHAR(20), values: [svm, forest]}
        width: {type: INT, values: {integers: [16, 512]}}
        tag: {type: INT, values: {match: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]}}
        trial: {type: INT, values: {repeat: [0, 2]}}
      sample: {n: 4, method: sobol, seed: 1}
""",
    )
    found = rows(drawn)
    points = [(lr, width) for lr, _, width, _, _ in found[:4]]
    assert len(set(points)) == 4
    assert [(lr, width) for lr, _, width, _, _ in found] == points * 4
    assert [model for _, model, _, _, _ in found] == (["svm"] * 4 + ["forest"] * 4) * 2
    assert [tag for *_, tag, _ in found] == list(range(16))
    assert len(drawn) == len({mark for _, mark in drawn}) == 16
    assert list(drawn) == list(drawn)


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    lr = "        lr: {type: DOUBLE, values: {uniform: [0, 1]}}\n"
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="lr: nothing says how many values are drawn"):
        grid(tmp_path, lr)
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="of 50 points 11 stay different"):
        grid(tmp_path, "        lr: {type: 'NUMERIC(3,1)', values: {uniform: [0, 1]}}\n      sample: {n: 50}\n")
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="lr: what is drawn has no condition of its own"):
        grid(
            tmp_path,
            """
        lr: {type: DOUBLE, values: {uniform: [0, 1]}, when: {model: svm}}
        model: {type: VARCHAR(9), values: [svm]}
      sample: {n: 5}
""",
        )
    with pytest.raises(exceptions.ConfigError, match=r"lr\.values\.uniform: high is below low"):
        grid(tmp_path, lr.replace("[0, 1]", "[1, 0]"))
    with pytest.raises(exceptions.InvalidValuesInConfiguration, match="nothing is drawn"):
        grid(tmp_path, "        seed: {type: INT, values: [1]}\n      sample: {n: 5}\n")


def test_the_section_of_pyexperimenter_keeps_them(tmp_path: Path) -> None:
    file = tmp_path / "pyexpd.yml"
    more = "        b: {type: DOUBLE}\n"
    file.write_text(
        HEAD + MODELS + more + "      grids: [{model: [svm, extra], b: {uniform: [0, 1]}}]\n      sample: {n: 2}\n"
    )
    section = DatabaseCfg.extract_config(yaml.safe_load(file.read_text()), logging.getLogger())
    assert len(section.get_experiment_configuration()) == 12
    assert section.valid()
