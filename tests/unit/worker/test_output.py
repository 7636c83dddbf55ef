"""The bounded log of an attempt."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from pyexp_daemon.worker.output import TAIL_BYTES, BoundedLog


@given(st.lists(st.integers(0, 700), max_size=60), st.integers(40, 1000), st.sets(st.integers(0, 60)))
def test_head_and_tail_survive_and_the_rest_is_counted(writes: list[int], size_bytes: int, closings: set[int]) -> None:
    output = bytes(97 + place % 26 for place in range(sum(writes)))
    with TemporaryDirectory() as folder:
        path = Path(folder, "logs", "1-1.log")
        log = BoundedLog(str(path), size_bytes=size_bytes)
        written = 0
        for turn, count in enumerate(writes):
            if count:
                log.write(output[written : written + count])
            written += count
            if turn in closings:
                log.close()
        log.close()
        kept = path.read_bytes() if path.exists() else b""

    assert bool(kept) == bool(output)
    head, marker, rest = kept.partition(b"\n--- ")
    if not marker:
        assert kept == output
        assert len(output) <= size_bytes
    else:
        missing, _, tail = rest.partition(b" bytes left out ---\n")
        assert head == output[: size_bytes // 2]
        assert output.endswith(tail)
        assert len(head) + int(missing) + len(tail) == len(output)
        assert len(tail) >= size_bytes // 4
    assert len(kept) <= size_bytes + 40
    assert log.tail == (output[-TAIL_BYTES:].decode() or None)


def test_a_log_without_a_file_keeps_its_tail() -> None:
    log = BoundedLog(None, size_bytes=0)
    assert log.tail is None
    log.write(b"\xffhello\0")
    assert log.tail == "�hello\\0"
