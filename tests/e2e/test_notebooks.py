"""The example notebooks, and `execute`, in a real Jupyter kernel: inside its running event loop."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager

from tests.helpers import wait_until

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "examples" / "notebooks"
STATUSES = 'experimenter.get_table()["status"].value_counts().to_dict()'


class Kernel:
    """A kernel in a folder of its own, and what its cells show."""

    def __init__(self, manager: KernelManager, client: Any) -> None:
        self._manager = manager
        self._client = client

    def run(self, code: str) -> str:
        """Run a cell: what it prints, and what its last line gives.

        Raises:
            AssertionError: the cell raised something.
        """
        shown: list[str] = []
        reply = self._client.execute_interactive(code, timeout=90, output_hook=lambda message: _note(shown, message))
        content = reply["content"]
        assert content["status"] == "ok", (content, shown)
        return "".join(shown)

    def start(self, code: str) -> Callable[[], str]:
        """Begin a cell; call what is returned to wait for its end and have the name of what it raised."""
        number = self._client.execute(code, stop_on_error=False)

        def wait() -> str:
            while True:
                reply = self._client.get_shell_msg(timeout=120)
                if reply["parent_header"].get("msg_id") == number:
                    return str(reply["content"].get("ename", "nothing"))

        return wait

    def interrupt(self) -> None:
        self._manager.interrupt_kernel()


def _note(shown: list[str], message: dict[str, Any]) -> None:
    content = message["content"]
    if message["msg_type"] == "stream" and content["name"] == "stdout":
        shown.append(content["text"])
    elif message["msg_type"] == "execute_result":
        shown.append(content["data"]["text/plain"] + "\n")


@pytest.fixture
def open_kernel(tmp_path: Path) -> Callable[[], Any]:
    """Starts a kernel that knows nothing of this user's Jupyter."""

    @contextmanager
    def open_() -> Iterator[Kernel]:
        own = {
            name: str(tmp_path / "home") for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")
        }
        folder = tmp_path / "notebook"
        folder.mkdir(exist_ok=True)
        environment = {**os.environ, **own, "JUPYTER_RUNTIME_DIR": str(tmp_path / "home"), "COLUMNS": "200"}
        sockets = Path(tempfile.mkdtemp(prefix="pyexpd-"))  # a short path: sockets have no long ones
        manager = KernelManager(transport="ipc", ip=str(sockets / "k"))
        manager.start_kernel(cwd=str(folder), env=environment)
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=120)
        try:
            yield Kernel(manager, client)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            shutil.rmtree(sockets)

    return open_


@pytest.mark.parametrize(
    ("name", "shown", "statuses"),
    [
        ("general_usage", ["10000 points, seed 4: 3.1", "RuntimeError: this one was never lucky"], {"done": 10}),
        ("conditional_grid", ["rbf    0.1   -       0.9"], {"done": 16}),
        ("logtables", ["it runs away after"], {"done": 3}),
        ("pause_and_continue", ["paused", "100"], {"created": 2, "done": 2}),
    ],
)
def test_the_example_runs(
    open_kernel: Callable[[], Any], name: str, shown: list[str], statuses: dict[str, int]
) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)
    with open_kernel() as kernel:
        text = "".join(kernel.run(cell.source) for cell in cells)
        for piece in shown:
            assert piece in text
        assert eval(kernel.run(STATUSES)) == statuses


def test_every_notebook_is_run() -> None:
    tested = {"general_usage", "conditional_grid", "logtables", "pause_and_continue"}
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == tested


@pytest.mark.parametrize(
    "cell",
    ["experimenter.execute(forever)", "import asyncio; await asyncio.sleep(0); experimenter.execute(forever)"],
    ids=["plain", "awaiting"],
)
def test_an_interrupted_cell_hands_back_and_the_kernel_goes_on(
    open_kernel: Callable[[], Any], tmp_path: Path, cell: str
) -> None:
    folder = tmp_path / "notebook"
    with open_kernel() as kernel:
        source = nbformat.read(NOTEBOOKS / "general_usage.ipynb", as_version=4)
        config, opening = (
            next(cell for cell in source.cells if key in cell.source) for key in ("%%writefile", "fill_")
        )
        kernel.run(config.source)
        kernel.run(opening.source)
        kernel.run(
            "def forever(keyfields):\n    import time\n    open(str(keyfields), 'w').close()\n    time.sleep(600)"
        )
        wait = kernel.start(cell)
        wait_until(lambda: len(list(folder.glob("{*"))) == 2, timeout=120, what="two experiments")
        kernel.interrupt()
        assert wait() in ("KeyboardInterrupt", "CancelledError")
        assert eval(kernel.run(STATUSES)) == {"created": 10}
        kernel.run("experimenter.execute(lambda keyfields: {'estimate': 3})")
        assert eval(kernel.run(STATUSES)) == {"done": 10}
