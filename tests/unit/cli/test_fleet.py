"""What daemons are called, and who is meant by what somebody types."""

from __future__ import annotations

import pytest

from pyexp_daemon import exceptions
from pyexp_daemon.cli.daemon import _choose
from pyexp_daemon.cli.fleet import Fleet, labels
from pyexp_daemon.model import Daemon


def daemon(number: int, name: str, host: str) -> Daemon:
    return Daemon(
        id=number,
        incarnation=f"{number:032}",
        name=name,
        host=host,
        host_id=host,
        boot_id="b",
        pid=100 + number,
        pid_start="1",
        version="1",
        slots=1,
        state="live",
        beat=1,
        lease_s=60.0,
        started=0.0,
        beat_at=0.0,
    )


LIVE = [
    daemon(1, "gpu", "a"),
    daemon(2, "gpu", "b"),
    daemon(3, "cpu", "a"),
    daemon(4, "twin", "c"),
    daemon(5, "twin", "c"),
    daemon(6, "3", "d"),
]


def test_a_daemon_is_called_by_as_little_as_tells_it_from_the_others() -> None:
    assert list(labels(LIVE).values()) == ["gpu@a", "gpu@b", "cpu", "twin@c (id 4)", "twin@c (id 5)", "3"]
    shown = [line.partition(":")[0] for line in Fleet(now=0.0, daemons=LIVE).describe()]
    assert shown == [
        "daemon gpu@a (process 101)",
        "daemon gpu@b (process 102)",
        "daemon cpu on a (process 103)",
        "daemon twin@c (id 4) (process 104)",
        "daemon twin@c (id 5) (process 105)",
        "daemon 3 on d (process 106)",
    ]


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (["cpu"], [3]),
        (["gpu@b"], [2]),
        (["gpu@b", "2"], [2]),
        (["4"], [4]),
        (["3"], [6]),  # its name; the other one is `cpu`
        (["cpu@a", "gpu@a"], [1, 3]),
        ([], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_names_places_and_ids_are_understood(wanted: list[str], ids: list[int]) -> None:
    assert [row.id for row in _choose(LIVE, wanted, order="drain")] == ids


@pytest.mark.parametrize(
    ("wanted", "said", "hint"),
    [
        ("gpu", "2 live daemons are called gpu", "gpu@a, gpu@b"),
        ("twin", "2 live daemons are called twin", "twin@c (id 4), twin@c (id 5)"),
        ("twin@c", "2 live daemons are called twin@c", "twin@c (id 4), twin@c (id 5)"),
        ("gpu@c", "no daemon gpu@c is live", "live are: gpu@a, gpu@b, cpu"),
    ],
)
def test_nobody_is_asked_when_several_could_be_meant(wanted: str, said: str, hint: str) -> None:
    with pytest.raises(exceptions.UsageError, match=f"^{said}$") as refused:
        _choose(LIVE, ["cpu", wanted], order="drain")
    assert hint in (refused.value.hint or "")
