"""What an experiment says while it runs: results, log rows, progress, output; and what it is told."""

from __future__ import annotations

import time

import anyio
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import Outcome
from tests.helpers import wait_until_async
from tests.integration.worker.workbench import Workbench, make_claim

pytestmark = pytest.mark.anyio


async def test_process_results_waits_until_they_are_stored(bench: Workbench) -> None:
    bench.daemon.hold_results = anyio.Event()
    async with bench.pool("""
        import pathlib

        def run(keyfields, result_processor):
            result_processor.process_results({"score": 1})
            pathlib.Path("stored").touch()
        """) as pool:
        pool.give(make_claim(1))
        await wait_until_async(lambda: bench.daemon.journal)
        await anyio.sleep(0.1)
        assert not (bench.folder / "stored").exists()
        bench.daemon.hold_results.set()
        await pool.wait_idle()

    assert bench.daemon.journal == [("results", {"score": 1})]
    assert (bench.folder / "stored").exists()


async def test_a_lost_lease_is_raised_and_ends_the_attempt_as_superseded(bench: Workbench) -> None:
    bench.daemon.refuse_results = exceptions.LeaseLost(1)
    attempt = await bench.run("""
        def run(keyfields, result_processor):
            result_processor.process_results({"score": 1})
        """)

    assert attempt.outcome is Outcome.SUPERSEDED
    assert "LeaseLost: experiment 1 is no longer held" in (attempt.error or "")


@pytest.mark.parametrize(
    "refusal", [exceptions.RowRefused("too long for score"), exceptions.InvalidResultFieldError("no column score")]
)
async def test_a_refusal_is_raised_where_the_results_were_given(bench: Workbench, refusal: Exception) -> None:
    bench.daemon.refuse_results = refusal
    attempt = await bench.run("""
        from pyexp_daemon import exceptions

        def run(keyfields, result_processor):
            try:
                result_processor.process_results({"score": 1})
            except exceptions.DatabaseError as error:
                return {"note": f"{type(error).__name__}: {error}"}
        """)

    assert attempt.results == {"note": f"{type(refusal).__name__}: {refusal}"}


async def test_wrong_results_are_refused_before_they_travel(bench: Workbench) -> None:
    attempt = await bench.run("""
        def run(keyfields, result_processor):
            kinds = []
            for wrong in ({"acuracy": 1}, {"score": set()}, {"note": "x" * 100_000_000}):
                try:
                    result_processor.process_results(wrong)
                except Exception as error:
                    kinds.append(type(error).__name__)
            result_processor.process_results({})
            return {"note": " ".join(kinds)}
        """)

    assert attempt.results == {"note": "InvalidResultFieldError TypeError ValueError"}
    assert bench.daemon.journal == []


async def test_log_rows_arrive_in_order_dated_and_before_later_results(bench: Workbench) -> None:
    began = time.time()
    attempt = await bench.run("""
        def run(keyfields, result_processor):
            row = {"epochs": {"epoch": 0, "loss": 1.0}}
            for epoch in range(3):
                row["epochs"]["epoch"] = epoch
                result_processor.process_logs(row)
            assert row == {"epochs": {"epoch": 2, "loss": 1.0}}, "not changed by us"
            result_processor.process_results({"score": 1})
            result_processor.process_logs(row)
        """)

    assert attempt.outcome is Outcome.DONE, attempt.error
    assert [kind for kind, _ in bench.daemon.journal] == ["log", "log", "log", "results", "log"]
    rows = bench.daemon.journal_of("log")
    assert [columns["epoch"] for _, _, columns in rows] == [0, 1, 2, 2]
    assert {table for table, _, _ in rows} == {"epochs"}
    assert all(began <= at <= time.time() for _, at, _ in rows)


