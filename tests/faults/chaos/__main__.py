"""`python -m tests.faults.chaos`: see `--help`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import servers
from tests.conftest import INHERITED, INHERITED_ALSO
from tests.databases import Database
from tests.faults.chaos.people import BUSY
from tests.faults.chaos.plan import DatabaseName, make_plan
from tests.faults.chaos.report import Report, figures, make_report, too_little
from tests.faults.chaos.run import Chaos, make_project


def main() -> int:
    """Run chaos; 0 when everything held and enough happened, else 1."""
    wish = _arguments().parse_args()
    for name in list(os.environ):
        if name.startswith(INHERITED) or name in INHERITED_ALSO:
            del os.environ[name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in order: no daemon is left behind
    folder = Path(tempfile.mkdtemp(prefix=f"pyexpd-chaos-{wish.database}-"))
    failed = True
    try:
        report = _run(folder, wish)
        print(report.line if wish.brief else report.table, flush=True)
        if wish.json:
            wish.json.write_text(report.json)
        failed = report.failed
    finally:
        if failed or wish.keep:
            print(f"everything is kept in {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    return int(failed)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description="Random faults on a fleet.")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long there are faults, at least; %(default)s")
    parser.add_argument("--daemons", type=int, default=5, help="2 or more at once, of 4 slots each; %(default)s")
    parser.add_argument("--seed", type=int, default=4, help="the same seed gives the same actions; %(default)s")
    parser.add_argument("--database", choices=["sqlite", "mariadb"], default="sqlite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--keep", action="store_true", help="keep everything, also when all is well")
    parser.add_argument("--brief", action="store_true", help="one line instead of a table, if all is well")
    return parser


def _run(folder: Path, wish: argparse.Namespace) -> Report:
    plan, more = (
        make_plan(wish.seed, minutes=minutes, daemons=wish.daemons, database=wish.database)
        for minutes in (wish.minutes, 2 * wish.minutes)
    )
    with _database(wish.database, folder) as database:
        project = make_project(database, folder / "project")

        def is_enough(chaos: Chaos) -> bool:
            try:
                return not too_little(figures(project, chaos), wish.minutes)
            except BUSY:
                return False

        chaos = Chaos(project, plan, daemons=wish.daemons, more=more[len(plan) :], is_enough=is_enough)
        found = chaos.run()
        return make_report(project, chaos, found, minutes=wish.minutes, seed=wish.seed)


@contextmanager
def _database(kind: DatabaseName, folder: Path) -> Iterator[Database]:
    """An empty database that nobody else uses; a copy of the server's files stays in the folder."""
    if kind == "sqlite":
        yield Database(provider="sqlite", flavour="sqlite", name=str(folder / "results"))
        return
    with servers.mariadb().server() as server:
        try:
            yield Database(provider="mysql", flavour="mariadb", name=server.create_database(), server=server)
        finally:
            server.stop()
            shutil.copytree(server.folder / "data", folder / "mariadb")


if __name__ == "__main__":
    sys.exit(main())
