"""Judged queries as fusion reads them: what meaning and words alone find for each in a collection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engine.errors import RequestError
from engine.retrieval.encoding.protocol import EncoderLike
from engine.retrieval.index.fusion import FUSED_DEPTH, JudgedQuery
from engine.retrieval.index.live import LiveCollection
from engine.values import Evidence, Query

# More say little more about one number, and a fit of these takes seconds.
MAX_QUERIES = 1_000
# Queries that are embedded and searched between two looks at what else is to be done; searches wait for that many.
_QUERIES_PER_PIECE = 4
Grades = Mapping[str, Mapping[str, int]]


def judged_queries(
    live: LiveCollection,
    encoder: EncoderLike,
    collection: str,
    tenant: str,
    grades: Grades,
    check: Callable[[], None],
) -> list[JudgedQuery]:
    """Search a collection by both legs for each query of `grades`, in order.

    Args:
        grades: by query the grades of documents.
        check: called between pieces; raises where there is to be no other.
    Raises: RequestError where one of the legs cannot be searched.
    """
    texts = list(grades)
    judged = []
    for first in range(0, len(texts), _QUERIES_PER_PIECE):
        check()
        piece = texts[first : first + _QUERIES_PER_PIECE]
        judged += [
            _judged_query(dense, lexical, grades[text])
            for text, (dense, lexical) in zip(piece, _legs(live, encoder, collection, tenant, piece), strict=True)
        ]
    return judged


def _legs(
    live: LiveCollection, encoder: EncoderLike, collection: str, tenant: str, texts: Sequence[str]
) -> list[tuple[Evidence, Evidence]]:
    asked = [
        Query(text, collection, FUSED_DEPTH, tenant=tenant, mode=mode, wants_similarities=False)
        for text in texts
        for mode in ("dense", "lexical")
    ]
    legs: list[Evidence] = []
    for one in live.search(asked, encoder.encode(texts, is_query=True)):
        if isinstance(one, RequestError):
            raise one
        legs.append(one)
    return list(zip(legs[::2], legs[1::2], strict=True))


def _judged_query(dense: Evidence, lexical: Evidence, grades: Mapping[str, int]) -> JudgedQuery:
    """The legs by numbers of chunks, and what is relevant by numbers of documents."""
    chunks: dict[str, int] = {}
    documents: dict[str, int] = {}
    of: dict[int, int] = {}
    for passage in (*dense.passages, *lexical.passages):
        key = chunks.setdefault(passage.chunk, len(chunks))
        of[key] = documents.setdefault(passage.document, len(documents))
    scores = [{chunks[passage.chunk]: passage.score for passage in leg.passages} for leg in (dense, lexical)]
    gains = {documents.setdefault(document, len(documents)): float(grade) for document, grade in grades.items()}
    return JudgedQuery(scores[0], scores[1], gains, of)
