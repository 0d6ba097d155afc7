"""The fair lock: whoever asks next is served next."""

from __future__ import annotations

import threading
import time

from engine.retrieval.encoding.turns import Turns


def test_a_waiting_query_goes_before_the_next_batch_of_a_long_call():
    turns, order, first_taken = Turns(), [], threading.Event()

    def ingest():
        for batch in range(3):
            with turns.take():
                order.append(batch)
                first_taken.set()
                while turns.num_waiting < 1 and "query" not in order:
                    time.sleep(0.001)

    ingesting = threading.Thread(target=ingest)
    ingesting.start()
    first_taken.wait()
    with turns.take():
        order.append("query")
    ingesting.join()
    assert order == [0, "query", 1, 2]


def order_of_turns(asked: list[bool]) -> list[bool]:
    """Who gets the lock, in order, when all of `asked` (is urgent) wait for it in this order."""
    turns, order = Turns(), []

    def work(is_urgent: bool) -> None:
        with turns.take(is_urgent=is_urgent):
            order.append(is_urgent)

    with turns.take():
        threads = []
        for is_urgent in asked:
            threads.append(threading.Thread(target=work, args=(is_urgent,)))
            threads[-1].start()
            while turns.num_waiting < len(threads):
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    return order


def test_urgent_turns_come_first_and_do_not_keep_others_out():
    assert order_of_turns([False, True, True]) == [True, True, False]
    assert order_of_turns([False, *[True] * 10]) == [True] * 8 + [False] + [True] * 2