async def test_buffered_messages_leave_within_about_a_second(bench: Workbench) -> None:
    async with bench.pool("""
        import pathlib, time

        def run(keyfields, result_processor):
            result_processor.process_logs({"epochs": {"epoch": 1}})
            result_processor.progress(0.25)
            result_processor.progress(0.5, "half way")
            while not pathlib.Path("go").exists():
                time.sleep(0.01)
        """) as pool:
        pool.give(make_claim(1))
        await wait_until_async(lambda: bench.daemon.journal_of("progress"))
        assert bench.daemon.journal_of("log")
        (bench.folder / "go").touch()
        await pool.wait_idle()

    assert bench.daemon.journal_of("progress") == [(0.5, "half way")], "the latest of a second is enough"


async def test_many_log_rows_travel_before_the_second_is_over(bench: Workbench) -> None:
    attempt = await bench.run("""
        def run(keyfields, result_processor):
            for epoch in range(20_000):
                result_processor.process_logs({"epochs": {"epoch": epoch, "loss": 0.5}})
        """)

    assert attempt.outcome is Outcome.DONE, attempt.error
    assert [columns["epoch"] for _, _, columns in bench.daemon.journal_of("log")] == list(range(20_000))


async def test_wrong_log_rows_are_refused_at_once(bench: Workbench) -> None:
    attempt = await bench.run("""
        def run(keyfields, result_processor):
            kinds = []
            for wrong in (
                {"epoch": {"loss": 1}},
                {"epochs": {"lost": 1}},
                {"epochs": {"loss": object()}},
                {"epochs": {"loss": "x" * 100_000_000}},
            ):
                try:
                    result_processor.process_logs(wrong)
                except Exception as error:
                    kinds.append(type(error).__name__)
            return {"note": " ".join(kinds)}
        """)

    assert attempt.results == {"note": "MissingLogTableError InvalidLogFieldError TypeError ValueError"}
    assert bench.daemon.journal == []


async def test_log_rows_that_the_daemon_refuses_are_raised_at_the_next_call(bench: Workbench) -> None:
    bench.daemon.refuse_logs = exceptions.LeaseLost(1)
    attempt = await bench.run("""
        def run(keyfields, result_processor):
            result_processor.process_logs({"epochs": {"epoch": 1}})
            result_processor.flush()
            while True:
                result_processor.process_results({"score": 1})
        """)

    assert attempt.outcome is Outcome.SUPERSEDED


async def test_what_a_thread_stores_after_the_end_belongs_nowhere(bench: Workbench) -> None:
    async with bench.pool("""
        import threading, time

        stored = threading.Event()

        def run(keyfields, result_processor):
            if keyfields["leaves"]:
                threading.Thread(target=store_for_ever, args=(result_processor,), daemon=True).start()
                stored.wait()
            time.sleep(0.2)

        def store_for_ever(result_processor):
            while True:
                result_processor.process_results({"note": str(result_processor.experiment_id)})
                stored.set()
                result_processor.process_logs({"epochs": {"epoch": result_processor.experiment_id}})
                result_processor.should_stop
        """) as pool:
        pool.give(make_claim(1, leaves=True))
        await pool.wait_idle()
        before = len(bench.daemon.journal)
        pool.give(make_claim(2, leaves=False))
        await pool.wait_idle()

    assert [attempt.outcome for attempt in bench.daemon.attempts] == [Outcome.DONE] * 2
    assert before > 0
    assert len(bench.daemon.journal) == before
    logs = [bench.log(name) for name in ("1-1.log", "2-1.log") if _has(bench, name)]
    assert "UsageError" in "".join(logs)


def _has(bench: Workbench, name: str) -> bool:
    return (bench.folder / "logs" / name).exists()


async def test_orders_that_a_left_thread_receives_are_not_lost(bench: Workbench) -> None:
    """
    A thread that outlives its experiment reads from the same channel: the order to run the next one may come to it.
    """
    async with bench.pool("""
        import threading

        def run(keyfields, result_processor):
            threading.Thread(target=store_for_ever, args=(result_processor,), daemon=True).start()

        def store_for_ever(result_processor):
            try:
                while True:
                    result_processor.process_results({"score": 1})
                    result_processor.should_stop
            except Exception:
                return
        """) as pool:
        for number in range(300):
            pool.give(make_claim(number))
        await pool.wait_idle()

    assert [attempt.outcome for attempt in bench.daemon.attempts] == [Outcome.DONE] * 300


