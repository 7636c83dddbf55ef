"""What counts as a sign of life."""

from __future__ import annotations

from pyexp_daemon.worker.life import SignsOfLife


def test_silence_grows_while_nothing_is_done() -> None:
    life = SignsOfLife(100.0)
    for now in (101.0, 102.0, 105.0):
        life.look(now, cpu_s=3.0, output_bytes=0)
    assert life.silence_s(105.0) == 5.0


def test_computing_is_a_sign_and_idling_is_not() -> None:
    busy, idle = SignsOfLife(0.0), SignsOfLife(0.0)
    for second in range(1, 101):
        busy.look(float(second), cpu_s=0.5 * second, output_bytes=0)
        idle.look(float(second), cpu_s=0.002 * second, output_bytes=0)
    assert busy.silence_s(100.0) == 0.0
    assert idle.silence_s(100.0) == 100.0


def test_output_and_reports_are_signs() -> None:
    life = SignsOfLife(0.0)
    life.look(5.0, cpu_s=0.0, output_bytes=1)
    assert life.silence_s(5.0) == 0.0
    life.look(7.0, cpu_s=0.0, output_bytes=1)
    assert life.silence_s(7.0) == 2.0
    life.note(8.0)
    assert life.silence_s(8.0) == 0.0


def test_waiting_for_the_daemon_is_not_silence_of_its_own() -> None:
    life = SignsOfLife(0.0)
    life.wait_for_us()
    life.look(60.0, cpu_s=0.0, output_bytes=0)
    assert life.silence_s(60.0) == 0.0
    life.go_on(61.0)
    life.look(70.0, cpu_s=0.0, output_bytes=0)
    assert life.silence_s(70.0) == 9.0


def test_a_process_that_ends_takes_its_time_along_and_that_is_no_sign() -> None:
    life = SignsOfLife(0.0)
    life.look(1.0, cpu_s=10.0, output_bytes=0)
    life.look(2.0, cpu_s=1.0, output_bytes=0)
    life.look(3.0, cpu_s=1.0, output_bytes=0)
    assert life.silence_s(3.0) == 3.0
