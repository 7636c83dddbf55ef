"""Children come and go with everything they brought about: limits, stops, replacements, environments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path
from typing import Any

import anyio
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import Outcome
from pyexp_daemon.worker import limits, strays
from pyexp_daemon.worker.pool import Pool, PoolState
from tests.helpers import wait_until, wait_until_async
from tests.integration.worker.workbench import Workbench, exists, is_alive, make_claim, read_proc

pytestmark = pytest.mark.anyio

# Writes the pids of a child that ignores TERM, of its child, of one that called setsid, and of an orphan of another
# session, to the file `pids`; none of them ends by itself.
STUBBORN_FAMILY = """
    import os, signal, subprocess, sys, time

    SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    ORPHAN = (
        "import subprocess, sys; quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
        "print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True, **quiet).pid)"
    )

    def run(keyfields):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        near = subprocess.Popen([sys.executable, "-c", SLEEP])
        far = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
        bare = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True, env={})
        orphan = subprocess.run([sys.executable, "-c", ORPHAN, SLEEP], capture_output=True, text=True).stdout
        with open("pids.new", "w") as file:
            file.write(f"{os.getpid()} {near.pid} {far.pid} {bare.pid} {orphan}")
        os.rename("pids.new", "pids")
        forever()

    def forever():
        time.sleep(600)
