"""The wait before the start: it ends when it should, and the process hears signals as before."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pyexp_daemon.daemon import jitter

pytestmark = pytest.mark.usefixtures("_held")


@pytest.fixture
def _held() -> Iterator[None]:
    """Signals that come wait to be heard, so that none ends the tests."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, jitter._HEARD)
    yield
    while signal.sigtimedwait(jitter._HEARD, 0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(number: signal.Signals) -> None:
    signal.pthread_kill(threading.get_ident(), number)  # another thread, of xdist say, would not hold it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_and_hup_does_not(number: signal.Signals) -> None:
    _send(signal.SIGHUP)
    _send(number)
    assert not jitter.wait_at_random(1e9, say=lambda text: None)


def test_hup_alone_shortens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    began = time.monotonic()
    _send(signal.SIGHUP)
    assert jitter.wait_at_random(0.2, say=lambda text: None)
    assert time.monotonic() - began >= 0.2


def test_the_wait_is_random_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    assert jitter.wait_at_random(1e9, say=said.append)
    assert said == ["starting in 0 s (Daemon.start_jitter)"]
    assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # as it was
