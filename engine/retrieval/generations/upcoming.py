"""Generations that may soon take their collections' places, as a follower of the store holds them ready."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable

from sqlalchemy import Connection

from engine.retrieval.encoding.encoders import Encoders
from engine.retrieval.encoding.protocol import EncoderLike
from engine.retrieval.generations.beside import Beside
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.store.generations import Generation, read_generations
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.store import CollectionState, Store

# Documents or chunks of one step; what is searched now is not followed meanwhile.
_ROWS_PER_STEP = 512
_Key = tuple[int, float, int]

_log = logging.getLogger(__name__)


class Upcoming:
    """Fills them in step with the process that builds them, so that a switch finds them here. Not thread-safe."""

    def __init__(
        self, store: Store, encoders: Encoders, new_live: Callable[[CollectionState, EncoderLike], LiveCollection]
    ) -> None:
        """`new_live` makes an empty index of a generation."""
        self._store = store
        self._encoders = encoders
        self._new_live = new_live
        self._held: dict[_Key, Beside] = {}
        self._whole: set[_Key] = set()
        self._failed: set[str | None] = set()

    def step(self, connection: Connection, reader: LogReader) -> bool:
        """Take in a piece of each that is under way, and let go of the others; whether there was a piece."""
        wanted = {_key(one.state()): one for one in read_generations(connection) if _is_coming(one)}
        for key in self._held.keys() - wanted.keys():
            self._drop(key)
        taken = [self._take_in(key, one, reader) for key, one in wanted.items()]
        return any(taken)

    def take(self, state: CollectionState, reader: LogReader) -> Beside | None:
        """The generation that is in the collection's place now, with all of it; None where it is not held."""
        beside = self._held.pop(_key(state), None)
        if beside is not None:
            beside.catch_up(reader, state.version, None)
        return beside

    def close(self) -> None:
        """Let go of all."""
        for key in list(self._held):
            self._drop(key)

    def _take_in(self, key: _Key, one: Generation, reader: LogReader) -> bool:
        encoder = self._encoders.sought(one.name, one.encoder, one.model)
        if encoder is None or one.job in self._failed:
            return False
        try:
            beside = self._held.get(key)
            if beside is None:
                beside = self._held[key] = Beside(one.state(), self._new_live(one.state(), encoder))
            is_whole = beside.catch_up(reader, one.version, _ROWS_PER_STEP)
        except Exception as error:
            # What is searched now goes on, and the switch loads the generation anew.
            _log.error("generation %d of %s cannot be held ready", one.number, one.name, exc_info=error)
            self._failed.add(one.job)
            self._drop(key)
            return False
        if is_whole and key not in self._whole:
            self._whole.add(key)
            self._store.passages.hold(one.collection, one.number)
        return not is_whole

    def _drop(self, key: _Key) -> None:
        beside = self._held.pop(key, None)
        self._whole.discard(key)
        if beside is not None:
            beside.live.close()
            shutil.rmtree(beside.live.folder, ignore_errors=True)


def _key(state: CollectionState) -> _Key:
    return state.id, state.created_at, state.generation


def _is_coming(one: Generation) -> bool:
    return one.task is not None and bool(one.encoder) and not one.is_current
