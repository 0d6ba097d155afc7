"""The first router: one rule on the best search score, compared with what unrelated questions score.

A raw cosine threshold does not carry over from one encoder or knowledge base to another; the distance from the
background, in standard deviations, does.
"""

from __future__ import annotations

import math

from engine.routing.signals.scores import score_shape
from engine.values import Decision, Evidence, Route


class ScoreRule:
    """Take the passages when the best score stands out from the background, else answer directly.

    `confidence` grows with the distance from the threshold on either side; it is a monotone score of this rule and
    not a calibrated probability, and the reasons say so.
    """

    name = "score-rule-1"

    def __init__(self, min_z: float) -> None:
        self._min_z = min_z

    def decide(self, pinned: Route | None, evidence: Evidence | None, missing: str | None = None) -> Decision:
        """Choose the arm of one question.

        Args:
            pinned: the route that the caller asked for; it is obeyed.
            evidence: what the retriever found, None when it was not asked or could not answer.
            missing: why there is no evidence, for the reasons.
        """
        if pinned is not None:
            return self._decision(pinned, None, f"route {pinned!r} pinned by the request")
        shape = score_shape(evidence.similarities, evidence.passages, evidence.background) if evidence else None
        if shape is None:
            return self._decision("direct", None, missing or "the search found no passage")
        if shape.z is None:
            return self._decision(
                "rag",
                None,
                f"best similarity is {shape.best:.2f}; the collection is too small for a background",
            )
        route: Route = "rag" if shape.z >= self._min_z else "direct"
        return self._decision(
            route,
            _distance_score(shape.z - self._min_z),
            f"best similarity is {shape.best:.2f}, {shape.z:+.1f} standard deviations from unrelated questions "
            f"(passages are used from {self._min_z:+.1f})",
            f"{shape.num_documents} documents among the passages; the best leads the rest by {shape.gap:.2f}",
            "confidence is the distance from the threshold, not a calibrated probability",
        )

    def _decision(self, route: Route, confidence: float | None, *reasons: str) -> Decision:
        return Decision(route, adapter=None, confidence=confidence, reasons=reasons, router=self.name)


def _distance_score(distance: float) -> float:
    """0.5 at the threshold, towards 1 on either side of it; `distance` in standard deviations."""
    return 1.0 / (1.0 + math.exp(-abs(distance)))
