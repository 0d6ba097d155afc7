"""Executors that run a task when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class HeldExecutor(Executor):
    """Keeps tasks until `run`."""

    def __init__(self) -> None:
        self._held: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._is_closed = False

    def submit(self, task, /, *args, **kwargs):
        if self._is_closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = Future()
        self._held.append((future, lambda: task(*args, **kwargs)))
        return future

    def run(self) -> int:
        """Run what was submitted so far; how many tasks that were."""
        held, self._held = self._held, []
        for future, task in held:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)
        return len(held)

    def shutdown(self, wait=True, *, cancel_futures=False) -> None:
        self._is_closed = True
        for future, _ in self._held:
            if cancel_futures:
                future.cancel()


class ImmediateExecutor(HeldExecutor):
    """Runs a task before `submit` returns."""

    def submit(self, task, /, *args, **kwargs):
        future = super().submit(task, *args, **kwargs)
        self.run()
        return future
