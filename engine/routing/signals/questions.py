"""All signals of questions that a server is asked, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engine.routing.signals.lexical import WordCounts, distinct_words, lexical_signals
from engine.routing.signals.neighbours import TrainingNeighbours, adapter_signals
from engine.routing.signals.scores import Search, search_signals
from engine.routing.signals.table import SignalTable, joined
from engine.values import RouteRequest

# Signals that only the knowledge base can tell.
_OF_COUNTS = frozenset({"lexical.unknown_share", "lexical.max_idf", "lexical.mean_idf"})


def counted_words(text: str) -> tuple[str, ...]:
    """The words of a question that a search has to count (`Query.words`) for its signals."""
    return distinct_words(text)


def needs_search(signal: str) -> bool:
    """Whether a signal is not known before the search."""
    return signal.startswith("search.") or signal in _OF_COUNTS


def question_signals(
    requests: Sequence[RouteRequest],
    adapters: Mapping[str, TrainingNeighbours],
    max_passages: int | None = None,
    *,
    has_neighbours: Sequence[bool] | None = None,
) -> SignalTable:
    """[N, F] signals of the words, the embedding and the search of each question.

    Args:
        adapters: what each adapter was trained on; the names of the columns depend on which there are.
        max_passages: of each search, that are looked at: those of a question for which more were searched are not
            comparable with others.
        has_neighbours: [N] whether a question was embedded by the encoder of what adapters were trained on; None: all.
    """
    words = lexical_signals([request.text for request in requests], [_counts(request) for request in requests])
    searches = [
        None if request.evidence is None else Search.of(request.text, request.evidence, max_passages)
        for request in requests
    ]
    return joined(
        words,
        _adapter_table(requests, adapters, has_neighbours),
        search_signals(searches),
    )


def _counts(request: RouteRequest) -> WordCounts | None:
    clues = None if request.evidence is None else request.evidence.clues
    words = counted_words(request.text) if clues is not None and clues.num_texts else ()
    if clues is None or not clues.num_texts or len(words) != len(clues.texts_with):
        return None
    return WordCounts(clues.num_texts, dict(zip(words, clues.texts_with, strict=True)))


def _adapter_table(
    requests: Sequence[RouteRequest],
    adapters: Mapping[str, TrainingNeighbours],
    has_neighbours: Sequence[bool] | None,
) -> SignalTable:
    """NaN for questions that are not embedded, or by another encoder."""
    usable = [True] * len(requests) if has_neighbours is None else has_neighbours
    dim = next((each.dim for each in adapters.values()), 1)
    embeddings = [_embedding(request) if may else None for request, may in zip(requests, usable, strict=True)]
    # One of another size is another encoder's, whose generation came into place a moment ago.
    known = {
        row: each for row, each in enumerate(embeddings) if each is not None and (not adapters or len(each) == dim)
    }
    found = list(known.values())
    stacked = np.stack(found) if found and adapters else np.empty((len(found), dim), np.float32)
    table = adapter_signals(stacked, adapters)
    values = np.full((len(requests), len(table.names)), np.nan)
    values[list(known)] = table.values
    return SignalTable(table.names, values)


def _embedding(request: RouteRequest) -> np.ndarray | None:
    if request.evidence is not None and request.evidence.clues is not None:
        return request.evidence.clues.embedding
    return request.embedding
