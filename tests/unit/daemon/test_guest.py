"""What experiments print, as the caller of `execute` sees it."""

from __future__ import annotations

import pytest

from pyexp_daemon.daemon.guest import _Printer


def test_slots_that_print_at_the_same_time_print_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    printer = _Printer(by_line=True)
    for slot, data in ((0, b"one "), (1, b"other "), (0, b"line\nand"), (1, b"line\r"), (1, b"last")):
        printer.print(slot, data)
    assert capsys.readouterr().out == "one line\nother line\r"
    printer.close()
    assert capsys.readouterr().out == "andlast"


def test_a_slot_alone_prints_at_once_but_no_half_of_a_character(capsys: pytest.CaptureFixture[str]) -> None:
    printer = _Printer(by_line=False)
    die = "🎲".encode()
    printer.print(0, b"..." + die[:2])
    assert capsys.readouterr().out == "..."
    printer.print(0, die[2:])
    assert capsys.readouterr().out == "🎲"
    printer.print(0, b"\xff!")
    assert capsys.readouterr().out == "\ufffd!"
