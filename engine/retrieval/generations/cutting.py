"""Chunks and vectors for documents that have none of a generation yet; whoever waits for an answer goes first."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from engine.errors import DataFolderError
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.foreground import Foreground
from engine.retrieval.index.rows import check_vectors
from engine.retrieval.parsing.outline import parsed_again
from engine.retrieval.preparing import cut
from engine.retrieval.recipe import Recipe
from engine.retrieval.store.generations import Generation, is_under_way
from engine.retrieval.store.jobs import advance_job
from engine.retrieval.store.log_reader import LogReader
from engine.retrieval.store.store import Store
from engine.retrieval.store.uncut import Uncut, add_chunks, read_uncut, uncut_numbers
from engine.retrieval.store.write import NewChunk

_DOCUMENTS_PER_PIECE = 32
_CHARS_PER_PIECE = 256 * 1024
# Texts that are embedded between two looks at whether somebody waits.
_TEXTS_PER_PIECE = 64
# So many times everything that came in meanwhile is cut as well; each time after that, more may be left.
_NUM_FULL_PASSES, _FEW = 3, 8
Cut = list[tuple[Uncut, Sequence[NewChunk]]]


class Cancelled(Exception):
    """Somebody has cancelled the job."""


class Cutter:
    """Works through the documents of one generation. Killed at any moment, the next one goes on where it was."""

    def __init__(
        self,
        store: Store,
        generation: Generation,
        recipe: Recipe,
        foreground: Foreground,
        check: Callable[[], None],
    ) -> None:
        """`check` is called between pieces and raises where there is to be no other."""
        self._store = store
        self._generation = generation
        self._recipe = recipe
        self._foreground = foreground
        self._check = check

    def work(self) -> tuple[int, list[int]]:
        """Cut and embed until no document is left, or few enough where others are written as fast.

        Returns: the collection's version at a moment, and the documents that were left then.
        Raises: Cancelled.
        """
        enough = 0
        for num_passes in itertools.count():
            with self._store.reading() as connection:
                left = uncut_numbers(connection, self._generation)
                version = LogReader(connection).version(self._generation.collection)
            self._count(0, len(left))
            if len(left) <= enough:
                return version, left
            after = -1
            while (last := self._piece(after)) is not None:
                after = last
            if num_passes >= _NUM_FULL_PASSES:
                enough = max(_FEW, 2 * enough)
        raise AssertionError

    def cut(self, documents: Sequence[Uncut], *, is_urgent: bool = False) -> tuple[Cut, dict[str, Vectors]]:
        """The chunks of documents, and the vector [E] of each text by its hash; known ones are not embedded again.

        `is_urgent`: others wait for it.
        """
        chunks: Cut = []
        texts: dict[str, str] = {}
        for document in documents:
            parsed = parsed_again(
                document.text, document.title, document.content_type, document.outline, document.headings
            )
            mine, embedded = cut(document.id, parsed, self._recipe.chunker)
            if not mine:
                raise DataFolderError(f"document {document.id!r} has text, and no chunk comes of it. Write it anew.")
            chunks.append((document, mine))
            texts |= embedded
        encoder = self._recipe.encoder
        vectors = self._store.embeddings(encoder.identity.digest, texts)
        missing = [text_hash for text_hash in texts if text_hash not in vectors]
        for first in range(0, len(missing), _TEXTS_PER_PIECE):
            piece = missing[first : first + _TEXTS_PER_PIECE]
            self._check()
            if not is_urgent:
                self._foreground.step_aside()
            rows = encoder.encode([texts[text_hash] for text_hash in piece])
            check_vectors(rows, encoder.dim)
            vectors.update(zip(piece, rows, strict=True))
        return chunks, vectors

    def _piece(self, after: int) -> int | None:
        """Keep the chunks of some documents behind number `after`; the last one's number, None where there is none."""
        with self._store.reading() as connection:
            room = {"limit": _DOCUMENTS_PER_PIECE, "max_chars": _CHARS_PER_PIECE}
            documents = read_uncut(connection, self._generation, after=after, **room)
        if not documents:
            return None
        chunks, vectors = self.cut(documents)
        self._foreground.step_aside()
        self._check()
        with self._store.writing(is_urgent=False) as connection:
            if not is_under_way(connection, self._generation):
                raise Cancelled
            num_done = add_chunks(connection, self._generation, chunks, vectors)
            advance_job(connection, str(self._generation.job), num_done)
        return documents[-1].pk

    def _count(self, num_done: int, num_left: int) -> None:
        with self._store.writing(is_urgent=False) as connection:
            if not is_under_way(connection, self._generation):
                raise Cancelled
            advance_job(connection, str(self._generation.job), num_done, num_left)
