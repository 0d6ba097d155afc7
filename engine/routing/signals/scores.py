"""What the shape of a search's result says about a question.

Raw cosines do not carry over from one encoder or knowledge base to another; signals that begin with `z_` are in
standard deviations of the best scores that unrelated questions reach in the same index (ScoreBackground).
NQC: Shtok et al., ACM TOIS 2012. WIG: Zhou and Croft, SIGIR 2007; the background's mean stands for the corpus score.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.routing.signals.lexical import MAX_CHARS, content_words, plain_words
from engine.routing.signals.table import Floats, SignalTable
from engine.values import Evidence, Passage, ScoreBackground

# A collection whose unrelated questions all score alike would make any z-score huge; cosine noise is about this wide.
MIN_STD = 0.02
# Best scores that are looked at, so that a request for many passages has the same signals as one for few.
MAX_RANKS = 10
NAMES = (
    "search.best",
    "search.gap",
    "search.gap_rest",
    "search.z_best",
    "search.z_gap",
    "search.z_spread",
    "search.z_mean",
    "search.entropy",
    "search.documents",
    "search.document_share",
    "search.coverage",
    "search.coverage_all",
    "search.agreement",
    "search.coherence",
)


@dataclass(frozen=True, slots=True)
class Search:
    """A question and what its search found.

    `similarities` are cosines, descending; `passages` ranked. agreement: share of the best chunks by meaning that are
    among the best by words, None where not both were asked. coherence: mean cosine between the best chunks by meaning.
    """

    question: str
    similarities: tuple[float, ...]
    passages: tuple[Passage, ...]
    background: ScoreBackground | None
    agreement: float | None = None
    coherence: float | None = None

    @classmethod
    def of(cls, question: str, evidence: Evidence, max_passages: int | None = None) -> Search:
        """What the retriever answered for `question`, of which the first `max_passages` are looked at."""
        found, clues = evidence.passages[:max_passages], evidence.clues
        known = (None, None) if clues is None else (clues.agreement, clues.coherence)
        return cls(question, evidence.similarities, found, evidence.background, *known)


@dataclass(frozen=True, slots=True)
class ScoreShape:
    """Signals of one search.

    best: highest cosine similarity. z: its distance from `background.mean` in standard deviations, None without a
    background. gap: best minus the mean of the rest. num_documents: distinct documents among the passages.
    """

    best: float
    z: float | None
    gap: float
    num_documents: int


def score_shape(
    similarities: Sequence[float], passages: Sequence[Passage], background: ScoreBackground | None
) -> ScoreShape | None:
    """Signals of a search, or None when nothing was found. `similarities` are cosines, descending."""
    if not similarities:
        return None
    scores = np.array(similarities, dtype=np.float64)  # [K]
    best = float(scores[0])
    z = None if background is None else (best - background.mean) / max(background.std, MIN_STD)
    gap = best - float(scores[1:].mean()) if len(scores) > 1 else 0.0
    return ScoreShape(best, z, gap, len({passage.document for passage in passages}))


def search_signals(searches: Sequence[Search | None]) -> SignalTable:
    """Signals of each search; all NaN where none was made or nothing found, and each NaN where its input is missing.

    best, gap, gap_rest: the best cosine, less the second, less the mean of the others. z_best, z_gap: the same by the
    background. z_spread (NQC) and z_mean (WIG): standard deviation and mean of the scores. entropy: of softmax(z), over
    that of equal scores: 1 is no favourite. documents: distinct ones among the passages, and their share. coverage:
    share of the question's content words in the best passage, and in any. agreement, coherence: as of Search; a low
    coherence is several subjects.
    """
    values = np.full((len(searches), len(NAMES)), np.nan)
    known = [i for i, search in enumerate(searches) if search is not None and (search.similarities or search.passages)]
    found = [search for i in known if (search := searches[i]) is not None]
    if found:
        values[known] = np.hstack([_score_columns(found), np.array([_passage_row(search) for search in found])])
    return SignalTable(NAMES, values)


def _score_columns(searches: Sequence[Search]) -> Floats:
    """[N, 8] of the score lists; without a background its columns are NaN."""
    # Of one width whatever the batch, so that sums round alike.
    scores = np.full((len(searches), MAX_RANKS), np.nan)  # [N, K]
    for row, search in enumerate(searches):
        best = search.similarities[:MAX_RANKS]
        scores[row, : len(best)] = best
    mean = np.array([np.nan if each.background is None else each.background.mean for each in searches])
    std = np.array([np.nan if each.background is None else max(each.background.std, MIN_STD) for each in searches])
    num = np.isfinite(scores).sum(axis=1)
    average, spread = _mean_and_spread(scores, num)
    gap = scores[:, 0] - scores[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rest = (average * num - scores[:, 0]) / (num - 1)
    z = (scores - mean[:, None]) / std[:, None]
    return np.column_stack(
        [
            *(scores[:, 0], gap, np.where(num > 1, scores[:, 0] - rest, np.nan)),
            *(z[:, 0], gap / std, spread / std, (average - mean) / std, _entropy(z, num)),
        ]
    )


def _mean_and_spread(scores: Floats, num: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """[N] mean and standard deviation of each row's scores; a single score has no spread."""
    with np.errstate(invalid="ignore", divide="ignore"):
        average = np.nansum(scores, axis=1) / num
        spread = np.sqrt(np.nansum((scores - average[:, None]) ** 2, axis=1) / num)
    return np.where(num > 0, average, np.nan), np.where(num > 1, spread, np.nan)


def _entropy(z: Floats, num: NDArray[np.int64]) -> Floats:
    """[N] in [0, 1]: entropy of softmax(z) over that of equal scores; NaN for a single score or no background."""
    is_there = np.isfinite(z)
    top = np.max(np.where(is_there, z, -np.inf), axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.where(is_there, np.exp(z - np.where(np.isfinite(top), top, 0.0)), 0.0)
        shares = weights / weights.sum(axis=1, keepdims=True)
        logs = np.where(shares > 0, np.log(np.where(shares > 0, shares, 1.0)), 0.0)
        found = -(shares * logs).sum(axis=1) / np.log(num)
    return np.where(is_there.any(axis=1) & (num > 1), found, np.nan)


def _passage_row(search: Search) -> list[float]:
    documents = len({passage.document for passage in search.passages})
    words = set(content_words(plain_words(search.question)))
    held = [_held(words, f"{each.title} {each.heading} {each.text[:MAX_CHARS]}") for each in search.passages]
    is_known = bool(words and held)
    return [
        documents if search.passages else np.nan,
        documents / len(search.passages) if search.passages else np.nan,
        len(held[0]) / len(words) if is_known else np.nan,
        len(set().union(*held)) / len(words) if is_known else np.nan,
        np.nan if search.agreement is None else search.agreement,
        np.nan if search.coherence is None else search.coherence,
    ]


def _held(words: Collection[str], text: str) -> set[str]:
    """Those of `words` that `text` has as whole words; finding a few is faster than splitting the text into all."""
    # Between blanks, every character of a word has a neighbour.
    lowered = f" {text.lower()} ".replace("’", "'")
    held = set()
    for word in words:
        start = lowered.find(word)
        while start >= 0:
            if not lowered[start - 1].isalnum() and not lowered[start + len(word)].isalnum():
                held.add(word)
                break
            start = lowered.find(word, start + 1)
    return held
