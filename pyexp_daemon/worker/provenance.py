"""Which code an attempt ran: the commit of the function's repository, else a hash of its package."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

import anyio
import anyio.to_thread

from pyexp_daemon.worker import limits

_GIT_S = 10


def code_version(source_file: str | Path) -> str:
    """What identifies the code in and around this file now. Blocks: asks git, reads files.

    Returns:
        `<commit>`, `<commit>+dirty.<8 hex>` with uncommitted changes, or `sha256:<12 hex>` of the package's *.py
        files when git knows nothing of the file.
    """
    path = Path(source_file).resolve()
    return _commit(path) or f"sha256:{_package_hash(path)[:12]}"


class CodeVersions:
    """`code_version` for children that start: asked off the event loop, and once for children that start together."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, str]] = {}
        self._asking = anyio.Lock()

    async def find(self, source_file: str | None, *, since: float) -> str | None:
        """The version of the code at some time after `since` (monotonic); None without a file."""
        if source_file is None:
            return None
        async with self._asking:
            asked, version = self._known.get(source_file, (0.0, ""))
            if not version or asked < since:
                asked = time.monotonic()
                version = await anyio.to_thread.run_sync(code_version, source_file)
                self._known[source_file] = (asked, version)
            return version


def _commit(path: Path) -> str | None:
    if _git(path.parent, "ls-files", "--error-unmatch", "--", path.name) is None:
        return None
    commit = _git(path.parent, "rev-parse", "HEAD")
    changes = _git(path.parent, "diff", "HEAD", "--no-ext-diff", "--no-color", "--binary")
    if commit is None or changes is None:
        return None
    name = commit.decode().strip()
    return f"{name}+dirty.{hashlib.sha256(changes).hexdigest()[:8]}" if changes else name


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None when it is not there, fails, or takes too long."""
    environment = {**limits.without_secrets(os.environ), "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, timeout=_GIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout


def _package_hash(path: Path) -> str:
    """A hash over names and contents: of the outermost package around the file, else of the files beside it."""
    folder = path.parent
    in_package = (folder / "__init__.py").exists()
    while in_package and (folder.parent / "__init__.py").exists():
        folder = folder.parent
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py") if in_package else folder.glob("*.py")):
        try:
            content = file.read_bytes()
        except OSError:
            continue
        digest.update(f"{file.relative_to(folder)}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
        digest.update(content)
    return digest.hexdigest()
