"""Work on a generation that the test interrupts: between its pieces things happen, and it may stop there for good."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from engine.retrieval.service import Retriever


class Interrupted(threading.Event):
    """The service's stop signal, which is looked at between pieces: at the n-th look, something happens first."""

    def __init__(self, happens: Mapping[int, Callable[[], None]], *, stop_at: int | None = None) -> None:
        super().__init__()
        self._happens = happens
        self._stop_at = stop_at
        self._is_busy = False
        self.num_looks = 0

    def is_set(self) -> bool:
        if self._is_busy:
            return super().is_set()
        self.num_looks += 1
        self._is_busy = True
        try:
            self._happens.get(self.num_looks, lambda: None)()
        finally:
            self._is_busy = False
        if self.num_looks == self._stop_at:
            self.set()
        return super().is_set()


def interrupt(
    retriever: Retriever, happens: Mapping[int, Callable[[], None]], stop_at: int | None = None
) -> Interrupted:
    """From now on, let things happen at certain looks of the retriever's work on generations."""
    stop = Interrupted(happens, stop_at=stop_at)
    retriever.generations._stop = stop
    return stop
