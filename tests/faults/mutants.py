"""Small breakages of the protocol, each of which a named test must catch.

    python -m tests.faults.mutants [--only NAME]

Each is made in a copy of the tree, whose package is the one that the tests and the `pyexpd` they start import. The
named tests pass there before; with the mutant each of them must fail, and not because something cannot be imported.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from pyexp_daemon import __version__

ROOT = Path(__file__).parent.parent.parent
LONGEST_S = 300

STORE = "tests/integration/store"
DAEMON = "tests/integration/daemon"
RESULTS_ALONE = f"{STORE}/test_leases.py::test_results_alone_are_one_statement_that_needs_the_claim[{{}}]"
MODEL = "tests/faults/test_model.py::test_whatever_happens_the_tables_are_those_of_the_model[sqlite]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A text in a file of the package, what takes its place, and the tests that must fail then."""

    name: str
    file: str
    text: str
    instead: str
    caught_by: Sequence[str]
    slow: bool = False
    """Whether its tests take longer than a few seconds."""

    @property
    def path(self) -> Path:
        return Path("pyexp_daemon", self.file)

    def of(self, sound: str) -> str:
        """
        Raises:
            ValueError: the text is not there exactly once: the code has changed, so must the mutant.
            SyntaxError: what takes its place is no code.
        """
        if sound.count(self.text) != 1:
            raise ValueError(f"{self.name}: its text stands {sound.count(self.text)} times in {self.file}")
        broken = sound.replace(self.text, self.instead)
        compile(broken, self.file, "exec")
        return broken


