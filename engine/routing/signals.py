"""What the shape of a search result says about a question. numpy only, deterministic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.values import Passage, ScoreBackground

# A collection whose unrelated questions all score alike would make any z-score huge; cosine noise is about this wide.
MIN_STD = 0.02


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
