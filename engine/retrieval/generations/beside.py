"""A generation that is not searched yet, in memory: it takes in what the store has of it, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.live import LiveCollection
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.store import CollectionState
from engine.retrieval.store.write import Change


@dataclass(slots=True)
class Catch:
    """What a piece brings: changes by tenant, and the vector [E] of each added chunk by its text's hash."""

    version: int
    changes: dict[str, Change] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)

    def change(self, tenant: str) -> Change:
        """That of a tenant."""
        return self.changes.setdefault(tenant, Change(self.version))


class Beside:
    """Follows one generation of a collection while another one is searched. Not thread-safe.

    Documents come in the order of their numbers, then chunks in the order of theirs, which only grow; what the log says
    was written since goes first. So each piece ends at one moment of the store, of which `live` holds a part, then all.
    """

    def __init__(self, state: CollectionState, live: LiveCollection) -> None:
        """
        Args:
            state: the collection as it would be with the generation in place.
            live: new, at a version of the collection that the log still tells of.
        """
        self.live = live
        self.keys: dict[int, list[int]] = {}  # the chunks of each document
        self._state = state
        self._last_document = -1
        self._last_chunk = -1
        live.create()

    def catch_up(self, reader: LogReader, version: int, max_rows: int | None) -> bool:
        """Take in what is new, at most `max_rows` documents or chunks of it; whether all of the moment is here.

        Args:
            version: the collection's at the moment that the reader sees.
        """
        caught, is_whole = self.read(reader, version, max_rows)
        if caught.changes:
            name, generation, up_to = self._state.name, self._state.generation, self._last_chunk
            self.live.apply(caught.changes, caught.vectors, version, lambda: reader.texts(name, generation, up_to))
        else:
            self.live.version = version
        return is_whole

    def read(self, reader: LogReader, version: int, max_rows: int | None) -> tuple[Catch, bool]:
        """What `catch_up` takes in, for the caller to apply; another call begins behind it."""
        caught = Catch(version)
        self._read_log(reader, caught)
        limit = max_rows
        rows = list(reader.documents(self._state.id, after=self._last_document, limit=limit))
        for tenant, document, fields in rows:
            self._last_document = document
            if document not in self.keys:
                self.keys[document] = []
                caught.change(tenant).documents[document] = fields
        if limit is not None and len(rows) == limit:
            return caught, False
        num_chunks = 0
        for piece in reader.chunks(self._state, after=self._last_chunk, limit=limit):
            for tenant, chunk, vector in piece:
                self._last_chunk = chunk.key
                self.keys[chunk.document].append(chunk.key)
                caught.change(tenant).added.append(chunk)
                caught.vectors[chunk.text_hash] = vector
            num_chunks += len(piece)
        return caught, limit is None or num_chunks < limit

    def _read_log(self, reader: LogReader, caught: Catch) -> None:
        """Let go of what documents had that were written or deleted since, and see what filters see of them now."""
        if self.live.version == caught.version:
            return
        changed = reader.changed(self._state.id, self.live.version)
        there = set()
        for tenant, document, fields in reader.documents(self._state.id, list(changed)):
            there.add(document)
            change = caught.change(tenant)
            change.removed += self.keys.get(document, [])
            change.documents[document] = fields
            self.keys[document] = []
        for document, tenant in changed.items():
            if document in self.keys and document not in there:
                change = caught.change(tenant)
                change.removed += self.keys.pop(document)
                change.removed_documents.append(document)
