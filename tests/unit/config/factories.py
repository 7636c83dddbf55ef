"""Configuration files for tests."""

from __future__ import annotations

import textwrap
from pathlib import Path

MINIMAL = """\
PY_EXPERIMENTER:
  n_jobs: 4
  Database:
    provider: sqlite
    database: results
    table:
      name: runs
      keyfields:
        lr: {type: DOUBLE, values: [0.1, 0.2]}
        seed: {type: INT, values: {start: 0, stop: 3}}
      resultfields: {accuracy: DOUBLE}
    logtables:
      epochs: {loss: DOUBLE}
"""


def write_config(folder: Path, *, extra: str = "", replace: tuple[str, str] = ("", ""), name: str = "exp.yml") -> Path:
    """The minimal configuration, with a text in it replaced and more sections behind it."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    old, new = replace
    assert old in MINIMAL
    text = MINIMAL.replace(old, new, 1) if old else MINIMAL
    file.write_text(text + textwrap.indent(textwrap.dedent(extra), "  "))
    return file