MUTANTS = (
    Mutant(
        name="no token guard",
        file="store/reports.py",
        text="self.token == claim.token and str(self.start_date) == claim.start_date",
        instead="True",
        caught_by=[f"{STORE}/test_leases.py::test_a_late_end_is_superseded_and_keeps_its_result_beside[sqlite]"],
    ),
    Mutant(
        name="no start date guard",
        file="store/reports.py",
        text="self.token == claim.token and str(self.start_date) == claim.start_date",
        instead="self.token == claim.token",
        caught_by=[
            f"{STORE}/test_leases.py::test_a_claim_by_pyexperimenter_after_a_hand_edit_fences_the_old_owner[sqlite]"
        ],
    ),
    Mutant(
        name="superseded overwrites the row",
        file="store/reports.py",
        text="*_row_updates(table, accepted, ours, policy)",
        instead="*_row_updates(table, list(reports), rows, policy)",
        caught_by=[f"{STORE}/test_leases.py::test_a_late_end_is_superseded_and_keeps_its_result_beside[sqlite]"],
    ),
    Mutant(
        name="no token guard for results alone",
        file="store/reports.py",
        text='"pyexpd_token": claim.token, "start_date": claim.start_date}',
        instead='"start_date": claim.start_date}',
        caught_by=[RESULTS_ALONE.format("sqlite"), RESULTS_ALONE.format("mariadb")],
    ),
    Mutant(
        name="a token of another experiment of the group",
        file="store/dialect.py",
        text='        columns = ", ".join(map(quote, ("ID", *guard)))',
        instead='        guards = [row[1:] for row in guards]\n        columns = ", ".join(map(quote, guard))',
        caught_by=[RESULTS_ALONE.format("mariadb")],
    ),
    Mutant(
        name="results that are not stored count as stored",
        file="store/reports.py",
        text="    return matched == len(reports)",
        instead="    return matched <= len(reports)",
        caught_by=[RESULTS_ALONE.format("sqlite")],
    ),
    Mutant(
        name="a snapshot of somebody who lost the experiment",
        file="store/reports.py",
        text="*(yield from snapshots.writes(table, accepted)),",
        instead="*(yield from snapshots.writes(table, list(reports))),",
        caught_by=[f"{STORE}/test_snapshots.py::test_who_lost_the_experiment_saves_nothing[sqlite]"],
    ),
    Mutant(
        name="a snapshot without all its parts",
        file="store/snapshots.py",
        text="    if missing:",
        instead="    if missing and head.parts == 0:",
        caught_by=[
            f"{STORE}/test_snapshots.py::test_a_head_without_all_its_parts_is_refused_and_changes_nothing[sqlite]"
        ],
    ),
    Mutant(
        name="a snapshot forgives nothing",
        file="store/snapshots.py",
        text="if outcome not in _FORGIVEN",
        instead="if outcome",
        caught_by=[f"{STORE}/test_snapshots.py::test_a_new_snapshot_forgives_crashes_and_losses_and_no_errors[sqlite]"],
    ),
    Mutant(
        name="no lost receipt needed",
        file="store/reports.py",
        text="self.attempt == claim.attempt and self._was_lost(claim, receipts)",
        instead="self.attempt == claim.attempt",
        caught_by=[
            f"{STORE}/test_leases.py::test_a_superseded_end_takes_its_token_out_of_a_row_edited_by_hand[sqlite]"
        ],
    ),
    Mutant(
        name="receipts are overwritten",
        file="store/dialect.py",
        text="DO UPDATE SET {replaced} WHERE {table}.outcome = 'lost'",
        instead="DO UPDATE SET {replaced}",
        caught_by=[f"{STORE}/test_daemons.py::test_a_receipt_is_not_overwritten_by_a_sweep[sqlite]"],
    ),
    Mutant(
        name="what is taken back stays charged",
        file="store/leases.py",
        text="uncharged(tries) if requeued else tries",
        instead="tries",
        caught_by=[MODEL],
        slow=True,
    ),
    Mutant(
        name="known ends are superseded",
        file="store/reports.py",
        text="    if receipt in (None, Outcome.LOST, Outcome.SUPERSEDED):\n        return Verdict.SUPERSEDED\n"
        "    return Verdict.KNOWN",
        instead="    return Verdict.SUPERSEDED",
        caught_by=[f"{STORE}/test_leases.py::test_a_repeated_end_is_known_and_changes_nothing[sqlite]"],
    ),
    Mutant(
        name="the sweep locks by the index of owners",
        file="store/daemons.py",
        text="f\" FROM {table.main} {table.dialect.primary} WHERE ID IN ({marks(ids)}) AND status = 'running'\"",
        instead="f\" FROM {table.main} {table.use(OWNER)} WHERE ID IN ({marks(ids)}) AND status = 'running'\"",
        caught_by=[f"{STORE}/test_lock_order.py::test_a_sweep_that_meets_an_end_waits_for_it[mariadb]"],
    ),
    Mutant(
        name="the living are swept",
        file="store/daemons.py",
        text='daemon.rows[0][0] in ("live", "draining")',
        instead="daemon.rows[0][0] is None",
        caught_by=[f"{STORE}/test_daemons.py::test_the_living_are_never_swept[sqlite]"],
    ),
    Mutant(
        name="a verdict without compare-and-set",
        file="store/daemons.py",
        text="WHERE id = ? AND incarnation = ? AND beat = ? AND state IN",
        instead="WHERE id = ? AND incarnation = ? AND beat >= ? AND state IN",
        caught_by=[f"{STORE}/test_daemons.py::test_a_verdict_fails_when_the_daemon_has_beaten_since[sqlite]"],
    ),
    Mutant(
        name="no amnesty",
        file="daemon/rescue.py",
        text="since = max(self._watched[row.incarnation].since, self._blind_until(), self._link.last_trouble)",
        instead="since = self._watched[row.incarnation].since",
        caught_by=[f"{DAEMON}/test_services.py::test_a_rescuer_that_was_blind_itself_finds_nobody_dead[sqlite]"],
    ),
    Mutant(
        name="no promotion",
        file="daemon/promotion.py",
        text="while await self._link.read(daemons.is_due(self._table)):",
        instead="while not await self._link.read(daemons.is_due(self._table)) and False:",
        caught_by=[f"{DAEMON}/test_services.py::test_what_has_waited_for_long_enough_may_run_again[sqlite]"],
        slow=True,
    ),
    Mutant(
        name="no read-back of a claim",
        file="daemon/claimer.py",
        text="claims = await self._read_back(me, token, started, error)",
        instead="claims = []",
        caught_by=[f"{DAEMON}/test_membership.py::test_a_claim_whose_reply_was_lost_is_read_back[sqlite]"],
    ),
    Mutant(
        name="an IN over statuses in the claim",
        file="store/leases.py",
        text="{table.use(CLAIM)} WHERE status = 'created' AND pyexpd_queue = ?{start_after}",
        instead="{table.use(CLAIM)} WHERE status IN ('created', 'waiting') AND pyexpd_queue = ?{start_after}",
        caught_by=[
            f"{STORE}/test_schema.py::test_the_claim_reads_the_claim_index_in_order_without_sorting[{database}]"
            for database in ("sqlite", "mariadb")
        ],
    ),
    Mutant(
        name="a mixed order in the claim",
        file="store/leases.py",
        text='f" ORDER BY pyexpd_order, ID LIMIT ? {table.dialect.skip_locked}"',
        instead='f" ORDER BY pyexpd_order, ID DESC LIMIT ? {table.dialect.skip_locked}"',
        caught_by=[
            f"{STORE}/test_schema.py::test_the_claim_reads_the_claim_index_in_order_without_sorting[{database}]"
            for database in ("sqlite", "mariadb")
        ],
    ),
    Mutant(
        name="the head of the claim index is never looked at again",
        file="daemon/low_water.py",
        text="now < self._looked + max(recheck_s, RARELY * self._took_s)",
        instead="now >= self._looked",
        caught_by=[
            f"{DAEMON}/test_low_water.py"
            f"::test_a_row_of_a_smaller_order_is_found_when_the_head_is_looked_at_again[{database}]"
            for database in ("mariadb", "mysql9")
        ],
    ),
    Mutant(
        name="what lies before the mark is not claimed",
        file="store/leases.py",
        text="if not picked.rows and start_after:",
        instead="if not picked.rows and at_random:",
        caught_by=[
            f"{DAEMON}/test_low_water.py::test_nothing_that_waits_is_missed_when_the_mark_is_behind_it[mariadb]"
        ],
    ),
    Mutant(
        name="a crowd goes on to a larger order",
        file="store/leases.py",
        text="start_after, bound = WITHIN_ORDER, mark",
        instead="start_after, bound = FROM_MARK, (mark[0], *mark)",
        caught_by=[
            f"{DAEMON}/test_low_water.py::test_a_crowd_does_not_go_on_to_a_larger_order_while_any_is_left[mariadb]"
        ],
    ),
    Mutant(
        name="a unit that fails keeps its turn",
        file="store/mysql_async.py",
        text="Packet([GIVE_BACK_ALL], [None])",
        instead='Packet(["DO 0"], [None])',
        caught_by=[f"{STORE}/test_turns.py::test_whoever_fails_has_no_turn_any_more[mariadb]"],
    ),
    Mutant(
        name="the claim waits for locked rows",
        file="store/dialect.py",
        text='skip_locked = "FOR UPDATE SKIP LOCKED"',
        instead='skip_locked = "FOR UPDATE"',
        caught_by=[f"{STORE}/test_schema.py::test_a_second_session_gets_rows_while_a_claim_is_open[mariadb]"],
        slow=True,
    ),
    Mutant(
        name="an attempt number is used again",
        file="store/leases.py",
        text="SET status = 'running', pyexpd_attempt = pyexpd_attempt + 1,",
        instead="SET status = 'running',",
        caught_by=[f"{STORE}/test_leases.py::test_a_claim_takes_the_smallest_order_first_and_marks_the_rows[sqlite]"],
    ),
    Mutant(
        name="the cancel flag survives a claim",
        file="store/leases.py",
        text="pyexpd_cancel = 0, pyexpd_not_before = NULL",
        instead="pyexpd_not_before = NULL",
        caught_by=[f"{STORE}/test_leases.py::test_nothing_stale_survives_a_hand_edit_and_a_claim[sqlite]"],
    ),
    Mutant(
        name="the dead claim",
        file="store/leases.py",
        text="id = ? AND incarnation = ? AND state = 'live')",
        instead="id = ? AND incarnation = ?)",
        caught_by=[f"{STORE}/test_leases.py::test_a_fenced_daemon_claims_nothing[sqlite]"],
    ),
    Mutant(
        name="a reset keeps the attempt number",
        file="store/edits.py",
        text='pyexpd_not_before = NULL, pyexpd_attempt = {_next_attempt(table)}, {FREED}"\n',
        instead='pyexpd_not_before = NULL, {FREED}"\n',
        caught_by=[f"{STORE}/test_daemons.py::test_a_reset_row_is_not_taken_back[sqlite]"],
    ),
    Mutant(
        name="a reset of what moved on",
        file="store/edits.py",
        text="for row in locked.rows if expected[row[0]] == Seen(*row)",
        instead="for row in locked.rows",
        caught_by=[f"{STORE}/test_edits.py::test_a_repeated_reset_cannot_wipe_a_new_result[sqlite]"],
    ),
    Mutant(
        name="taken back from PyExperimenter",
        file="store/leases.py",
        text="held_token in (old.token, token) and str(start_date) == old.start_date",
        instead="held_token in (old.token, token)",
        caught_by=[
            f"{STORE}/test_daemons.py::test_what_pyexperimenter_claimed_after_a_hand_edit_is_not_taken_back[sqlite]"
        ],
    ),
    Mutant(
        name="taken back from whoever took it",
        file="store/leases.py",
        text="if attempt != old.attempt or not (requeued or kept):",
        instead="if not (requeued or kept):",
        caught_by=[f"{STORE}/test_daemons.py::test_a_reset_row_is_not_taken_back[sqlite]"],
    ),
    Mutant(
        name="a lost reply of taking back costs the work",
        file="store/leases.py",
        text="for each in (old, replace(old, token=token)) if",
        instead="for each in (old,) if",
        caught_by=[f"{STORE}/test_daemons.py::test_what_is_requeued_before_the_reply_came_is_taken_back_again[sqlite]"],
    ),
    Mutant(
        name="a loss is uncharged twice",
        file="store/reports.py",
        text="        *take_out_losses(table, [report.claim for report in accepted if _was_no_loss(report, ours)]),\n",
        instead="",
        caught_by=[f"{STORE}/test_daemons.py::test_what_was_requeued_and_had_not_begun_was_no_loss[sqlite]"],
    ),
    Mutant(
        name="a token stays where a person edited",
        file="store/reports.py",
        text="        *_disown(table, overtaken, rows),\n",
        instead="",
        caught_by=[
            f"{STORE}/test_leases.py::test_a_superseded_end_takes_its_token_out_of_a_row_edited_by_hand[sqlite]"
        ],
    ),
    Mutant(
        name="the audit is blind to what was taken",
        file="daemon/ledger.py",
        text="taken=sorted((before.held & after.held) - stored)",
        instead="taken=[]",
        caught_by=["tests/unit/daemon/test_ledger.py::test_a_row_held_throughout_and_missing_was_taken"],
    ),
    Mutant(
        name="the audit is blind to what is unknown",
        file="daemon/ledger.py",
        text="if row[1] not in known]",
        instead="if row[1] not in known and False]",
        caught_by=["tests/unit/daemon/test_ledger.py::test_a_row_under_an_unknown_token_is_handed_back"],
    ),
    Mutant(
        name="the spool counts as stored too early",
        file="daemon/completer.py",
        text="        await self._writer.store(self._flying, repeated=repeated)\n",
        instead="        self.spool.stored()\n        await self._writer.store(self._flying, repeated=repeated)\n",
        caught_by=[
            f"{DAEMON}/test_spooling.py::test_an_end_after_a_second_is_on_disk_before_it_is_sent_and_a_quick_one_never[sqlite]"
        ],
    ),
    Mutant(
        name="the heartbeat stops first",
        file="daemon/supervisor.py",
        text="                left = await self._drain()\n",
        instead="                self.membership.heartbeat.stop(5)\n                left = await self._drain()\n",
        caught_by=["tests/e2e/test_orders.py::test_a_daemon_that_drains_beats_until_what_runs_has_ended[sqlite]"],
        slow=True,
    ),
)


