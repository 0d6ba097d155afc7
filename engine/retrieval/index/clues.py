"""What a learned router reads of a search besides its evidence; see `engine.values.Clues`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.metrics.likeness import mean_cosine, overlap
from engine.retrieval.encoding.protocol import Vectors
from engine.retrieval.index.fusion import Hits
from engine.values import Clues, Query

# Best chunks that clues are about, however many passages are wanted.
CLUE_RANKS = 10


@dataclass(frozen=True, slots=True)
class Traces:
    """What the legs of one search left behind: `nearest` are keys of the best chunks by meaning."""

    nearest: tuple[int, ...]
    agreement: float | None
    num_texts: int
    texts_with: tuple[int, ...]


def traces(query: Query, dense: Hits, lexical: Hits, num_texts: int, counts: Mapping[str, int]) -> Traces:
    """`counts` are of the query's words, missing ones were not counted."""
    nearest = tuple(dense.keys[:CLUE_RANKS].tolist())
    is_counted = all(word in counts for word in query.words)
    return Traces(
        nearest,
        overlap(nearest, lexical.keys[:CLUE_RANKS].tolist()),
        num_texts if is_counted else 0,
        tuple(counts[word] for word in query.words) if is_counted else (),
    )


def clues(embedding: Vectors, found: Traces | None, vectors: Mapping[int, Vectors]) -> Clues:
    """The clues of a query with `embedding` [E]; `vectors` has an [E] for each key that `found` names."""
    if found is None:
        return Clues(embedding)
    near = [vectors[key] for key in found.nearest if key in vectors]
    coherence = mean_cosine(np.stack(near)) if near else None
    return Clues(embedding, found.agreement, coherence, found.num_texts, found.texts_with)


def words_of(queries: Sequence[Query]) -> list[str]:
    """Distinct words that are to be counted for any of the queries."""
    return list(dict.fromkeys(word for query in queries if query.wants_clues for word in query.words))
