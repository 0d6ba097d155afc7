"""A fair lock, so that a steady stream of searches starves neither a write nor another search."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

# Urgent turns in a row while somebody else waits: ingestion slows under load and never stops.
_MAX_URGENT_IN_A_ROW = 8


class Turns:
    """A lock in the order of asking, urgent ones first.

    A plain lock lets the thread that has just released it take it again at once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._urgent: deque[object] = deque()
        self._others: deque[object] = deque()
        self._is_taken = False
        self._num_urgent_in_a_row = 0

    @contextlib.contextmanager
    def take(self, *, is_urgent: bool = False) -> Iterator[None]:
        """Hold the lock inside a `with` block."""
        ticket = object()
        queue = self._urgent if is_urgent else self._others
        with self._changed:
            queue.append(ticket)
            self._changed.wait_for(lambda: not self._is_taken and self._next_queue()[0] is ticket)
            queue.popleft()
            self._is_taken = True
            self._num_urgent_in_a_row = self._num_urgent_in_a_row + 1 if is_urgent and self._others else 0
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()

    @property
    def num_waiting(self) -> int:
        """Threads that wait for their turn."""
        return len(self._urgent) + len(self._others)

    def _next_queue(self) -> deque[object]:
        is_others_turn = self._others and self._num_urgent_in_a_row >= _MAX_URGENT_IN_A_ROW
        return self._others if is_others_turn or not self._urgent else self._urgent