class Copy:
    """The tree once more, to be broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pyexp_daemon", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if (ROOT / ".cache").exists():  # unpacked servers
            (folder / ".cache").symlink_to(ROOT / ".cache")
        self._check_that_it_is_imported()

    @contextmanager
    def broken_by(self, mutant: Mutant) -> Iterator[None]:
        path = self.folder / mutant.path
        sound = path.read_text()
        path.write_text(mutant.of(sound))
        try:
            yield
        finally:
            path.write_text(sound)

    def failures(self, tests: Sequence[str]) -> set[str]:
        """Those of the tests that fail.

        Raises:
            RuntimeError: they do not all run.
        """
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        ran = self._run(sys.executable, "-m", "pytest", *options, *tests)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
        unsound = [case for case in cases if not _is_sound(case)]
        if ran.returncode not in (0, 1) or len(cases) != len(tests) or unsound:
            raise RuntimeError(f"these do not run: {', '.join(tests)}\n{ran.stdout[-3000:]}{ran.stderr[-1000:]}")
        return {f"{case.get('file')}::{case.get('name')}" for case in cases if case.find("failure") is not None}

    def _check_that_it_is_imported(self) -> None:
        """By the command too, which is installed for the tree itself."""
        path = self.folder / "pyexp_daemon" / "__init__.py"
        text = path.read_text()
        path.write_text(text.replace(__version__, "0.0.0+copy"))
        told = self._run(str(Path(sys.executable).with_name("pyexpd")), "--version", check=True).stdout
        path.write_text(text)
        if "0.0.0+copy" not in told:
            raise RuntimeError(f"not the copy is imported, but {told}")

    def _run(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # mutants of one size, written in one second, would share it
            "PYEXPD_TEST_QUICKLY": "1",
        }
        return subprocess.run(
            command, cwd=self.folder, env=environment, check=check, capture_output=True, text=True, timeout=LONGEST_S
        )


def _is_sound(case: ElementTree.Element) -> bool:
    """Whether a test passed, or failed by what it found."""
    failure = case.find("failure")
    cannot_run = failure is not None and failure.get("message", "").startswith(
        ("NameError", "ImportError", "TypeError")
    )
    return not cannot_run and case.find("error") is None and case.find("skipped") is None


@contextmanager
def copied() -> Iterator[Copy]:
    with tempfile.TemporaryDirectory(prefix="pyexpd-mutants-") as folder:
        yield Copy(Path(folder))


def survivors(copy: Copy, mutant: Mutant) -> list[str]:
    """The tests that should have caught it and did not."""
    with copy.broken_by(mutant):
        return sorted(set(mutant.caught_by) - copy.failures(mutant.caught_by))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutants", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="those mutants whose name contains this")
    only = parser.parse_args().only
    chosen = [mutant for mutant in MUTANTS if not only or only in mutant.name]
    alive = 0
    with copied() as copy:
        sound = copy.failures(sorted({test for mutant in chosen for test in mutant.caught_by}))
        if sound:
            print(f"these fail without a mutant, too: {', '.join(sorted(sound))}")
            return 1
        print(f"{'mutant':42} {'seconds':>7}  caught by")
        for mutant in chosen:
            began = time.monotonic()
            left = survivors(copy, mutant)
            alive += bool(left)
            seconds = time.monotonic() - began
            verdict = (
                f"SURVIVES {', '.join(left)}" if left else ", ".join(test.split("::")[1] for test in mutant.caught_by)
            )
            print(f"{mutant.name:42} {seconds:7.1f}  {verdict}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} mutants were caught")
    return 1 if alive or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
