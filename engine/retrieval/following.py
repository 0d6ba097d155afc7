"""A retriever that writes nothing: it follows the operations log of a store that another process owns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from engine.config import RetrieverSettings
from engine.errors import BehindStore, DataFolderError, RequestError, StoreUnavailable, SwitchyardError
from engine.retrieval.encoding.encoders import LoadEncoder
from engine.retrieval.encoding.protocol import EncoderLike, RerankerLike
from engine.retrieval.generations.upcoming import Upcoming
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.index.own_folder import OwnFolder
from engine.retrieval.reading import Reader
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.store import CollectionState, Store
from engine.values import Evidence, Query

# Between two looks at the log: after a change, and while nothing happens.
_BUSY_S, _IDLE_S = 0.02, 0.25
# Between two looks of a query at whether its version is there.
_WAIT_S = 0.005
_UNHEALTHY_AFTER_S = 60

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Followed:
    """A collection as it is known here; `keys` are the chunks of each document, `weights` by tenant."""

    id: int
    created_at: float
    live: LiveCollection
    keys: dict[int, list[int]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    is_sound: bool = True


class Follower(Reader):
    """Searches what another process writes, each collection at a version that the store had. Thread-safe.

    Its vector rows and lexical indexes are its own. A step may take several versions at once: a search sees all of it
    or nothing. While the store cannot be read, searches of documents that did not change go on.
    """

    def __init__(
        self,
        data: Path,
        encoder: EncoderLike,
        settings: RetrieverSettings,
        reranker: RerankerLike | None = None,
        *,
        store: str | None = None,
        device: str = "cpu",
        freezing: Executor | None = None,
        load_encoder: LoadEncoder | None = None,
        patience_s: float = 0,
    ) -> None:
        """Load every collection as the store has it; call `start` to follow from then on.

        Args:
            data: the folder that the writing retriever owns. Its lock is not taken.
            store: URL of a PostgreSQL database, None for the SQLite file in `data`.
            device, freezing, load_encoder: as of Reader.
            patience_s: how long to wait for a store that is not there yet.
        Raises: DataFolderError when there is none; ModelSourceError when the encoder of a collection cannot be had.
        """
        super().__init__(encoder, settings, reranker, device=device, freezing=freezing, load_encoder=load_encoder)
        self._data = data
        self._followed: dict[str, _Followed] = {}
        self._newest: dict[str, int] = {}
        self._num_loads = 0
        self._read_at = 0.0
        self._failing_since: float | None = None
        self._stepping = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        with contextlib.ExitStack() as opened:
            opened.callback(self._freezer.close)
            if self._pool is not None:
                opened.callback(self._pool.shutdown)
            self._store = _open(data, store, settings.passage_memory_bytes, patience_s)
            opened.callback(self._store.close)
            self._folder = OwnFolder("switchyard-follower-")
            opened.callback(self._folder.remove)
            self._upcoming = Upcoming(self._store, self._encoders, self._new_followed)
            for state in self._store.collections():
                self._encoders.of(state.name, state.encoder, state.model)
            self.catch_up()
            self._store.passages.hold()
            opened.pop_all()

    def start(self) -> None:
        """Follow the log in a thread until `close`."""
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def catch_up(self) -> bool:
        """Come to the versions that the store has now, or to later ones; whether anything was new.

        Raises: DataFolderError, StoreUnavailable when the store cannot be read.
        """
        with self._stepping, self._store.reading() as connection:
            return self._step(connection)

    async def wait_for(self, query: Query, timeout_s: float) -> None:
        """Return once the query's version is here, or is known to be in no store: then the search says so.

        Raises: BehindStore after `timeout_s`.
        """
        begun_at = time.monotonic()
        while self._version(query.collection) < query.min_version:
            if self._read_at > begun_at and self._newest.get(query.collection, 0) < query.min_version:
                return
            if time.monotonic() - begun_at > timeout_s:
                raise BehindStore(query.collection, self._version(query.collection), query.min_version)
            self._wake.set()
            await asyncio.sleep(_WAIT_S)

    def evidence(self, queries: Sequence[Query]) -> list[Evidence | RequestError]:
        """See Reader; collections that are not known yet, and documents replaced meanwhile, are looked for again."""
        if any(query.collection not in self._visible(query.tenant) for query in queries):
            self._look()
        answers = super().evidence(queries)
        behind = [i for i, answer in enumerate(answers) if isinstance(answer, BehindStore)]
        if behind:
            for i, answer in zip(behind, self._evidence_of_one_moment([queries[i] for i in behind]), strict=True):
                answers[i] = answer
        return answers

    def collections(self, *, tenant: str = "") -> list[dict[str, Any]]:
        """See Reader; as the store has them now."""
        self._look()
        return super().collections(tenant=tenant)

    def check(self) -> None:
        """Raises: DataFolderError when the log has not been followed for a minute."""
        failing_s = 0.0 if self._failing_since is None else time.monotonic() - self._failing_since
        if failing_s > _UNHEALTHY_AFTER_S or (self._thread is not None and not self._thread.is_alive()):
            raise DataFolderError(f"{self._data}: the operations log has not been read for {failing_s:.0f} s.")

    def status(self) -> dict[str, Any]:
        """See Reader; `read_s_ago`: seconds since all that the store had was here."""
        read_s_ago = round(time.monotonic() - self._read_at, 3)
        return super().status() | {"follows": self._failing_since is None, "read_s_ago": read_s_ago}

    def close(self) -> None:
        """End the thread, and remove what was kept on disk; may be called twice."""
        self._freezer.close()
        self._is_closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        with self._stepping:
            self._upcoming.close()
            for name in list(self._followed):
                self._drop(name)
            self._store.close()
            self._folder.remove()
            if self._pool is not None:
                self._pool.shutdown()

    def _run(self) -> None:
        wait_s = _BUSY_S
        while True:
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._is_closed:
                return
            try:
                wait_s = _BUSY_S if self.catch_up() else _IDLE_S
                self._failing_since = None
            except Exception as error:
                wait_s = _IDLE_S
                self._note(error)

    def _note(self, error: Exception) -> None:
        """Say once that the log cannot be followed."""
        if self._is_closed or self._failing_since is not None:
            return
        known = isinstance(error, SwitchyardError)
        _log.error("the operations log cannot be followed: %s", error, exc_info=None if known else error)
        self._failing_since = time.monotonic()

    def _look(self) -> None:
        """Catch up where the store can be read; else go on with what is known."""
        with contextlib.suppress(DataFolderError, StoreUnavailable):
            self.catch_up()

    def _evidence_of_one_moment(self, queries: Sequence[Query]) -> list[Evidence | RequestError]:
        """Answer with passages as old as the indexes, however fast their documents are replaced meanwhile."""
        try:
            with self._stepping, self._store.passages.moment() as connection:
                self._step(connection)
                return super().evidence(queries)
        except StoreUnavailable as error:
            return [error] * len(queries)

    def _step(self, connection: Connection) -> bool:
        """Come to the versions that the connection's transaction sees; whether anything was new."""
        self._check_open()
        read_at = time.monotonic()
        reader = LogReader(connection)
        states = reader.collections()
        weights = reader.weights()
        changed = [self._follow(state, reader) for state in states]
        for name in set(self._followed) - {state.name for state in states}:
            self._drop(name)
        for name, followed in self._followed.items():
            _use(followed, weights.get(name, {}))
        changed.append(self._upcoming.step(connection, reader))
        self._newest = {state.name: state.version for state in states}
        self._read_at = read_at
        return any(changed)

    def _check_known(self, collection: str, tenant: str) -> None:
        self._check_open()
        if collection not in self._visible(tenant):
            self._look()
        super()._check_known(collection, tenant)

    def _version(self, collection: str) -> int:
        live = self._live.get(collection)
        return 0 if live is None else live.version

    def _follow(self, state: CollectionState, reader: LogReader) -> bool:
        encoder = self._encoders.sought(state.name, state.encoder, state.model)
        if encoder is None:
            return False  # until it is loaded, what was there goes on
        followed = self._followed.get(state.name)
        known = None if followed is None else (followed.id, followed.created_at, followed.live.generation)
        if followed is None or known != (state.id, state.created_at, state.generation) or not followed.is_sound:
            self._load(state, encoder, reader)
            return True
        if state.version == followed.live.version:
            return False
        step = reader.step(state, followed.live.version, followed.keys)
        if step is None:
            self._load(state, encoder, reader)
            return True
        try:
            followed.live.apply(
                step.changes, step.vectors, step.version, lambda: reader.texts(state.name, state.generation)
            )
        except BaseException:
            followed.is_sound = False  # part of the step may be there
            raise
        for document in step.gone:
            del followed.keys[document]
        followed.keys.update(step.keys)
        return True

    def _load(self, state: CollectionState, encoder: EncoderLike, reader: LogReader) -> None:
        """Take a collection as it is now, in place of what was here under its name."""
        beside = self._upcoming.take(state, reader)
        if beside is not None:
            followed = _Followed(state.id, state.created_at, beside.live, beside.keys)
        else:
            followed = _Followed(state.id, state.created_at, self._new_followed(state, encoder))
            self._fill(followed, state, reader)
        _use(followed, reader.weights().get(state.name, {}))
        old = self._followed.get(state.name)
        self._followed[state.name] = followed
        self._live[state.name] = followed.live
        if old is not None:
            old.live.close()

    def _new_followed(self, state: CollectionState, encoder: EncoderLike) -> LiveCollection:
        self._num_loads += 1
        return self._new_live(state, encoder, self._folder.path / f"{state.name}-{self._num_loads}")

    def _fill(self, followed: _Followed, state: CollectionState, reader: LogReader) -> None:
        documents = list(reader.documents(state.id))
        followed.keys = {document: [] for _, document, _ in documents}
        pieces = reader.chunks(state)

        def noted() -> Any:
            for piece in pieces:
                for _, chunk, _ in piece:
                    followed.keys[chunk.document].append(chunk.key)
                yield piece

        followed.live.fill(documents, noted())

    def _drop(self, name: str) -> None:
        self._live.pop(name, None)
        self._followed.pop(name).live.close()


def _use(followed: _Followed, weights: dict[str, float]) -> None:
    if weights == followed.weights:
        return
    for tenant in followed.weights.keys() | weights.keys():
        followed.live.use_alpha(tenant, weights.get(tenant))
    followed.weights = weights


def _open(data: Path, url: str | None, passage_memory_bytes: int, patience_s: float) -> Store:
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            return Store(data, url=url, passage_memory_bytes=passage_memory_bytes, is_owner=False)
        except (DataFolderError, StoreUnavailable):
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_IDLE_S)
