"""Is what was found too weak to answer from? And the answer that says so, with the nearest pages, inventing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.routing.ambiguity import SignalPart, platt
from engine.routing.signals.scores import Search, score_shape, search_signals
from engine.routing.signals.table import Floats, SignalTable
from engine.values import Evidence, Passage

NUM_PAGES = 3
REFUSAL = "This is not in the knowledge base."
_MAX_TITLE = 100


@dataclass(frozen=True, slots=True)
class EvidenceHead:
    """How likely it is that what was found answers the question; evidence below `threshold` is weak.

    Linear in the signals of the search, `bias` added; sigmoid(slope * score + offset) is calibrated (Platt, 1999).
    Fitted by `engine.evaluation.evidence`, with the encoder of digest `encoder`, whose cosines it knows.
    """

    signals: SignalPart
    bias: float
    slope: float
    offset: float
    threshold: float
    encoder: str

    def scores(self, signals: SignalTable) -> Floats:
        """[N] uncalibrated logits."""
        return np.asarray(self.bias + self.signals.scores(self.signals.columns(signals, len(signals))))

    def probabilities(self, signals: SignalTable) -> Floats:
        """[N] calibrated probabilities; what the table lacks of the head's signals is unknown."""
        return platt(self.scores(signals), self.slope, self.offset)


def weakness(
    question: str,
    evidence: Evidence,
    *,
    min_z: float,
    head: EvidenceHead | None = None,
    max_passages: int | None = None,
) -> str | None:
    """Why the evidence is too weak to answer from, in words; None where it is not, or nothing can be said.

    Args:
        question: as it was searched.
        min_z: without a head, the least distance of the best similarity from what unrelated questions reach, in
            standard deviations of those.
        max_passages: that a head looks at; None for all.
    """
    shape = score_shape(evidence.similarities, evidence.passages, evidence.background)
    if not evidence.passages or shape is None:
        return "the search found no passage"
    if head is not None:
        probability = float(head.probabilities(search_signals([Search.of(question, evidence, max_passages)]))[0])
        if probability >= head.threshold:
            return None
        return (
            f"the passages answer it with a probability of {probability:.2f} (at least {head.threshold:.2f} is wanted)"
        )
    if shape.z is None or shape.z >= min_z:
        return None
    return (
        f"best similarity is {shape.best:.2f}, {shape.z:+.1f} standard deviations from unrelated questions "
        f"(answers begin at {min_z:+.1f})"
    )


def nearest_pages(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """The best passage of each of the NUM_PAGES best documents."""
    best = {passage.document: passage for passage in reversed(passages)}
    return tuple(passage for passage in passages if best[passage.document] is passage)[:NUM_PAGES]


def refusal(pages: Sequence[Passage]) -> str:
    """The answer: that it is not there, and what is nearest, by title and id."""
    if not pages:
        return REFUSAL
    return "\n".join([f"{REFUSAL} The nearest pages:", *(f"- {_named(page)}" for page in pages)])


def _named(page: Passage) -> str:
    title, document = (
        " ".join("".join(each if each.isprintable() else " " for each in text).split())
        for text in (page.title, page.document)
    )
    title = title if len(title) <= _MAX_TITLE else title[: _MAX_TITLE - 1].rstrip() + "…"
    return f"{title} ({document})" if title and title != document else document
