"""`pyexpd clean`: what nobody needs any more, on disk and in the tables. Results and their receipts stay."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyexp_daemon import exceptions
from pyexp_daemon.cli.confirm import confirm
from pyexp_daemon.cli.context import Workplace, command, count_of, json_option, print_json, warn
from pyexp_daemon.cli.names import names_folder
from pyexp_daemon.cli.sizes import show_size
from pyexp_daemon.config.units import parse_duration
from pyexp_daemon.store import cleaning

if TYPE_CHECKING:
    from pyexp_daemon.store import BlockingStore
    from pyexp_daemon.store.tables import Table

_ATTEMPT_LOG = re.compile(r"(\d+)-(\d+)\.log")


@dataclass(frozen=True, slots=True)
class _Old:
    """Files or folders that may go, with their sizes."""

    sizes: Mapping[Path, int]

    @property
    def paths(self) -> Sequence[Path]:
        return list(self.sizes)

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def without(self, paths: Iterable[Path]) -> _Old:
        left = set(paths)
        return _Old({path: size for path, size in self.sizes.items() if path not in left})


@dataclass(slots=True)
class _Skipped:
    """What could not be looked at, or not be deleted: it is left alone, and the rest goes on."""

    errors: dict[Path, OSError] = field(default_factory=dict)

    def add(self, path: Path, error: OSError) -> None:
        self.errors.setdefault(path, error)

    def say(self) -> None:
        if self.errors:
            path, error = next(iter(self.errors.items()))
            what = f"{error.filename or path}: {error.strerror or error}"
            more = f", and {len(self.errors) - 1} more" if len(self.errors) > 1 else ""
            warn(f"warning: {len(self.errors)} skipped, for they cannot be read or deleted: {what}{more}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What would be deleted."""

    older_s: float
    logs: _Old
    work: _Old
    locks: Sequence[Path]
    rows: dict[str, int]

    @property
    def is_empty(self) -> bool:
        return not (self.logs.paths or self.work.paths or self.locks or any(self.rows.values()))

    @property
    def words(self) -> str:
        parts = [
            f"{count_of(len(self.logs.paths), 'log')} ({show_size(self.logs.bytes)})",
            *(
                [f"{count_of(len(self.work.paths), 'work folder')} ({show_size(self.work.bytes)})"]
                if self.work.paths
                else []
            ),
            f"{count_of(self.rows['attempts'], 'attempt')} of done experiments",
            f"{count_of(self.rows['daemons'], 'daemon')} that ended",
            count_of(self.rows["commands"], "answered command"),
            *([count_of(self.rows["snapshots"], "snapshot")] if self.rows["snapshots"] else []),
            *(
                [f"{count_of(self.rows['snapshot_parts'], 'part')} of unfinished snapshots"]
                if self.rows["snapshot_parts"]
                else []
            ),
            count_of(len(self.locks), "lock file"),
        ]
        return ", ".join(parts)

    def without(self, paths: Iterable[Path]) -> _Plan:
        """The same without files that are still there."""
        left = set(paths)
        return dataclasses.replace(
            self,
            logs=self.logs.without(left),
            work=self.work.without(left),
            locks=[path for path in self.locks if path not in left],
        )

    def document(self, *, dry_run: bool, skipped: int) -> dict[str, Any]:
        return {
            "dry_run": dry_run,
            "older_seconds": self.older_s,
            "logs": {"files": len(self.logs.paths), "bytes": self.logs.bytes},
            "work": {"folders": len(self.work.paths), "bytes": self.work.bytes},
            **self.rows,
            "locks": len(self.locks),
            "skipped": skipped,
        }


