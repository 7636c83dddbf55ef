"""What an experiment function may look like, what it may return or raise, and what becomes of it."""

from __future__ import annotations

import datetime
import decimal
import math
import os
import signal
from typing import Any

import anyio
import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import Outcome
from pyexp_daemon.worker.pool import PoolState
from tests.helpers import wait_until_async
from tests.integration.worker.workbench import Workbench, is_alive, make_claim

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("returned", "outcome"),
    [
        ("None", Outcome.DONE),
        ("ExperimentStatus.DONE", Outcome.DONE),
        ("ExperimentStatus.ERROR", Outcome.ERROR),
        ("ExperimentStatus.PAUSED", Outcome.PAUSED),
        ("ExperimentStatus.CREATED", Outcome.RELEASED),
        ("{'score': 0.5}", Outcome.DONE),
    ],
)
async def test_a_returned_value_decides_the_outcome(bench: Workbench, returned: str, outcome: Outcome) -> None:
    attempt = await bench.run(f"""
        from pyexp_daemon.experiment_status import ExperimentStatus

        def run(keyfields, result_processor, custom_fields):
            return {returned}
        """)

    assert attempt.outcome is outcome
    assert attempt.error is None
    assert attempt.results == ({"score": 0.5} if "score" in returned else {})
    assert attempt.exit_code is None
    assert attempt.signal is None


@pytest.mark.parametrize("returned", ["42", "True", "'done'", "ExperimentStatus.RUNNING", "[1]"])
async def test_any_other_returned_value_is_an_error(bench: Workbench, returned: str) -> None:
    attempt = await bench.run(f"""
        from pyexp_daemon.experiment_status import ExperimentStatus

        def run(keyfields):
            return {returned}
        """)

    assert attempt.outcome is Outcome.ERROR
    assert attempt.error is not None
    assert "ValueError: invalid return value" in attempt.error


async def test_values_keep_their_type_on_the_way_in_and_out(bench: Workbench) -> None:
    given = {
        "text": "grüße\0",
        "number": 2**80,
        "float": 0.1,
        "nan": math.nan,
        "infinite": -math.inf,
        "nothing": None,
        "flag": True,
        "data": b"\x00\xff",
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001 as a DATETIME column gives it
        "zoned": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "day": datetime.date(2026, 1, 2),
        "time": datetime.time(3, 4, 5),
        "span": datetime.timedelta(days=-1, microseconds=7),
        "exact": decimal.Decimal("1.10"),
    }

    attempt = await bench.run("def run(keyfields):\n    return keyfields\n", keyfields=given, resultfields=tuple(given))

    assert attempt.outcome is Outcome.DONE, attempt.error
    returned = dict(attempt.results)
    assert math.isnan(returned.pop("nan"))
    del given["nan"]
    assert returned == given
    assert {name: type(value) for name, value in returned.items()} == {
        name: type(value) for name, value in given.items()
    }


async def test_scalars_of_numpy_are_plain_numbers_outside(bench: Workbench) -> None:
    attempt = await bench.run(
        """
        import numpy

        def run(keyfields):
            return {"a": numpy.float32(0.5), "b": numpy.int64(3), "c": numpy.array(7), "d": numpy.bool_(True)}
        """,
        resultfields=("a", "b", "c", "d"),
    )

    assert attempt.results == {"a": 0.5, "b": 3, "c": 7, "d": True}
    assert [type(value) for value in attempt.results.values()] == [float, int, int, bool]


async def test_text_that_no_encoding_holds_is_made_storable(bench: Workbench) -> None:
    attempt = await bench.run("""
        def run(keyfields):
            return {"note": "file-\\udc80"}
        """)

    assert attempt.results == {"note": "file-\\udc80"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [("set()", "set"), ("object()", "object"), ("[1, 2]", "list"), ("numpy.zeros(3)", "ndarray")],
)
async def test_an_unstorable_result_costs_its_experiment_only(bench: Workbench, value: str, kind: str) -> None:
    async with bench.pool(f"""
        import numpy

        def run(keyfields):
            return {{"score": {value} if keyfields["bad"] else 1}}
        """) as pool:
        pool.give(make_claim(1, bad=True))
        pool.give(make_claim(2, bad=False))
        await pool.wait_idle()

    bad, good = bench.daemon.of(1), bench.daemon.of(2)
    assert bad.outcome is Outcome.ERROR
    assert f"result field score cannot hold a value of type {kind}" in (bad.error or "")
    assert (good.outcome, good.results) == (Outcome.DONE, {"score": 1})
    assert bad.pid == good.pid