async def test_threads_of_a_function_may_store_at_the_same_time(bench: Workbench) -> None:
    attempt = await bench.run("""
        import threading

        def run(keyfields, result_processor):
            def store(number):
                for turn in range(50):
                    result_processor.process_results({"score": number})
                    result_processor.process_logs({"epochs": {"epoch": turn}})
                    result_processor.should_stop
            threads = [threading.Thread(target=store, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        """)

    assert attempt.outcome is Outcome.DONE, attempt.error
    assert len(bench.daemon.journal_of("results")) == 200
    assert len(bench.daemon.journal_of("log")) == 200


async def test_should_stop_is_seen_by_what_runs_and_not_by_what_comes_next(bench: Workbench) -> None:
    async with bench.pool("""
        import time

        def run(keyfields, result_processor):
            while keyfields["waits"] and not result_processor.should_stop:
                time.sleep(0.01)
            return {"score": result_processor.should_stop}
        """) as pool:
        await pool.wait_ready()
        pool.give(make_claim(1, waits=True))
        pool.give(make_claim(2, waits=False))
        await anyio.sleep(0.1)
        assert not bench.daemon.attempts
        pool.ask_to_stop()
        await pool.wait_idle()

    assert [attempt.results for attempt in bench.daemon.attempts] == [{"score": True}, {"score": False}]


async def test_an_experiment_knows_itself_and_has_a_folder(bench: Workbench) -> None:
    source = """
        def run(keyfields, result_processor):
            if keyfields["writes"]:
                (result_processor.workdir / "model").write_text("weights")
            return {"note": f"{result_processor.experiment_id} {result_processor.attempt}"}
        """
    async with bench.pool(source) as pool:
        pool.give(make_claim(7, attempt=2, writes=True))
        pool.give(make_claim(8, writes=False))
        await pool.wait_idle()

    assert bench.daemon.of(7).results == {"note": "7 2"}
    assert (bench.folder / "workdirs" / "7" / "model").read_text() == "weights"
    assert not (bench.folder / "workdirs" / "8").exists(), "made when asked for"


async def test_output_lands_in_the_log_of_its_attempt(bench: Workbench) -> None:
    async with bench.pool("""
        import ctypes, os, subprocess, sys
        print("imported")

        def run(keyfields):
            if keyfields["quiet"]:
                return
            number = keyfields["number"]
            print(f"print {number}")
            sys.stderr.write(f"stderr {number}")
            ctypes.CDLL(None).puts(f" puts {number}".encode())
            subprocess.run(["echo", f"child {number}"])
        """) as pool:
        for number in range(30):
            pool.give(make_claim(number, number=number, quiet=number % 3 == 0))
        await pool.wait_idle()

    for number in range(30):
        attempt = bench.daemon.of(number)
        if number % 3 == 0:
            assert attempt.log_tail is None
            assert not _has(bench, f"{number}-1.log"), "the file opens at its first byte"
        else:
            text = bench.log(f"{number}-1.log")
            assert attempt.log_tail == text
            assert sorted(text.split()) == sorted(
                f"print {number} stderr {number} puts {number} child {number}".split()
            )


async def test_a_long_output_keeps_its_head_and_its_tail(bench: Workbench) -> None:
    size_bytes = 100_000
    attempt = await bench.run(
        """
        def run(keyfields):
            for line in range(100_000):
                print(f"line {line:06}")
        """,
        log_size_bytes=size_bytes,
    )

    log = bench.log()
    head, _, tail = log.partition("\n--- ")
    left_out = int(tail.split()[0])
    lines = tail.partition("---\n")[2].splitlines()
    assert head.startswith("line 000000\nline 000001\n")
    assert len(head) == size_bytes // 2
    assert lines[-1] == "line 099999"
    assert len(head) + left_out + len(tail.partition("---\n")[2]) == 100_000 * 12
    assert size_bytes * 3 // 4 <= len(log) <= size_bytes + 200
    assert (attempt.log_tail or "").endswith("line 099999\n")
    assert len(attempt.log_tail or "") == 4096


