"""The store: made once per child, before its first experiment, and the same for all of them."""

from __future__ import annotations

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.model import Outcome
from pyexp_daemon.worker.pool import PoolState
from tests.integration.worker.workbench import Workbench, make_claim

pytestmark = pytest.mark.anyio

COUNTED = """
    def load(custom):
        with open("made", "a") as file:
            file.write("once more\\n")
        return {"dataset": [custom["size"]] * 3}

    def run(keyfields, result_processor, custom):
        custom["size"] = "changed"
        return {"score": sum(result_processor.store["dataset"]), "note": str(sorted(result_processor.store))}
    """


async def test_a_store_is_made_once_for_all_experiments_of_a_child(bench: Workbench) -> None:
    async with bench.pool(COUNTED, store="experiment:load", custom={"size": 2}) as pool:
        for experiment in range(1, 6):
            pool.give(make_claim(experiment))
        await pool.wait_idle()
    assert [attempt.results for attempt in bench.daemon.attempts] == [{"score": 6, "note": "['dataset']"}] * 5
    assert (bench.folder / "made").read_text() == "once more\n"


async def test_a_fresh_child_makes_its_own(bench: Workbench) -> None:
    async with bench.pool(COUNTED, store="experiment:load", custom={"size": 2}, isolation="fresh") as pool:
        for experiment in (1, 2, 3):
            pool.give(make_claim(experiment))
        await pool.wait_idle()
    assert len((bench.folder / "made").read_text().splitlines()) >= 3


async def test_a_store_may_be_in_a_file_of_its_own_and_take_nothing(bench: Workbench) -> None:
    bench.write("def load():\n    return {'x': 7}\n", name="data/load.py")
    source = """
        def run(keyfields, result_processor):
            return {"score": result_processor.store["x"]}
        """
    attempt = await bench.run(source, store="data/load.py:load")
    assert attempt.results == {"score": 7}


async def test_the_function_and_the_store_may_be_in_one_file(bench: Workbench) -> None:
    attempt = await bench.run(COUNTED, function="experiment.py:run", store="experiment.py:load", custom={"size": 1})
    assert attempt.results["score"] == 3


async def test_nobody_changes_a_store(bench: Workbench) -> None:
    source = """
        def load():
            return {"x": 1}

        def run(keyfields, result_processor):
            result_processor.store["x"] = 2
        """
    attempt = await bench.run(source, store="experiment:load")
    assert attempt.outcome is Outcome.ERROR
    assert "does not support item assignment" in (attempt.error or "")


async def test_without_one_the_function_is_told_how_to_have_one(bench: Workbench) -> None:
    source = """
        def run(keyfields, result_processor):
            return {"score": result_processor.store["x"]}
        """
    attempt = await bench.run(source)
    assert attempt.outcome is Outcome.ERROR
    assert "there is no store" in (attempt.error or "")


@pytest.mark.parametrize(
    ("body", "spec", "reason"),
    [
        ("raise OSError('no such data set')", "experiment:load", "the store experiment:load failed: OSError: no such"),
        ("return 3", "experiment:load", "the store experiment:load returned a int"),
        ("return {}", "experiment:lead", "the store: experiment:lead: there is no lead in"),
        ("return {}", "nowhere:load", "the store nowhere:load failed: ModuleNotFoundError"),
    ],
)
async def test_a_store_that_fails_breaks_the_pool_and_no_experiment_is_tried(
    bench: Workbench, body: str, spec: str, reason: str
) -> None:
    source = f"""
        def load():
            {body}

        def run(keyfields, result_processor):
            return {{"score": 1}}
        """
    async with bench.pool(source, store=spec) as pool:
        pool.give(make_claim(1))
        with pytest.raises(exceptions.FunctionError, match=reason):
            await pool.wait_ready()
        assert pool.state is PoolState.BROKEN
        assert [claim.experiment_id for claim in pool.take_back()] == [1]
    assert bench.daemon.attempts == []
