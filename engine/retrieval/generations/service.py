"""Generations of the collections: what there is, and what is asked for and done in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from sqlalchemy.exc import InterfaceError, OperationalError

from engine.config import RetrieverSettings
from engine.errors import (
    ComponentUnavailable,
    DataFolderError,
    InvalidRequest,
    StorageFull,
    SwitchyardError,
)
from engine.retrieval.foreground import Foreground
from engine.retrieval.generations.building import Building, Place
from engine.retrieval.generations.cutting import Cancelled
from engine.retrieval.index.freezing import step_behind
from engine.retrieval.recipe import chunking_of
from engine.retrieval.store.generations import Generation, Generations, Task
from engine.retrieval.store.store import Store

_MAX_DELAY_S = 30.0
# Not the fault of what was asked for: it is tried again.
_TROUBLE = (StorageFull, DataFolderError, ComponentUnavailable, OperationalError, InterfaceError, OSError)

_log = logging.getLogger(__name__)


class Closing(Exception):
    """The retriever closes; the next start goes on."""


class GenerationService:
    """Takes orders and works on them, one at a time, in a thread of low priority. Thread-safe."""

    def __init__(
        self,
        store: Store,
        settings: RetrieverSettings,
        place: Place,
        foreground: Foreground,
        check_known: Callable[[str], None],
        *,
        executor: Executor | None = None,
        first_delay_s: float = 1.0,
    ) -> None:
        """
        Args:
            settings: what a new generation is made by unless it is asked for otherwise.
            place: where the collections are served.
            check_known: raises UnknownCollection.
            executor: runs the work; default: one thread.
            first_delay_s: pause after the first failed try; each further one doubles it, up to 30 s.
        """
        self._rows = Generations(store)
        self._settings = settings
        self._check_known = check_known
        self._executor = executor or ThreadPoolExecutor(1, "generations", initializer=step_behind)
        self._first_delay_s = first_delay_s
        self._stop = threading.Event()
        self._changed = threading.Lock()
        self._is_asked = False
        self._is_running = False
        self._building = Building(store, place, foreground, self._check)
        self.problem: str | None = None

    def resume(self) -> None:
        """Go on with what was under way when the last process ended."""
        if self._rows.under_way():
            self._notify()

    def list(self, collection: str) -> list[dict[str, Any]]:
        """Those of a collection that are kept, by number. Raises: UnknownCollection."""
        self._check_known(collection)
        return [_shown(one) for one in self._rows.all(collection)]

    def build(
        self,
        collection: str,
        *,
        model: str | None = None,
        chunk_tokens: int | None = None,
        chunk_overlap_tokens: int | None = None,
        switch: Task = "if-not-worse",
    ) -> str:
        """Begin a new generation; the id of the job that counts its documents.

        Args:
            model, chunk_tokens, chunk_overlap_tokens: default: as the settings say.
            switch: whether it is put in place once it is built.
        Raises: UnknownCollection; InvalidRequest for settings that make no chunks or what is there already; Conflict.
        """
        self._check_known(collection)
        asked = {"chunk_tokens": chunk_tokens, "chunk_overlap_tokens": chunk_overlap_tokens}
        chunking = chunking_of(self._settings) | {name: value for name, value in asked.items() if value is not None}
        if chunking["chunk_overlap_tokens"] >= chunking["chunk_tokens"]:
            raise InvalidRequest(
                f"chunk_overlap_tokens={chunking['chunk_overlap_tokens']} must be below "
                f"chunk_tokens={chunking['chunk_tokens']}.",
                param="chunk_overlap_tokens",
            )
        model = model or self._settings.model
        (current,) = [one for one in self._rows.all(collection) if one.is_current]
        if (current.model, current.chunking) == (model, chunking):
            raise InvalidRequest(
                f"generation {current.number} of collection {collection!r} is made by {model} with {chunking} already. "
                "Name another model or other sizes, or change retriever.model and start the server again."
            )
        return self._started(self._rows.add(collection, chunking, model, switch))

    def use(self, collection: str, number: int) -> str:
        """Begin to bring an earlier generation back; the id of the job.

        Raises: UnknownCollection, UnknownGeneration, InvalidRequest for the current one, Conflict.
        """
        self._check_known(collection)
        return self._started(self._rows.begin_use(collection, number))

    def drop(self, collection: str, number: int) -> dict[str, Any]:
        """Remove a generation that is not in place; what it was.

        Raises: UnknownCollection, UnknownGeneration, Conflict.
        """
        self._check_known(collection)
        return _shown(self._rows.drop(collection, number))

    def cancel(self, job: str) -> None:
        """End what a job counts; what was built of it stays, to be used or dropped."""
        self._rows.cancel(job)

    def close(self) -> None:
        """Stop within a piece of work; the next start goes on. May be called twice."""
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)

    def _started(self, job: str) -> str:
        self._notify()
        return job

    def _notify(self) -> None:
        with self._changed:
            self._is_asked = True
            if self._is_running:
                return
            self._is_running = True
        try:
            self._executor.submit(self._run)
        except RuntimeError:  # closed: the next start finds it
            return

    def _run(self) -> None:
        delay_s = self._first_delay_s
        while not self._stop.is_set():
            with self._changed:
                self._is_asked = False
            try:
                for one in self._rows.under_way():
                    self._take(one)
                self.problem, delay_s = None, self._first_delay_s
            except Closing:
                return
            except Exception as error:
                self._note(error)
                self._stop.wait(delay_s)
                delay_s = min(2 * delay_s, _MAX_DELAY_S)
                continue
            with self._changed:
                if not self._is_asked:
                    self._is_running = False
                    return

    def _take(self, generation: Generation) -> None:
        self._check()
        try:
            self._building.run(generation)
        except (Cancelled, Closing, *_TROUBLE) as error:
            if not isinstance(error, Cancelled):
                raise
        except SwitchyardError as error:
            self._rows.end(generation, "failed", error=str(error))
        except Exception as error:
            _log.error("generation %d of %s failed", generation.number, generation.name, exc_info=error)
            why = f"an unexpected error happened ({type(error).__name__}); the server's log has the details."
            self._rows.end(generation, "failed", error=why)

    def _note(self, error: Exception) -> None:
        message = str(error) if isinstance(error, SwitchyardError) else f"the database fails ({type(error).__name__})"
        if self.problem is None and not self._stop.is_set():
            known = isinstance(error, SwitchyardError)
            _log.error("the building of a generation waits: %s", message, exc_info=None if known else error)
        self.problem = message

    def _check(self) -> None:
        if self._stop.is_set():
            raise Closing


def _shown(one: Generation) -> dict[str, Any]:
    """A generation as `GET /v1/collections/{c}/generations` shows it."""
    state = "current" if one.is_current else "building" if one.task not in (None, "use") else "kept"
    return {
        "generation": one.number,
        "state": state,
        "model": one.model,
        "encoder": one.encoder.get("name"),
        "digest": one.encoder.get("digest"),
        **one.chunking,
        "created_at": one.created_at,
        "task": one.task,
        "job": one.job,
        "report": one.report,
    }
