"""Commands to daemons: addressed to an incarnation, heard until they are answered."""

from __future__ import annotations

from pyexp_daemon.model import Incarnation, make_token
from pyexp_daemon.store import commands, daemons
from tests.bench import Bench


def ask(bench: Bench, *asked: Incarnation, command: str = "pause", token: str | None = None) -> str:
    token = token or make_token()
    uuids = [me.uuid for me in asked]
    bench.run(commands.ask(bench.table, incarnations=uuids, command=command, asked_by="anna@login", token=token))
    return token


def heard(bench: Bench, me: Incarnation, *former: str) -> list[str]:
    beat = bench.run(daemons.beat(bench.table, me=me, lease_s=60, former=former))
    return [command.name for command in beat.commands]


async def test_a_command_is_heard_by_whom_it_is_for_in_order_until_it_is_answered(bench: Bench) -> None:
    one, two = bench.register("one"), bench.register("two")
    first = ask(bench, one, two)
    ask(bench, one, command="resume")
    assert (heard(bench, one), heard(bench, two)) == (["pause", "resume"], ["pause"])
    bench.run(commands.answer(bench.table, token=first, incarnations=[one.uuid], text="paused"))
    assert (heard(bench, one), heard(bench, two)) == (["resume"], ["pause"])
    told = bench.run(commands.asked(bench.table, token=first))
    assert (told[one.uuid].answer, told[two.uuid].answer) == ("paused", None)
    assert told[one.uuid].answered is not None
    assert bench.run(commands.latest(bench.table, incarnations=[one.uuid]))[one.uuid].name == "resume"


async def test_asking_again_after_a_lost_reply_asks_once(bench: Bench) -> None:
    me = bench.register()
    token = ask(bench, me)
    ask(bench, me, token=token)
    assert heard(bench, me) == ["pause"]


async def test_what_a_former_incarnation_was_asked_is_heard_by_its_successor(bench: Bench) -> None:
    """Whenever it was asked: also between the look at the daemons and the new registration."""
    former, me = bench.register("d"), bench.register("d")
    ask(bench, former, command="stop")
    assert heard(bench, me) == []
    assert heard(bench, me, former.uuid) == ["stop"]


async def test_numbers_that_come_back_with_a_restored_database_mean_nothing(bench: Bench) -> None:
    me = bench.register()
    token = ask(bench, me, command="resume")
    bench.execute("DELETE FROM exp__pyexpd_commands")
    bench.run(commands.answer(bench.table, token=token, incarnations=[me.uuid], text="resumed"))
    later = ask(bench, me, command="stop")
    bench.execute("UPDATE exp__pyexpd_commands SET id = 1")
    bench.run(commands.answer(bench.table, token=token, incarnations=[me.uuid], text="resumed"))
    assert heard(bench, me) == ["stop"]
    assert bench.run(commands.asked(bench.table, token=later))[me.uuid].answer is None


async def test_what_comes_too_late_is_answered_when_the_daemon_signs_off(bench: Bench) -> None:
    me, other = bench.register("one"), bench.register("two")
    token = ask(bench, me, other)
    bench.run(commands.close(bench.table, incarnations={me.uuid}))
    told = bench.run(commands.asked(bench.table, token=token))
    assert (told[me.uuid].answer, told[other.uuid].answer) == ("it ended", None)
