"""The lexical leg: BM25 over a collection's chunks, in an index on disk that can always be rebuilt from the store."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tantivy import Index, IndexWriter, Occur, Query, Searcher, TextAnalyzerBuilder, Tokenizer

from engine.errors import DataFolderError
from engine.retrieval.index.lexical_files import clear, damage
from engine.retrieval.index.lexical_schema import (
    TOKENIZER,
    WEIGHTS,
    LexicalChunk,
    new_document,
    new_marker,
    new_schema,
    tenant_term,
)
from engine.retrieval.index.terms import terms_of

__all__ = ["LexicalChunk", "LexicalIndex"]

_log = logging.getLogger(__name__)

_HEAP_BYTES = 15_000_000  # the least that tantivy allows
_MAX_QUERY_TERMS = 256
# Sums of float32 depend on the order of the terms; rounded, equal chunks tie.
_SCORE_DECIMALS = 4

Hits = list[tuple[int, float]]


class LexicalIndex:
    """BM25 (k1=1.2, b=0.75) over text, titles and words as written. Not thread-safe: the owner holds a lock.

    How rare a word is counts over all tenants of the collection; which chunks are found never does.
    A file holds the commit's version together with its chunks, so that a kill cannot separate them.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        """An index in `folder`, which belongs to it alone; `threads` of a search for many queries. Call `open` next."""
        self._folder = folder
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._index: Index | None = None
        self._searcher: Searcher | None = None
        self._writer: IndexWriter | None = None
        self._version: int | None = None
        self._schema = new_schema()

    def open(self) -> int | None:
        """Open what is on disk.

        Returns: the version of the collection that it holds; None when `rebuild` must come next. Then the folder is
            empty, and a warning has said why unless there was no index.
        Raises: DataFolderError when the folder cannot be written.
        """
        self.close()
        if not self._folder.is_dir() or not any(self._folder.iterdir()):
            return None
        why = damage(self._folder)
        if why is None:
            try:
                self._attach(Index(self._schema, path=str(self._folder)))
                self._version = self._stored_version()
                return self._version
            except (ValueError, OSError) as error:
                why = " ".join(str(error).split())
        _log.warning("lexical index %s: %s; it is rebuilt from the store", self._folder, why)
        self.close()
        with self._writing():
            clear(self._folder)
        return None

    def rebuild(self, chunks: Iterable[LexicalChunk], version: int) -> None:
        """Replace everything by `chunks` at `version`. Killed on the way, it leaves an index that opens as None.

        Raises: DataFolderError when the folder cannot be written.
        """
        self.close()
        with self._writing():
            clear(self._folder)
            self._attach(Index(self._schema, path=str(self._folder), reuse=False))
        self._write((), chunks, version)
        self.show()

    def apply(self, removed: Sequence[int], added: Sequence[LexicalChunk], version: int) -> None:
        """`commit` and `show`: on disk and searchable when this returns."""
        self.commit(removed, added, version)
        self.show()

    def commit(self, removed: Sequence[int], added: Iterable[LexicalChunk], version: int) -> None:
        """Remove keys, add chunks and put that on disk as `version`; searches see it after `show`.

        Most of a write's time is spent here, and searches in other threads may run meanwhile.
        Args:
            removed: keys; one that is not there is passed over.
            added: chunks under keys that are not there, or that this call removes.
            version: not below that of the write before.
        Raises: DataFolderError when the folder cannot be written; then nothing of the write is kept.
        """
        assert self._version is not None, "rebuild comes before the first write"
        assert version >= self._version, f"version {version} does not follow {self._version}"
        self._write(removed, added, version)

    def show(self) -> None:
        """Make searches see the last commit."""
        assert self._index is not None, "open or rebuild comes first"
        self._index.reload()
        self._searcher = self._index.searcher()

    def search(
        self,
        queries: Sequence[str],
        k: int,
        *,
        tenant: str | None,
        documents: NDArray[np.int64] | None = None,
        excluded: NDArray[np.int64] | None = None,
    ) -> list[Hits]:
        """The chunks of a tenant that share a term with each query, best first, ties by key.

        Args:
            queries: Q plain texts; nothing in them is query syntax. Terms behind the 256th distinct one are not read.
            k: most hits per query.
            tenant: None where the collection is one tenant's alone: tantivy then skips blocks of chunks that cannot be
                among the best, as it does for no query with a second condition (2.5 times faster at 100,000).
            documents: [n] the only documents whose chunks may be found; None allows all.
            excluded: [n] documents whose chunks may not be found.
        Returns: per query at most k pairs of key and BM25 score, above 0.
        """
        scope = self._scope(tenant, documents, excluded)
        searcher = self._searcher
        if searcher is None:
            return [[] for _ in queries]
        matches = [self._match(query) for query in queries]
        num_parts = min(self._threads, len(queries))
        if num_parts <= 1:
            return [self._hits(searcher, match, scope, k) for match in matches]
        # tantivy gives up the interpreter's lock while it searches: 32 queries on 2 threads take half as long.
        self._pool = self._pool or ThreadPoolExecutor(self._threads - 1, "lexical")
        hits: list[Hits] = [[] for _ in queries]

        def search_part(part: int) -> None:
            for i in range(part, len(queries), num_parts):
                hits[i] = self._hits(searcher, matches[i], scope, k)

        others = [self._pool.submit(search_part, part) for part in range(1, num_parts)]
        search_part(0)
        for other in others:
            other.result()
        return hits

    def count(
        self,
        words: Sequence[str],
        *,
        tenant: str | None,
        documents: NDArray[np.int64] | None = None,
        excluded: NDArray[np.int64] | None = None,
    ) -> tuple[int | None, dict[str, int]]:
        """How many chunks `search` may find, None for all of the tenant's, and how many of them have each word.

        A word is there where its stems are. With tenant None, which a filter does not go with, the index's own books
        are read, in microseconds: chunks that were just removed count until the next merge.
        """
        searcher = self._searcher
        if searcher is None:
            return 0, dict.fromkeys(words, 0)
        stems = {word: terms_of(word, is_query=True).stems for word in words}
        if tenant is None:
            return None, {
                word: min((searcher.doc_freq("text", stem) for stem in mine), default=0) for word, mine in stems.items()
            }
        scope = self._scope(tenant, documents, excluded)

        def found(terms: Sequence[str]) -> int:
            wanted = [(Occur.Must, Query.term_query(self._schema, "text", term, "basic")) for term in terms]
            answer = searcher.search(Query.boolean_query([*wanted, *scope]), 1)
            return int(answer.count or 0)  # type: ignore[attr-defined]  # its type stub lacks it

        total = None if documents is None and excluded is None else found(())
        return total, {word: found(mine) if mine else 0 for word, mine in stems.items()}

    @property
    def num_chunks(self) -> int:
        """Chunks that searches see."""
        if self._searcher is None:
            return 0
        markers = Query.term_query(self._schema, "is_marker", 1, "basic")
        return self._searcher.num_docs - len(self._searcher.search(markers, 9, count=False).hits)

    def close(self) -> None:
        """Let running merges end and give up the folder; may be called twice."""
        self._end_writer()
        self._index = self._searcher = self._version = None
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _write(self, removed: Sequence[int], added: Iterable[LexicalChunk], version: int) -> None:
        assert self._index is not None
        try:
            with self._writing():
                writer = self._writer = self._writer or self._index.writer(_HEAP_BYTES, 1)
                for key in removed:
                    writer.delete_documents_by_term("key", key)
                writer.delete_documents_by_term("is_marker", 1)
                has_added = False
                for chunk in added:
                    writer.add_document(new_document(chunk, version))
                    has_added = True
                if not has_added:
                    writer.add_document(new_marker(version))
                writer.commit()
        except BaseException:
            self._end_writer()
            raise
        self._version = version

    def _scope(
        self, tenant: str | None, documents: NDArray[np.int64] | None, excluded: NDArray[np.int64] | None
    ) -> list[tuple[Occur, Query]]:
        """Conditions on what may be found; they add nothing to a score."""
        schema = self._schema
        scope: list[tuple[Occur, Query]] = []
        if tenant is not None:
            scope.append((Occur.Must, Query.term_query(schema, "tenant", tenant_term(tenant), "basic")))
        if documents is not None:
            scope.append((Occur.Must, Query.term_set_query(schema, "document", documents.tolist())))
        if excluded is not None:
            scope.append((Occur.MustNot, Query.term_set_query(schema, "document", excluded.tolist())))
        return [(occur, Query.const_score_query(query, 0.0)) for occur, query in scope]

    def _match(self, text: str) -> Query | None:
        """Any term in any field, None for a text without terms; a word asked twice counts twice."""
        terms = terms_of(text, is_query=True)
        weighted = [
            Query.boost_query(Query.term_query(self._schema, field, term, "freq"), weight * count)
            for field, weight in WEIGHTS.items()
            for term, count in _first(terms.exact if field == "exact" else terms.stems).items()
        ]
        return Query.boolean_query([(Occur.Should, query) for query in weighted]) if weighted else None

    def _hits(self, searcher: Searcher, match: Query | None, scope: list[tuple[Occur, Query]], k: int) -> Hits:
        # tantivy reserves memory for as many hits as are asked for, and ends the process where there is none.
        num_docs = searcher.num_docs
        limit = min(k, num_docs)
        if match is None or limit <= 0:
            return []
        query = Query.boolean_query([(Occur.Must, match), *scope]) if scope else match
        num_fetched = min(limit + 1, num_docs)
        while True:
            found = searcher.search(query, num_fetched, count=False).hits
            scores = [round(score, _SCORE_DECIMALS) for score, _ in found]
            # A tie across the cut would be broken by places in the files, which merges change.
            if len(found) < num_fetched or num_fetched == num_docs or scores[-1] < scores[limit - 1]:
                break
            num_fetched = min(2 * num_fetched, num_docs)
        keys = searcher.fast_field_values("key", [address for _, address in found])
        hits = [(int(key), score) for key, score in zip(keys, scores, strict=True) if key is not None]
        return sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:limit]

    def _attach(self, index: Index) -> None:
        index.register_tokenizer(TOKENIZER, TextAnalyzerBuilder(Tokenizer.whitespace()).build())
        index.config_reader("manual")
        self._index = index
        self.show()

    def _stored_version(self) -> int:
        """The newest version of what is there: each write leaves a chunk or a marker of its own until the next."""
        assert self._searcher is not None
        found = self._searcher.search(Query.all_query(), 1, count=False, order_by_field="version").hits
        if not found:
            raise ValueError("no commit is complete")
        return int(found[0][0])

    def _end_writer(self) -> None:
        """Forget what was not committed and give up the lock; a reference alone would be kept by a traceback."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(ValueError):
                writer.wait_merging_threads()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            raise DataFolderError(
                f"{self._folder}: the lexical index cannot be written ({' '.join(str(error).split())}). "
                "Check the disk's space and the folder's permissions; a restart rebuilds the index from the store."
            ) from error


def _first(terms: Sequence[str]) -> Counter[str]:
    """The first distinct terms with how often each comes."""
    counts = Counter(terms)
    return Counter(dict(itertools.islice(counts.items(), _MAX_QUERY_TERMS)))
