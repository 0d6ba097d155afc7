"""The background worker: applies what waits in the inbox, batch by batch, until nothing does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import InterfaceError, OperationalError

from engine.errors import ComponentUnavailable, DataFolderError, RequestError, StorageFull, SwitchyardError
from engine.retrieval.store.inbox import Inbox, WaitingBatch
from engine.retrieval.store.jobs import Jobs
from engine.values import WriteResult

BATCH_ITEMS = 32
BATCH_BYTES = 4 * 1024 * 1024
_MAX_DELAY_S = 30.0
# Rounds of a batch in which nothing could be done but come back later, such as for a parser that does not start.
_MAX_TRIES = 5
# Not the fault of any write: they are kept, and tried again.
_TROUBLE = (StorageFull, DataFolderError, ComponentUnavailable, OperationalError, InterfaceError, OSError)

_log = logging.getLogger(__name__)


class Backlog:
    """One thread, started when there is something to do. Killed at any moment, it goes on after the next start."""

    def __init__(
        self, inbox: Inbox, jobs: Jobs, apply: Callable[..., list[WriteResult]], *, first_delay_s: float = 1.0
    ) -> None:
        """
        Args:
            apply: `Writer.apply`.
            first_delay_s: pause after the first failed try; each further one doubles it, up to 30 s.
        """
        self._inbox = inbox
        self._jobs = jobs
        self._apply = apply
        self._first_delay_s = first_delay_s
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._num_failed_rounds = 0
        self._num_tries = 0
        self.problem: str | None = None

    def notify(self) -> None:
        """There may be something in the inbox."""
        with self._starting:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="backlog", daemon=True)
                self._thread.start()
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing any more."""
        self._stop.set()
        self._wake.set()

    def close(self) -> None:
        """Wait until the thread has ended; what it had begun is rolled back. May be called twice."""
        self.stop()
        with self._starting:
            # Garbage collection may close the retriever from within the thread itself.
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self._inbox.settle()
                batch = self._inbox.next_batch(BATCH_ITEMS, BATCH_BYTES)
                if batch is not None:
                    self._handle(batch)
                elif self._num_failed_rounds == 0:  # no tidying up while the database is in trouble
                    self._jobs.forget_old()
                self._num_failed_rounds, self.problem = 0, None
            except Exception as error:
                if not self._stop.is_set():
                    self._wait_after(error)
                continue
            if batch is None:
                self._wake.wait()

    def _handle(self, batch: WaitingBatch) -> None:
        """Apply a batch. Raises: what stands in the way of all of it."""
        is_last_try = self._num_tries >= _MAX_TRIES
        try:
            results = self._apply(batch, is_last_try=is_last_try)
        except _TROUBLE:
            raise
        except Exception as error:
            if len(batch.writes) > 1:
                for write in batch.writes:
                    self._handle(WaitingBatch(batch.collection, batch.tenant, (write,)))
                return
            (write,) = batch.writes
            _log.error("document %s of collection %s", write.item.id, batch.collection, exc_info=error)
            self._inbox.fail(write, _unexpected(error))
            return
        transient = [result.error for result in results if result.is_transient]
        if transient and len(transient) == len(results) and not is_last_try:
            self._num_tries += 1
            assert transient[0] is not None
            raise transient[0]
        self._num_tries = 0

    def _wait_after(self, error: Exception) -> None:
        message = str(error) if isinstance(error, SwitchyardError) else f"the database fails ({type(error).__name__})"
        if self.problem is None:
            known = isinstance(error, SwitchyardError)
            _log.error("writes wait in the inbox: %s", message, exc_info=None if known else error)
        self.problem = message
        self._stop.wait(min(self._first_delay_s * 2**self._num_failed_rounds, _MAX_DELAY_S))
        self._num_failed_rounds += 1


def _unexpected(error: Exception) -> RequestError:
    return RequestError(f"an unexpected error happened ({type(error).__name__}); the server's log has the details.")