async def test_a_log_that_cannot_be_written_costs_nothing_but_the_file(bench: Workbench) -> None:
    (bench.folder / "logs").write_text("a file, not a folder")
    attempt = await bench.run("def run(keyfields):\n    print('hello')\n")

    assert attempt.outcome is Outcome.DONE
    assert attempt.log_tail == "hello\n"


async def test_the_code_version_is_the_commit_where_there_is_one(bench: Workbench) -> None:
    async def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        done = await anyio.run_process(["git", *identity, *arguments], cwd=bench.folder)
        return done.stdout.decode().strip()

    path = bench.write("def run(keyfields):\n    pass\n")
    versions: list[str | None] = []
    async with bench.pool() as pool:
        await pool.wait_ready()
        for change in (None, "git", "edit"):
            if change == "git":
                await git("init", "--quiet")
                await git("add", "experiment.py")
                await git("commit", "--quiet", "-m", "first")
            elif change == "edit":
                path.write_text(path.read_text() + "# changed\n")
            await pool.replace_idle()
            pool.give(make_claim(len(versions)))
            await pool.wait_idle()
            versions.append(bench.daemon.attempts[-1].code_version)
    commit = await git("rev-parse", "HEAD")

    assert versions[0] is not None
    assert versions[0].startswith("sha256:")
    assert len(versions[0]) == len("sha256:") + 12
    assert versions[1] == commit
    assert versions[2] is not None
    assert versions[2].startswith(f"{commit}+dirty.")
    assert len(versions[2]) == len(commit) + len("+dirty.") + 8


async def test_a_snapshot_travels_in_parts_with_its_head_at_the_end(bench: Workbench) -> None:
    attempt = await bench.run("""
        def run(keyfields, result_processor):
            result_processor.process_logs({"epochs": {"epoch": 1}})
            result_processor.save_snapshot(b"x" * (2 * 2**18), label="half", keep=3)
        """)
    assert attempt.outcome is Outcome.DONE, attempt.error
    assert [word for word, _ in bench.daemon.journal] == ["log", "snapshot", "snapshot", "snapshot"]
    parts = bench.daemon.journal_of("snapshot")
    assert [part.part for part, _ in parts] == [0, 1, 2]
    assert len({part.state_id for part, _ in parts}) == 1
    assert [head for _, head in parts[:-1]] == [None, None]
    head = parts[-1][1]
    assert (head.state_id, head.label, head.parts, head.keep) == (parts[0][0].state_id, "half", 3, 3)
    assert head.size_bytes == sum(len(part.data) for part, _ in parts)


async def test_what_one_function_asks_for_is_not_the_end_of_the_daemon(bench: Workbench) -> None:
    bench.daemon.found = TypeError("of some bug")
    async with bench.pool("""
        def run(keyfields, result_processor):
            return {"score": keyfields["x"]} if keyfields["x"] else result_processor.results_of(1)
        """) as pool:
        pool.give(make_claim(1, x=0))
        pool.give(make_claim(2, x=5))
        await pool.wait_idle()
    assert "UsageError: TypeError: of some bug" in (bench.daemon.of(1).error or "")
    assert bench.daemon.of(2).results == {"score": 5}


@pytest.mark.parametrize("call", ["results_of(1, ['exp'])", "results_where(7)", "latest_snapshot(b'x')"])
async def test_a_name_that_is_no_text_is_refused_before_anybody_is_asked(bench: Workbench, call: str) -> None:
    attempt = await bench.run(f"""
        def run(keyfields, result_processor):
            result_processor.{call}
        """)
    assert "it is text, or None" in (attempt.error or "")
    assert bench.daemon.journal == []


async def test_a_forked_process_may_not_look_whether_to_stop(bench: Workbench) -> None:
    """It would read from the channel what is meant for the process that runs the experiment."""
    attempt = await bench.run("""
        import os

        def run(keyfields, result_processor):
            pid = os.fork()
            if not pid:
                try:
                    result_processor.should_stop
                except Exception as error:
                    os._exit(7 if "only in the process" in str(error) else 8)
                os._exit(9)
            return {"score": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}
        """)
    assert attempt.results == {"score": 7}, attempt.error