async def test_a_result_too_long_for_the_channel_names_field_and_size(bench: Workbench) -> None:
    async with bench.pool("""
        def run(keyfields):
            return {"score": 1, "note": "x" * keyfields["length"]}
        """) as pool:
        pool.give(make_claim(1, length=300_000_000))
        pool.give(make_claim(2, length=20_000_000))
        await pool.wait_idle()

    too_long, long = bench.daemon.of(1), bench.daemon.of(2)
    assert too_long.outcome is Outcome.ERROR
    assert "result field note is too long: 3000000" in (too_long.error or "")
    assert long.outcome is Outcome.DONE
    assert len(long.results["note"]) == 20_000_000
    assert too_long.pid == long.pid


async def test_an_undeclared_result_field_is_an_error(bench: Workbench) -> None:
    attempt = await bench.run("def run(keyfields):\n    return {'score': 1, 'acuracy': 2}\n")

    assert attempt.outcome is Outcome.ERROR
    assert "InvalidResultFieldError: no such result field: acuracy" in (attempt.error or "")
    assert attempt.results == {}


@pytest.mark.parametrize("raised", ["RuntimeError('no luck')", "SystemExit(3)", "KeyboardInterrupt()"])
async def test_whatever_is_raised_is_an_error_with_its_traceback(bench: Workbench, raised: str) -> None:
    async with bench.pool(f"""
        def inner(keyfields):
            if keyfields["bad"]:
                raise {raised}

        def run(keyfields):
            inner(keyfields)
        """) as pool:
        pool.give(make_claim(1, bad=True))
        pool.give(make_claim(2, bad=False))
        await pool.wait_idle()

    bad, good = bench.daemon.of(1), bench.daemon.of(2)
    assert bad.outcome is Outcome.ERROR
    assert "Traceback (most recent call last)" in (bad.error or "")
    assert "in inner" in (bad.error or "")
    assert raised.partition("(")[0] in (bad.error or "")
    assert good.outcome is Outcome.DONE
    assert bad.pid == good.pid, "an exception does not cost the child"


async def test_an_exception_that_cannot_be_shown_is_an_error_all_the_same(bench: Workbench) -> None:
    attempt = await bench.run("""
        class Wicked(Exception):
            @property
            def __cause__(self):
                raise RuntimeError

        def run(keyfields):
            raise Wicked("x" * 10_000_000)
        """)

    assert attempt.outcome is Outcome.ERROR
    assert "Wicked" in (attempt.error or "")
    assert len(attempt.error or "") < 300_000


@pytest.mark.parametrize(
    ("crash", "error", "exit_code", "by_signal"),
    [
        ("ctypes.string_at(0)", "child killed by SIGSEGV", None, signal.SIGSEGV),
        ("os._exit(3)", "child exited with code 3", 3, None),
        ("os.kill(os.getpid(), signal.SIGKILL)", "child killed by SIGKILL", None, signal.SIGKILL),
        ("os.closerange(3, 4096); time.sleep(60)", "child killed by SIGTERM", None, signal.SIGTERM),
    ],
)
async def test_a_crash_costs_one_experiment(
    bench: Workbench, crash: str, error: str, exit_code: int | None, by_signal: int | None
) -> None:
    async with bench.pool(f"""
        import ctypes, os, signal, time

        def run(keyfields):
            print("before the crash")
            if keyfields["bad"]:
                {crash}
        """) as pool:
        pool.give(make_claim(1, bad=True))
        pool.give(make_claim(2, bad=False))
        await pool.wait_idle()

    bad, good = bench.daemon.of(1), bench.daemon.of(2)
    assert (bad.outcome, bad.exit_code, bad.signal) == (Outcome.CRASH, exit_code, by_signal)
    assert bad.error == f"{error} before the function returned"
    assert (bad.log_tail or "").startswith("before the crash\n")
    assert bad.cpu_seconds is not None
    assert good.outcome is Outcome.DONE
    assert bad.pid != good.pid


async def test_a_segfault_leaves_the_python_stack_in_the_log(bench: Workbench) -> None:
    attempt = await bench.run("import ctypes\ndef run(keyfields):\n    ctypes.string_at(0)\n")

    assert "Segmentation fault" in (attempt.log_tail or "")
    assert "experiment.py" in (attempt.log_tail or "")


async def test_a_child_killed_from_outside_costs_its_experiment_and_no_other(bench: Workbench) -> None:
    async with bench.pool(
        """
        import pathlib, time

        def run(keyfields):
            if keyfields["waits"]:
                pathlib.Path("started").touch()
                time.sleep(60)
        """,
        slots=2,
    ) as pool:
        await pool.wait_ready()
        pool.give(make_claim(1, waits=True))
        await wait_until_async((bench.folder / "started").exists)
        (pid,) = [slot.pid for slot in pool._slots if slot.claim is not None]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        pool.give(make_claim(2, waits=False))
        await pool.wait_idle()

    assert bench.daemon.of(1).outcome is Outcome.CRASH
    assert bench.daemon.of(2).outcome is Outcome.DONE


