"""From queries of one tenant to their rankings, by meaning, by words or both, and to evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.clues import CLUE_RANKS, Traces, traces, words_of
from engine.retrieval.index.filters import Filter
from engine.retrieval.index.fusion import FUSED_DEPTH, Hits, Ranking, hits_of, hybrid
from engine.retrieval.index.lexical_leg import LexicalLeg
from engine.retrieval.index.metadata_index import MetadataIndex
from engine.retrieval.index.shelf import Shelf
from engine.retrieval.store.passages import StoredPassage
from engine.values import Evidence, Passage, Query, ScoreBackground

_NOTHING = hits_of([])


@dataclass(frozen=True, slots=True)
class Found:
    """One query's ranking by its mode, its best similarities, and the traces that its clues are made of."""

    ranking: Ranking
    similarities: tuple[float, ...]
    traces: Traces | None


def ranked(
    shelf: Shelf,
    leg: LexicalLeg,
    queries: Sequence[Query],
    vectors: Vectors,
    wanted: Filter | None,
    *,
    alpha: float | None,
    is_alone: bool,
) -> list[Found]:
    """Both legs for queries [Q] of one tenant with one filter.

    Args:
        shelf: the tenant's.
        leg: words are not searched while it is behind.
        vectors: [n, E] of the n queries that are embedded.
        alpha: the weight of meaning in hybrid searches, None fuses ranks.
        is_alone: no other tenant has a shelf in the collection.
    """
    allowed = None if wanted is None else shelf.metadata.mask(wanted)
    depth = max(max(_num_similarities(query), FUSED_DEPTH if query.mode == "hybrid" else 0) for query in queries)
    keys, scores = shelf.rows.search(vectors, depth, allowed)
    hits = map(Hits, keys, scores.astype(np.float64))
    dense = [next(hits) if query.is_embedded else _NOTHING for query in queries]
    by_words = [i for i, query in enumerate(queries) if query.mode != "dense" and not leg.is_behind]
    lexical: dict[int, Hits] = {}
    if by_words:
        texts = [queries[i].text for i in by_words]
        tenant = None if is_alone else queries[0].tenant
        found = leg.index.search(texts, depth, tenant=tenant, **_documents(shelf.metadata, allowed))
        lexical = dict(zip(by_words, map(hits_of, found), strict=True))
    num_texts, counts = _counts(shelf, leg, queries, allowed, is_alone)
    return [
        Found(
            _by_mode(query, dense[i], lexical.get(i, _NOTHING), alpha).pairs(query.k),
            tuple(dense[i].scores[: _num_similarities(query)].tolist()),
            traces(query, dense[i], lexical.get(i, _NOTHING), num_texts, counts) if query.wants_clues else None,
        )
        for i, query in enumerate(queries)
    ]


def _counts(
    shelf: Shelf, leg: LexicalLeg, queries: Sequence[Query], allowed: NDArray[np.bool_] | None, is_alone: bool
) -> tuple[int, dict[str, int]]:
    """How many chunks queries of one tenant and filter may find, and how many have each word they ask about."""
    words = words_of(queries)
    if not words or leg.is_behind:
        return 0, {}
    # Neither another tenant's words nor those of documents outside the filter may show in a count.
    tenant = None if is_alone and allowed is None else queries[0].tenant
    total, counts = leg.index.count(words, tenant=tenant, **_documents(shelf.metadata, allowed))
    num_texts = len(shelf.rows) if total is None else total
    return num_texts, {word: min(count, num_texts) for word, count in counts.items()}


def _num_similarities(query: Query) -> int:
    return max(query.k, CLUE_RANKS) if query.wants_clues else query.k


def _by_mode(query: Query, dense: Hits, lexical: Hits, alpha: float | None) -> Hits:
    """The ranking that the query's mode asks for; a hybrid one by scores with weight `alpha`, or by ranks (None)."""
    if query.mode == "dense":
        return dense
    if query.mode == "lexical":
        return lexical
    return hybrid(dense, lexical, alpha)


def evidence_of(
    found: Found | None, passages: Mapping[int, StoredPassage], background: ScoreBackground | None, version: int
) -> Evidence:
    """What a query gets: its ranking with the passages behind it."""
    if found is None:
        return Evidence((), background, version)
    ranking = tuple(_passage(passages[key], score) for key, score in found.ranking)
    return Evidence(ranking, background, version, similarities=found.similarities)


def _passage(found: StoredPassage, score: float) -> Passage:
    return Passage(
        chunk=found.chunk,
        document=found.document,
        title=found.title or "",
        heading=found.heading,
        text=found.text,
        start=found.start,
        end=found.end,
        score=score,
    )


def _documents(metadata: MetadataIndex, allowed: NDArray[np.bool_] | None) -> dict[str, NDArray[np.int64]]:
    """What the lexical leg may find, or what it may not: the shorter list."""
    if allowed is None:
        return {}
    if 2 * int(allowed.sum()) <= len(metadata):
        return {"documents": metadata.documents(allowed)}
    return {"excluded": metadata.documents(~allowed)}
