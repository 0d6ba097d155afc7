"""Whoever waits for an answer goes first: background work asks here before each of its pieces."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

# Background work slows down under a steady stream of foreground work and never stops.
_MAX_WAIT_S = 1.0


class Foreground:
    """Counts the foreground work that is under way. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_running = 0

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """The block is foreground work."""
        with self._changed:
            self._num_running += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_running -= 1
                self._changed.notify_all()

    def step_aside(self, at_most_s: float = _MAX_WAIT_S) -> None:
        """Return when no foreground work is under way, or after `at_most_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_running == 0, at_most_s)