"""


def pids_in(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


async def test_a_timeout_ends_a_stubborn_family_to_the_last_process(bench: Workbench) -> None:
    async with bench.pool(STUBBORN_FAMILY, timeout_s=5) as pool:  # until then all of it has to be there
        await pool.wait_ready()
        pool.give(make_claim(1))
        await pool.wait_idle()
        family = pids_in(bench.folder)
        assert len(family) == 5
        assert not [pid for pid in family if is_alive(pid)]

    attempt = bench.daemon.of(1)
    assert attempt.outcome is Outcome.TIMEOUT
    assert attempt.error == "timeout: the attempt took longer than 5 s"
    assert attempt.signal == signal.SIGKILL
    assert "in forever" in bench.log(), "the stack dump"
    assert "in forever" in (attempt.log_tail or "")
    assert 5 <= (attempt.ended or 0) - (attempt.started or 0) < 60  # they would live for ten minutes


async def test_a_timeout_is_noticed_within_a_tenth_of_a_second(bench: Workbench) -> None:
    """The quickest of ten counts: a machine that has much to do may be late with some."""
    async with bench.pool("import time\ndef run(keyfields):\n    time.sleep(600)\n", timeout_s=0.3) as pool:
        for number in range(10):
            pool.give(make_claim(number))
        await pool.wait_idle()

    assert [(each.outcome, each.signal) for each in bench.daemon.attempts] == [(Outcome.TIMEOUT, signal.SIGTERM)] * 10
    took_s = sorted((each.ended or 0) - (each.started or 0) for each in bench.daemon.attempts)
    assert 0.3 <= took_s[0] < 0.3 + 0.1 + 3


async def test_silence_is_stalled_with_a_stack_dump(bench: Workbench) -> None:
    attempt = await bench.run("import time\ndef run(keyfields):\n    time.sleep(600)\n", stalled_s=0.8)

    assert attempt.outcome is Outcome.STALLED
    assert attempt.error == "stalled: no sign of life for 0.8 s"
    assert attempt.ended is not None
    assert attempt.started is not None
    assert 0.8 <= attempt.ended - attempt.started < 30
    assert "in run" in bench.log()


@pytest.mark.parametrize(
    "body",
    [
        "sum(range(10**8))",  # computes, and holds the interpreter lock throughout
        "[(print(n, flush=True), time.sleep(0.3)) for n in range(8)]",
        "[(result_processor.progress(n / 8), time.sleep(0.3)) for n in range(8)]",
        "subprocess.run([sys.executable, '-c', 'sum(range(7 * 10**7))'], check=True)",
    ],
)
async def test_whatever_computes_prints_or_reports_is_alive(bench: Workbench, body: str) -> None:
    source = f"import subprocess, sys, time\ndef run(keyfields, result_processor):\n    {body}\n"
    attempt = await bench.run(source, stalled_s=2.0)
    assert attempt.outcome is Outcome.DONE


async def test_stop_ends_a_running_experiment_as_told(bench: Workbench) -> None:
    async with bench.pool(STUBBORN_FAMILY) as pool:
        pool.give(make_claim(1))
        await wait_until_async(lambda: pids_in(bench.folder))
        assert await pool.stop(make_claim(1), Outcome.CANCELLED, "cancelled by hand")
        assert not [pid for pid in pids_in(bench.folder) if is_alive(pid)]
        await pool.wait_idle()
        assert not await pool.stop(make_claim(1), Outcome.CANCELLED, "again")

    attempt = bench.daemon.of(1)
    assert (attempt.outcome, attempt.error) == (Outcome.CANCELLED, "cancelled by hand")
    assert attempt.results == {}


async def test_stop_takes_a_waiting_experiment_out_of_the_queue(bench: Workbench) -> None:
    async with bench.pool("import time\ndef run(keyfields):\n    time.sleep(600)\n") as pool:
        await pool.wait_ready()
        for experiment_id in (1, 2):
            pool.give(make_claim(experiment_id))
        assert await pool.stop(make_claim(2), Outcome.RELEASED, "not begun")
        assert pool.queued == []

    attempt = bench.daemon.of(2)
    assert (attempt.outcome, attempt.started, attempt.pid) == (Outcome.RELEASED, None, None)


async def test_leaving_the_pool_ends_every_family(bench: Workbench) -> None:
    async with bench.pool(STUBBORN_FAMILY) as pool:
        pool.give(make_claim(1))
        await wait_until_async(lambda: pids_in(bench.folder))

    assert not [pid for pid in pids_in(bench.folder) if is_alive(pid)]


async def test_a_crash_takes_its_family_along(bench: Workbench) -> None:
    async with bench.pool(STUBBORN_FAMILY.replace("        forever()", "        os._exit(1)")) as pool:
        pool.give(make_claim(1))
        await pool.wait_idle()
        marked = [pid for place, pid in enumerate(pids_in(bench.folder)) if place != 3]
        assert not [pid for pid in marked if is_alive(pid)]
        # the one without environment, session and parent is known to nobody but the kernel
        os.kill(pids_in(bench.folder)[3], signal.SIGKILL)


async def test_a_memory_limit_counts_the_whole_tree(bench: Workbench) -> None:
    attempt = await bench.run(
        """
        import subprocess, sys, time

        def run(keyfields):
            hold = "block = bytearray(120_000_000); import time; time.sleep(600)"
            subprocess.run([sys.executable, "-c", hold])
        """,
        memory_bytes=100_000_000,
    )

    assert attempt.outcome is Outcome.ERROR
    assert attempt.error is not None
    assert "the limit is 100000000" in attempt.error
    assert int(attempt.error.split(" hold ")[1].split()[0]) > 100_000_000


async def test_pages_that_forked_processes_share_count_once(bench: Workbench) -> None:
    attempt = await bench.run(
        """
        import os, time

        def run(keyfields):
            block = bytearray(os.urandom(1) * 60_000_000)
            is_original = os.fork() and os.fork() and os.fork()
            time.sleep(1.5)
        """,
        memory_bytes=150_000_000,
    )

    assert attempt.outcome is Outcome.DONE, attempt.error


async def test_peak_memory_and_cpu_time_are_those_of_the_attempt(bench: Workbench) -> None:
    async with bench.pool("""
        import subprocess, sys, time

        def run(keyfields):
            block = bytearray(keyfields["size"])
            while keyfields["busy"] and time.process_time() < 0.5:
                pass
            if keyfields["busy"]:
                subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
        """) as pool:
        pool.give(make_claim(1, size=200_000_000, busy=True))
        pool.give(make_claim(2, size=0, busy=False))
        await pool.wait_idle()

    large, small = bench.daemon.of(1), bench.daemon.of(2)
    assert large.pid == small.pid
    assert (large.peak_rss_bytes or 0) > 200_000_000
    assert (small.peak_rss_bytes or 0) < 60_000_000
    assert (large.cpu_seconds or 0) > 0.6
    assert (small.cpu_seconds or 0) < 0.1


async def test_a_killed_attempt_is_charged_its_own_cpu_time(bench: Workbench) -> None:
    async with bench.pool("""
        import os, time

        def run(keyfields):
            end = time.process_time() + keyfields["busy_s"]
            while time.process_time() < end:
                pass
            if keyfields["crashes"]:
                os._exit(1)
        """) as pool:
        pool.give(make_claim(1, busy_s=0.5, crashes=False))
        pool.give(make_claim(2, busy_s=0.1, crashes=True))
        await pool.wait_idle()

    assert 0.08 < (bench.daemon.of(2).cpu_seconds or 0) < 0.3


@pytest.mark.parametrize(
    ("overrides", "distinct"),
    [
        ({"isolation": "fresh"}, 4),
        ({"isolation": "reuse"}, 1),
        ({"recycle_experiments": 2}, 2),
        ({"recycle_memory_bytes": 1}, 4),
    ],
)
async def test_children_are_replaced_as_configured(bench: Workbench, overrides: dict[str, Any], distinct: int) -> None:
    async with bench.pool("def run(keyfields):\n    pass\n", **overrides) as pool:
        for experiment_id in range(4):
            pool.give(make_claim(experiment_id))
        await pool.wait_idle()

    assert [attempt.outcome for attempt in bench.daemon.attempts] == [Outcome.DONE] * 4
    assert len({attempt.pid for attempt in bench.daemon.attempts}) == distinct


async def test_replacing_idle_children_brings_new_code_to_all_in_time(bench: Workbench) -> None:
    async with bench.pool(
        """
        import pathlib, time
        CODE = "old"

        def run(keyfields):
            while keyfields["waits"] and not pathlib.Path("go").exists():
                time.sleep(0.01)
            return {"note": CODE}
        """,
        slots=2,
    ) as pool:
        await wait_until_async(lambda: pool.free == 2)
        pool.give(make_claim(1, waits=True))
        source = bench.folder / "experiment.py"
        source.write_text(source.read_text().replace('"old"', '"new"'))
        await pool.replace_idle()
        assert pool.free == 1
        pool.give(make_claim(2, waits=False))
        await wait_until_async(lambda: len(bench.daemon.attempts) == 1)
        (bench.folder / "go").touch()
        await pool.wait_idle()
        await wait_until_async(lambda: pool.free == 2)
        pool.give(make_claim(3, waits=False))
        pool.give(make_claim(4, waits=False))
        await pool.wait_idle()

    notes = {number: bench.daemon.of(number).results["note"] for number in (1, 2, 3, 4)}
    assert notes == {1: "old", 2: "new", 3: "new", 4: "new"}
    versions = {number: bench.daemon.of(number).code_version for number in (1, 2, 3, 4)}
    assert versions[2] == versions[3] == versions[4] != versions[1]


async def test_children_end_in_their_own_way_when_they_are_replaced(bench: Workbench) -> None:
    async with bench.pool("""
        import atexit, pathlib
        atexit.register(pathlib.Path("left").touch)

        def run(keyfields):
            pass
        """) as pool:
        await pool.wait_ready()
        await pool.replace_idle()
        assert (bench.folder / "left").exists()


async def test_claims_wait_their_turn_and_can_be_taken_back(bench: Workbench) -> None:
    async with bench.pool("import time\ndef run(keyfields):\n    time.sleep(600)\n", slots=2) as pool:
        await wait_until_async(lambda: pool.free == 2)
        for experiment_id in range(5):
            pool.give(make_claim(experiment_id))
        assert pool.free == 0
        assert sorted(claim.experiment_id for claim in pool.running) == [0, 1]
        assert [claim.experiment_id for claim in pool.queued] == [2, 3, 4]
        assert [claim.experiment_id for claim in pool.take_back()] == [2, 3, 4]
        assert pool.queued == []


async def test_an_attempt_is_reported_under_the_claim_it_was_rebound_to(bench: Workbench) -> None:
    async with bench.pool("import time\ndef run(keyfields):\n    time.sleep(0.3)\n") as pool:
        await pool.wait_ready()
        pool.give(make_claim(1, token="old"))
        pool.give(make_claim(2, token="old"))
        assert pool.rebind(make_claim(1, token="old"), make_claim(1, token="new"))
        assert pool.rebind(make_claim(2, token="old"), make_claim(2, token="new"))
        assert not pool.rebind(make_claim(3), make_claim(3, token="new"))
        await pool.wait_idle()

    assert [attempt.claim.token for attempt in bench.daemon.attempts] == ["new", "new"]


@pytest.mark.parametrize(
    ("python", "source", "message"),
    [
        ("/no/such/python", "", "cannot start /no/such/python: No such file or directory"),
        ("/bin/false", "", "child exited with code 1"),
        (sys.executable, "import os; print('last words', flush=True); os._exit(7)", "exited with code 7: last words"),
    ],
)
async def test_children_that_cannot_start_are_given_up(
    bench: Workbench, python: str, source: str, message: str
) -> None:
    async with bench.pool(source, python=python, slots=2) as pool:
        pool.give(make_claim(1))
        with pytest.raises(exceptions.ChildrenCannotStart) as caught:
            await pool.wait_ready()
        assert pool.state is PoolState.BROKEN

    assert message in str(caught.value)
    assert bench.daemon.attempts == []


async def test_a_fresh_child_is_small_and_quick(bench: Workbench) -> None:
    """
    At most 20 MiB before the user's own imports, ready in a fraction of a second. The quickest of five counts.
    """
    took_s = float("inf")
    for _ in range(5):
        async with bench.pool("def run(keyfields):\n    pass\n") as pool:
            began = time.monotonic()
            await pool.wait_ready()
            took_s = min(took_s, time.monotonic() - began)
            status = read_proc(pool.pids[0], "status")

    rss_bytes = int(status.split("VmRSS:")[1].split()[0]) * 1024
    assert rss_bytes <= 20 * 1024 * 1024
    assert took_s < 2


async def test_a_child_dies_with_its_daemon(bench: Workbench) -> None:
    bench.write(
        "import os, time\ndef run(keyfields):\n    open('pid', 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    )
    program = textwrap.dedent(f"""
        import sys, pathlib, anyio
        from pyexp_daemon.worker.pool import Pool, SlotSettings
        from tests.integration.worker.workbench import Daemon, Workbench, make_claim

        async def main():
            bench = Workbench(pathlib.Path({str(bench.folder)!r}))
            bench.incarnation = {bench.incarnation!r}
            async with bench.pool() as pool:
                pool.give(make_claim(1))
                await anyio.sleep_forever()

        anyio.run(main)
        """)
    root = Path(__file__).parents[3]
    daemon = await anyio.to_thread.run_sync(
        lambda: subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.DEVNULL)
    )
    try:
        path = bench.folder / "pid"
        await wait_until_async(lambda: path.exists() and path.read_text(), timeout=30)
        child = int(path.read_text())
        assert is_alive(child)
    finally:
        daemon.kill()
        daemon.wait()
    await wait_until_async(lambda: not is_alive(child))


def test_a_sweep_ends_what_a_dead_incarnation_left_and_nothing_else() -> None:
    dead, living = uuid.uuid4().hex, uuid.uuid4().hex
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]

    def start(incarnation: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(sleep, env={limits.INCARNATION: incarnation}, start_new_session=True)

    left, other = start(dead), start(living)
    try:
        wait_until(lambda: strays.has_mark(left.pid, {limits.INCARNATION: dead}))
        assert strays.sweep(dead) == [left.pid]
        assert not is_alive(left.pid)
        assert is_alive(other.pid)
        assert strays.sweep(dead) == []
        with pytest.raises(ValueError, match="incarnation"):
            strays.sweep("")
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


async def test_orphans_that_end_do_not_stay_zombies(bench: Workbench) -> None:
    async with bench.pool("""
        import os

        def run(keyfields):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.setsid()
                    open("orphan", "w").write(str(os.getpid()))
                os._exit(0)
            os.wait()
        """) as pool:
        pool.give(make_claim(1))
        await pool.wait_idle()
        await wait_until_async(lambda: (bench.folder / "orphan").exists() and (bench.folder / "orphan").read_text())
        orphan = int((bench.folder / "orphan").read_text())
        await wait_until_async(lambda: not is_alive(orphan))
        keeper = strays.OrphanKeeper()
        keeper.run_once(spare=pool.pids.values())
        assert exists(orphan), "somebody else may be about to wait for it"
        keeper.run_once(spare=pool.pids.values())
        assert not exists(orphan)


async def test_a_child_sees_its_caps_and_its_gpu_and_no_password(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYEXPD_MYSQL_PASSWORD", "geheim")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    async with bench.pool("def run(keyfields):\n    pass\n", slots=2, threads=3, gpus=("4", "6")) as pool:
        await wait_until_async(lambda: pool.free == 2)
        blocks = [read_proc(pid, "environ").split("\0") for pid in pool.pids.values()]

    for slot, block in enumerate(blocks):
        variables = dict(variable.split("=", 1) for variable in block if variable)
        assert not [
            name for name in variables if name.startswith(("PYEXPD_MYSQL", "WATCHDOG", "CREDENTIALS", "NOTIFY"))
        ]
        assert "geheim" not in "".join(block)
        assert variables["OMP_NUM_THREADS"] == "3"
        assert variables["MKL_NUM_THREADS"] == "7", "the user's own cap"
        assert variables["CUDA_VISIBLE_DEVICES"] == ("4", "6")[slot]
        assert variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert variables[limits.INCARNATION] == bench.incarnation
        assert variables[limits.SLOT] == str(slot)


async def test_children_started_later_bear_the_new_incarnation(bench: Workbench) -> None:
    async with bench.pool("def run(keyfields):\n    pass\n") as pool:
        await pool.wait_ready()
        old, new = bench.incarnation, uuid.uuid4().hex
        assert strays.has_mark(pool.pids[0], {limits.INCARNATION: old})
        pool.incarnation = new
        await pool.replace_idle()
        assert strays.has_mark(pool.pids[0], {limits.INCARNATION: new})

    assert strays.sweep(new) == []


async def test_a_child_is_killed_before_its_daemon_when_memory_runs_out(bench: Workbench) -> None:
    async with bench.pool("def run(keyfields):\n    pass\n") as pool:
        await pool.wait_ready()
        ours = int(read_proc("self", "oom_score_adj"))
        theirs = int(read_proc(pool.pids[0], "oom_score_adj"))

    assert theirs == min(1000, ours + 500)


async def test_a_child_can_be_interrupted_by_nobody_but_its_daemon(bench: Workbench) -> None:
    attempt = await bench.run("""
        import os, signal

        def run(keyfields):
            os.kill(os.getpid(), signal.SIGINT)
            return {"score": os.getsid(0) == os.getpgid(0) == os.getpid()}
        """)

    assert (attempt.outcome, attempt.results) == (Outcome.DONE, {"score": True})


async def test_thousands_of_calls_a_second(bench: Workbench) -> None:
    """
    A quiet machine does 5,000 and more; this catches an order of magnitude. A loaded one may have to try again.
    """

    async def run_many(pool: Pool, numbers: range) -> float:
        began = time.perf_counter()
        for experiment_id in numbers:
            pool.give(make_claim(experiment_id))
        await pool.wait_idle()
        return len(numbers) / (time.perf_counter() - began)

    async with bench.pool("def run(keyfields):\n    pass\n", slots=2) as pool:
        await wait_until_async(lambda: pool.free == 2)
        rates: list[float] = []
        while len(rates) < 5 and max(rates, default=0) <= 200:
            rates.append(await run_many(pool, range(1000 * len(rates), 1000 * len(rates) + 1000)))
    assert max(rates) > 200
    assert len({attempt.claim.experiment_id for attempt in bench.daemon.attempts}) == 1000 * len(rates)
