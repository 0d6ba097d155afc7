"""A collection's lexical index in step with the store: left out of searches where it cannot follow, then built anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from engine.errors import DataFolderError, StoreUnavailable, SwitchyardError
from engine.retrieval.index.lexical import LexicalChunk, LexicalIndex
from engine.retrieval.store.write import Change, IndexedChunk

# Chunks with their tenants.
Texts = Iterable[tuple[str, IndexedChunk]]

_log = logging.getLogger(__name__)


class LexicalLeg:
    """Owns the index. Not thread-safe: the collection holds a lock, but for `write`, during which searches go on."""

    def __init__(self, name: str, folder: Path, *, threads: int) -> None:
        """`name` is the collection's, for the log; see LexicalIndex for the others."""
        self._name = name
        self.index = LexicalIndex(folder, threads=threads)
        self.is_behind = False

    def open(self, version: int, num_chunks: int) -> bool:
        """Open what is on disk; whether it is all of the collection at this version, else `rebuild` must come next."""
        return self.index.open() == version and self.index.num_chunks == num_chunks

    def rebuild(self, texts: Texts, version: int) -> None:
        """Begin anew with these. Raises: DataFolderError when the index cannot be written."""
        self.index.rebuild((_lexical(tenant, chunk) for tenant, chunk in texts), version)

    def write(self, changes: Mapping[str, Change], version: int) -> None:
        """Put changes, by tenant, on disk; searches see them after `show`."""
        if self.is_behind:
            return
        try:
            removed = [key for change in changes.values() for key in change.removed]
            added = [_lexical(tenant, chunk) for tenant, change in changes.items() for chunk in change.added]
            self.index.commit(removed, added, version)
        except DataFolderError as error:
            self._leave_out(error)

    def show(self, version: int, num_chunks: int, texts: Callable[[], Texts]) -> None:
        """Let searches see the words of the version that the store has committed, which has so many chunks.

        `texts`: every one of them, for an index that must be built anew.
        """
        try:
            if self.is_behind:
                self.rebuild(texts(), version)
                self.is_behind = False
            else:
                self.index.show()
                # tantivy may lose a deletion (once in thousands of writes under load), and find a chunk that is gone.
                if self.index.num_chunks != num_chunks:
                    found = self.index.num_chunks
                    _log.warning("lexical index of %s: %d chunks, not %d; it is rebuilt", self._name, found, num_chunks)
                    self.rebuild(texts(), version)
        except (DataFolderError, StoreUnavailable) as error:
            self._leave_out(error)

    def close(self) -> None:
        """Give up the files."""
        self.index.close()

    def _leave_out(self, error: SwitchyardError) -> None:
        # The store decides whether the write succeeds, not a cache of it.
        if not self.is_behind:
            _log.error("collection %s is searched by meaning alone until a write succeeds: %s", self._name, error)
        self.is_behind = True


def _lexical(tenant: str, chunk: IndexedChunk) -> LexicalChunk:
    return LexicalChunk(chunk.key, chunk.document, tenant, chunk.title, chunk.heading, chunk.text)
