"""The fair lock: whoever asks next is served next."""

from __future__ import annotations

import threading
import time

from engine.retrieval.turns import Turns


def test_a_waiting_query_goes_before_the_next_batch_of_a_long_call():
    turns, order, first_taken = Turns(), [], threading.Event()

    def ingest():
        for batch in range(3):
            with turns.take():
                order.append(batch)
                first_taken.set()
                while len(turns._waiting) < 2 and "query" not in order:
                    time.sleep(0.001)

    ingesting = threading.Thread(target=ingest)
    ingesting.start()
    first_taken.wait()
    with turns.take():
        order.append("query")
    ingesting.join()
    assert order == [0, "query", 1, 2]