@pytest.mark.parametrize(("is_draining", "outcome"), [(True, Outcome.RELEASED), (False, Outcome.CRASH)])
async def test_what_dies_of_a_term_to_all_processes_is_handed_back(
    bench: Workbench, is_draining: bool, outcome: Outcome
) -> None:
    """A batch system sends it to the daemon and to the experiments at once, in any order."""
    async with bench.pool(
        """
        import pathlib, time

        def run(keyfields):
            pathlib.Path("started").touch()
            time.sleep(60)
        """
    ) as pool:
        await pool.wait_ready()
        pool.give(make_claim(1))
        await wait_until_async((bench.folder / "started").exists)
        os.kill(pool.pids[0], signal.SIGTERM)
        if is_draining:
            await anyio.sleep(0.2)
            pool.ask_to_stop()
        with anyio.fail_after(50):
            await pool.wait_idle()

    assert (bench.daemon.of(1).outcome, bench.daemon.of(1).signal) == (outcome, signal.SIGTERM)


async def test_a_crash_takes_along_at_once_what_is_in_a_session_of_its_own(bench: Workbench) -> None:
    """The grace is for experiments that are stopped. Ten of them, for the files of a child close before it is dead."""
    async with bench.pool(
        """
        import os, subprocess, sys

        def run(keyfields):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
            os.kill(os.getpid(), 9)
        """,
        slots=2,
        grace_s=600,
    ) as pool:
        await pool.wait_ready()
        for number in range(10):
            pool.give(make_claim(number))
        with anyio.fail_after(60):
            await pool.wait_idle()
    assert [attempt.outcome for attempt in bench.daemon.attempts] == [Outcome.CRASH] * 10


async def test_an_idle_child_that_dies_costs_no_experiment(bench: Workbench) -> None:
    """
    The order to run may cross the death of an idle child; an experiment that did not begin is not charged.
    """
    async with bench.pool("def run(keyfields):\n    pass\n") as pool:
        await pool.wait_ready()
        for experiment_id in range(5):
            os.kill(pool.pids[0], signal.SIGKILL)
            pool.give(make_claim(experiment_id))
            await pool.wait_idle()

    assert [attempt.outcome for attempt in bench.daemon.attempts] == [Outcome.DONE] * 5


@pytest.mark.parametrize(
    ("signature", "arguments"),
    [
        ("keyfields", 1),
        ("keyfields, result_processor", 2),
        ("keyfields, result_processor, custom_fields", 3),
        ("keyfields, result_processor, custom_fields, debug=False", 3),
        ("*arguments", 3),
        ("keyfields, *rest", 3),
        ("keyfields, result_processor=None", 2),
        ("keyfields, *, debug=False", 1),
    ],
)
async def test_a_function_gets_as_many_arguments_as_it_takes(bench: Workbench, signature: str, arguments: int) -> None:
    attempt = await bench.run(
        f"""
        def run({signature}):
            given = [value for value in _flat(locals().values()) if value is not None and value is not False]
            kinds = [type(value).__name__ for value in given]
            return {{"note": " ".join(kinds)}}

        def _flat(values):
            for value in values:
                yield from value if isinstance(value, tuple) else [value]
        """,
        custom={"datapath": "data"},
    )

    assert attempt.outcome is Outcome.DONE, attempt.error
    assert attempt.results["note"] == " ".join(["dict", "ResultProcessor", "dict"][:arguments])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def run(a, b, c, d): pass", "takes 4 positional arguments"),
        ("def run(): pass", "takes no positional arguments"),
        ("def run(a, *, needed): pass", "needs the keyword argument 'needed'"),
        ("async def run(a): pass", "generator or async function"),
        ("def run(a): yield", "generator or async function"),
        ("run = 3", "run is a int, not a function"),
        ("def ran(a): pass", "there is no run in"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('not today')", "SystemExit: not today"),
    ],
)
async def test_a_function_that_cannot_be_called_breaks_the_pool_and_costs_nothing(
    bench: Workbench, source: str, message: str
) -> None:
    async with bench.pool(source) as pool:
        pool.give(make_claim(1))
        with pytest.raises(exceptions.FunctionError) as caught:
            await pool.wait_ready()
        assert pool.state is PoolState.BROKEN
        assert (pool.free, pool.running) == (0, [])
        assert [claim.experiment_id for claim in pool.take_back()] == [1]

    assert message in str(caught.value)
    assert "Traceback" in (caught.value.traceback or "")
    assert bench.daemon.attempts == []


async def test_a_repaired_function_runs_after_a_retry(bench: Workbench) -> None:
    async with bench.pool("import no_such_module", slots=2) as pool:
        pool.give(make_claim(1))
        with pytest.raises(exceptions.FunctionError):
            await pool.wait_ready()
        await pool.retry()
        assert pool.state == "broken", "nothing was repaired"
        bench.write("def run(keyfields):\n    return {'score': 1}\n")
        await pool.retry()
        assert pool.state == "ready"
        await pool.wait_idle()

    assert bench.daemon.of(1).results == {"score": 1}