def _read_age(context: click.Context, parameter: click.Parameter, value: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise exceptions.UsageError(f"--older: {error}", hint="--older 30d") from None


@command("clean")
@click.option(
    "--older", "older_s", required=True, callback=_read_age, metavar="AGE", help="Than this, such as 30d or 12h."
)
@click.option("--work", is_flag=True, help="Also the work folders of done and cancelled experiments.")
@click.option("--snapshots", is_flag=True, help="Also the snapshots of done and cancelled experiments.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@json_option
def clean_command(
    workplace: Workplace, *, older_s: float, work: bool, snapshots: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Delete old logs, attempts of done experiments, daemons that ended, snapshots of experiments that are gone.

    Also parts of snapshots that were never finished, and answered commands.
    Results stay, with the attempt that each came from. Logs and lock files are those that this node sees;
    what it may not read or delete is skipped.
    """
    skipped = _Skipped()
    with workplace.experiments() as store:
        plan = _look(workplace, store, skipped, older_s=older_s, with_work=work, with_snapshots=snapshots)
        confirm(workplace, f"deletes {plan.words}", yes=dry_run or yes or plan.is_empty)
        if not dry_run:
            # The rows last: what stands in them cannot be seen any more in a folder that is left over.
            _delete_files(plan, skipped)
            _delete_rows(store, workplace.table, older_s, with_snapshots=snapshots)
            plan = plan.without(skipped.errors)
    skipped.say()
    if as_json:
        print_json(plan.document(dry_run=dry_run, skipped=len(skipped.errors)))
    else:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {plan.words}")


def _look(
    workplace: Workplace,
    store: BlockingStore,
    skipped: _Skipped,
    *,
    older_s: float,
    with_work: bool,
    with_snapshots: bool,
) -> _Plan:
    table, logs = workplace.table, workplace.config.logs
    before = time.time() - older_s
    running = store.read(cleaning.running(table))
    over = {str(number) for number in store.read(cleaning.over(table))} if with_work else set()
    return _Plan(
        older_s=older_s,
        logs=_old_logs(_entries(logs, skipped), running, before),
        work=_old_work(_entries(logs / "work", skipped) if with_work else (), over, before, skipped),
        locks=list(_old_locks(_entries(names_folder(workplace), skipped), before)),
        rows=store.read(cleaning.count(table, older_s=older_s, snapshots_of_over=with_snapshots)),
    )


def _old_logs(paths: Iterable[Path], running: set[tuple[int, int]], before: float) -> _Old:
    old = {}
    for path in paths:
        found = _ATTEMPT_LOG.fullmatch(path.name)
        if found and (int(found[1]), int(found[2])) not in running and _changed(path) < before:
            old[path] = _size(path)
    return _Old(old)


def _old_work(paths: Iterable[Path], over: set[str], before: float, skipped: _Skipped) -> _Old:
    old = {}
    for path in paths:
        if path.name not in over:
            continue
        try:
            files = [path, *_below(path)]
        except OSError as error:
            skipped.add(path, error)
            continue
        if max(map(_changed, files)) < before:
            old[path] = sum(map(_size, files))
    return _Old(old)


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder.

    Raises:
        OSError: not all of it can be seen.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in (*folders, *files))


def _old_locks(paths: Iterable[Path], before: float) -> Iterator[Path]:
    """Lock files that no daemon holds."""
    for path in paths:
        if path.suffix == ".lock" and _changed(path) < before and _is_unheld(path):
            yield path


def _is_unheld(path: Path, *, remove: bool = False) -> bool:
    """Whether nobody holds a lock file; removed while we do, so that nobody else does in between."""
    with suppress(OSError), path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove:
            path.unlink()
        return True
    return False


def _entries(folder: Path, skipped: _Skipped) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        skipped.add(folder, error)
        return ()


def _changed(path: Path) -> float:
    """When; never for what has gone in the meantime."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return float("inf")


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _delete_rows(store: BlockingStore, table: Table, older_s: float, *, with_snapshots: bool) -> None:
    after: int | None = 0
    while after is not None:
        _, after = store.run(cleaning.delete_attempts(table, older_s=older_s, after=after))
    while store.run(cleaning.delete_commands(table, older_s=older_s)):
        pass
    while store.run(cleaning.delete_daemons(table, older_s=older_s)):
        pass
    while store.run(cleaning.delete_snapshots(table, older_s=older_s, of_over=with_snapshots)):
        pass
    while store.run(cleaning.delete_parts(table, older_s=older_s)):
        pass


def _delete_files(plan: _Plan, skipped: _Skipped) -> None:
    for path in plan.logs.paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            skipped.add(path, error)
    for path in plan.work.paths:
        _delete_folder(path, skipped)
    for path in plan.locks:
        _is_unheld(path, remove=True)


def _delete_folder(path: Path, skipped: _Skipped) -> None:
    """Delete as much of a folder as can be."""

    def skip(function: object, name: str, error: tuple[Any, BaseException, Any]) -> None:
        if isinstance(error[1], OSError) and not isinstance(error[1], FileNotFoundError):
            skipped.add(path, error[1])

    shutil.rmtree(path, onerror=skip)
