"""Emissions of real children: measured beside whatever the function does, at the cost of nothing but the figures."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from pyexp_daemon.model import Outcome
from tests.integration.worker.workbench import Workbench, is_alive, make_claim

pytestmark = pytest.mark.anyio

OFFLINE = {"offline_mode": True, "country_iso_code": "DEU", "measure_power_secs": 0.02, "log_level": "critical"}


async def test_function_may_do_as_it_likes(bench: Workbench) -> None:
    """It goes elsewhere, forks, closes its output, leaves threads: the next one is measured as well."""
    source = """
        import os, sys, threading, time

        def run(keyfields, result_processor):
            os.chdir("/")
            pid = os.fork()
            if pid == 0:
                return None
            os.waitpid(pid, 0)
            threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
            time.sleep(0.06)
            sys.stderr.close()
            if keyfields["x"] == 1:
                raise ValueError("no such luck")
        """
    with capture_logs() as events:
        async with bench.pool(source, codecarbon=OFFLINE) as pool:
            for number in range(3):
                pool.give(make_claim(number, x=number))
            await pool.wait_idle()
            (pid,) = pool.pids.values()
        assert not is_alive(pid)
    assert [attempt.outcome for attempt in bench.daemon.attempts] == [Outcome.DONE, Outcome.ERROR, Outcome.DONE]
    measured = [attempt.emissions or {} for attempt in bench.daemon.attempts]
    assert len({emissions["run_id"] for emissions in measured}) == 3
    assert all(emissions["energy_consumed_kw"] > 0 for emissions in measured)
    assert [event for event in events if event["event"] == "emissions.incomplete"] == []
    assert "codecarbon" not in "".join(path.read_text() for path in (bench.folder / "logs").glob("*.log"))


async def test_killed_attempt_has_none(bench: Workbench) -> None:
    attempt = await bench.run(
        "import time\n\ndef run(keyfields):\n    time.sleep(60)\n", codecarbon=OFFLINE, timeout_s=0.3
    )
    assert (attempt.outcome, attempt.emissions) == (Outcome.TIMEOUT, None)


async def test_codecarbon_that_fails_in_the_middle_costs_no_experiment(bench: Workbench) -> None:
    source = """
        from codecarbon import OfflineEmissionsTracker

        def fail(tracker):
            raise SystemError("no such counter")

        def run(keyfields):
            OfflineEmissionsTracker.stop = fail
            return {"score": 1.0}
        """
    with capture_logs() as events:
        attempt = await bench.run(source, codecarbon=OFFLINE)
    assert (attempt.outcome, attempt.results, attempt.emissions) == (Outcome.DONE, {"score": 1.0}, None)
    (event,) = [event for event in events if event["event"] == "emissions.incomplete"]
    assert event["reason"] == "codecarbon cannot end: SystemError: no such counter"