@pytest.mark.parametrize(
    ("function", "file"),
    [
        ("experiment:run", "experiment.py"),
        ("pack.inner:run", "pack/inner.py"),
        ("code/study.py:run", "code/study.py"),
        ("code/study.py:Study.run", "code/study.py"),
    ],
)
async def test_a_function_is_found_by_module_or_by_file(bench: Workbench, function: str, file: str) -> None:
    bench.write("VALUE = 7\n", name="code/beside.py")
    bench.write("VALUE = 7\n", name="above.py")
    bench.write(
        f"""
        import os, pickle, sys
        import above
        {"import beside" if file.startswith("code") else ""}

        class Study:
            @staticmethod
            def run(keyfields):
                return {{"score": above.VALUE, "note": os.getcwd()}}

        def run(keyfields):
            assert pickle.loads(pickle.dumps(run)) is run
            return Study.run(keyfields)
        """,
        name=file,
    )

    async with bench.pool(function=function) as pool:
        pool.give(make_claim(1))
        await pool.wait_idle()

    assert bench.daemon.of(1).results == {"score": 7, "note": str(bench.folder)}, bench.daemon.of(1).error


async def test_a_file_named_like_a_loaded_module_is_refused(bench: Workbench) -> None:
    bench.write("def run(keyfields): pass", name="code/json.py")
    async with bench.pool(function="code/json.py:run") as pool:
        with pytest.raises(exceptions.FunctionError, match="has the name of the module 'json'"):
            await pool.wait_ready()


async def test_a_forked_copy_that_returns_does_not_speak_for_the_experiment(bench: Workbench) -> None:
    attempt = await bench.run("""
        import os

        def run(keyfields, result_processor):
            if os.fork() == 0:
                try:
                    result_processor.process_results({"score": 13})
                except Exception as error:
                    print(type(error).__name__)
                return {"score": 666}
            os.wait()
            return {"score": 1}
        """)

    assert (attempt.outcome, attempt.results) == (Outcome.DONE, {"score": 1})
    assert bench.daemon.journal == []
    assert attempt.log_tail == "UsageError\n"


async def test_experiments_do_not_see_each_others_directory_or_custom_fields(bench: Workbench) -> None:
    async with bench.pool(
        """
        import os

        def run(keyfields, result_processor, custom_fields):
            seen = f"{os.getcwd()} {custom_fields}"
            os.chdir("/")
            custom_fields["left"] = 1
            return {"note": seen}
        """,
        custom={"datapath": ["data"]},
    ) as pool:
        for experiment_id in (1, 2):
            pool.give(make_claim(experiment_id))
        await pool.wait_idle()

    assert bench.daemon.of(1).results == bench.daemon.of(2).results
    assert bench.daemon.of(2).results["note"] == f"{bench.folder} {{'datapath': ['data']}}"


async def test_spawned_processes_of_the_function_find_module_and_package(bench: Workbench) -> None:
    attempt = await bench.run("""
        import multiprocessing
        from pyexp_daemon.experiment_status import ExperimentStatus

        def square(number):
            assert ExperimentStatus.DONE
            return number * number

        def run(keyfields):
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                return {"score": sum(pool.map(square, range(4)))}
        """)

    assert attempt.results == {"score": 14}, attempt.error


async def test_other_parts_of_the_package_stay_off_the_path(bench: Workbench) -> None:
    attempt = await bench.run("""
        import sys

        def run(keyfields):
            return {"note": "\\n".join(sys.path), "score": "asyncio" in sys.modules or "logging" in sys.modules}
        """)

    assert attempt.results["score"] is False
    paths: list[Any] = attempt.results["note"].splitlines()
    assert paths[0] == str(bench.folder)
    assert not [path for path in paths if path.endswith(("worker", "pyexp_daemon"))]


async def test_cancelling_the_pool_leaves_what_it_killed_listed(bench: Workbench) -> None:
    async with bench.pool("import time\ndef run(keyfields):\n    time.sleep(60)\n") as pool:
        await pool.wait_ready()
        pool.give(make_claim(1))
        pid = pool.pids[0]
        assert is_alive(pid)

    assert not is_alive(pid)
    assert [claim.experiment_id for claim in pool.running] == [1]
    assert bench.daemon.attempts == []


async def test_pools_can_be_left_while_children_start(bench: Workbench) -> None:
    async with bench.pool("import time\ntime.sleep(60)\n", slots=2) as pool:
        await wait_until_async(lambda: len(pool.pids) == 2)
        await anyio.lowlevel.checkpoint()
