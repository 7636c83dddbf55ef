"""The mailbox: letters from threads, in their order, and nothing for whoever has its descriptor after it."""

from __future__ import annotations

import os
import threading

from pyexp_daemon.daemon.mailbox import Mailbox


async def test_letters_of_a_thread_arrive_in_their_order() -> None:
    mailbox: Mailbox[int] = Mailbox()

    def put_all() -> None:
        for number in range(100):
            mailbox.put(number)

    thread = threading.Thread(target=put_all)
    thread.start()
    assert [await mailbox.take() for _ in range(100)] == list(range(100))
    thread.join()
    mailbox.close()


def test_a_letter_that_comes_too_late_is_written_into_nobodys_file() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.close()
    reader, writer = os.pipe()  # with the numbers that are free now
    try:
        mailbox.put(1)
        os.set_blocking(reader, False)
        os.write(writer, b"ours")
        assert os.read(reader, 100) == b"ours"
    finally:
        os.close(reader)
        os.close(writer)
