"""Virtual environments with other people's software, made on first use and kept below `.cache/`."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

from tests.servers import NotToBeHad


def prepared(home: Path, *installs: tuple[str, ...], imports: str) -> Path:
    """The interpreter of the environment in `home`; it is made anew when it was made from anything else than this.

    Args:
        installs: the arguments of one `pip install` each.
        imports: the module for which all this is done; an environment that cannot import it is none.

    Raises:
        NotToBeHad: one of the steps failed.
    """
    python, done, recipe = home / "bin" / "python", home / "done", "\n".join(map(" ".join, installs))
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != recipe:
            _run(sys.executable, "-m", "venv", "--clear", str(home))
            for install in installs:
                _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *install)
            _run(str(python), "-W", "ignore", "-c", f"import {imports}")
            done.write_text(recipe)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=900
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise NotToBeHad(f"{' '.join(command[1:4])} failed: {last[0]}")
