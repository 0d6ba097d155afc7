"""Figures of a comparison: plain values that are written as JSON and shown in a report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.evaluation.compare.contenders import Kind
from engine.evaluation.compare.costs import Refresh
from engine.evaluation.compare.updating import Followed, UpdateFigures
from engine.evaluation.figures import Estimate, Verdict
from engine.evaluation.intervals import Interval

Finding = Literal["better", "worse", "not distinguishable", "too few"]


@dataclass(frozen=True, slots=True)
class Hits:
    """An arm with passages, split by whether those that it was shown are the right ones.

    `rate`: share of the `num_rows` questions that name documents, or else have an answer, where one was among the
    passages. `answer_rate`: share of those with short answers where an answer stands in the passages.
    """

    num_rows: int
    rate: float
    by_documents: bool
    answer_rate: float | None
    num_hit: int
    quality_hit: Estimate | None
    quality_miss: Estimate | None


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """An arm alone. An answer that failed counts as quality 0; shares are of the answers that did not fail.

    `metrics`: means by name, each over the questions that it is for. `grounded`: share of the content words that the
    shown passages hold, of answers with passages. `valid`: share of the answers to questions with labels that are a
    label. `repetition`: share of words in runs that were said before. Times in ms, of `num_at_once` requests at once.
    `passages`: share answered with passages. `untrusted` says why the quality cannot be believed.
    """

    name: str
    kind: Kind
    quality: Estimate
    metrics: dict[str, float]
    num_failed: int
    first_failure: str | None
    refused: float
    cut_off: float
    passages: float
    grounded: float | None
    valid: float | None
    repetition: float | None
    distinct_2: float | None
    ttft_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    tokens_in: float | None
    tokens_out: float | None
    tuning_minutes: float | None
    hits: Hits | None
    untrusted: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two arms on the same questions. `difference` is first less second; `p` is corrected by Holm over all pairs.

    `detectable`: the smallest difference that would have been found in four of five such comparisons; None: none.
    """

    first: str
    second: str
    difference: float
    interval: Interval | None
    p_alone: float
    p: float
    test: str
    detectable: float | None
    finding: Finding


@dataclass(frozen=True, slots=True)
class SearchFigures:
    """What the search finds of the documents that questions name, whoever reads it."""

    num_rows: int
    hit_1: float
    hit_5: float
    recall_5: float
    recall_10: float
    mrr_10: float
    ndcg_10: float
    answer_rate: float | None


@dataclass(frozen=True, slots=True)
class Bound:
    """The best arm for each question, chosen after the fact; `num_differ`: questions on which it matters."""

    quality: Estimate
    gain: float
    num_differ: int


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """Mean quality of each arm on the questions of one source."""

    source: str
    num_rows: int
    quality: dict[str, float]


@dataclass(frozen=True, slots=True)
class Setting:
    """What was asked of whom, and how."""

    origin: str
    created: str
    base_model: str
    collection: str
    index: dict[str, int]
    max_tokens: int
    num_at_once: int
    num_few_shot: int | None
    few_shot_source: str | None
    num_in_file: int
    router: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that a report shows. `best` is the arm of the best quality, trusted or not."""

    setting: Setting
    num_questions: int
    num_groups: int
    metrics: dict[str, int]
    best: str
    arms: tuple[ArmFigures, ...]
    pairs: tuple[Pair, ...]
    bound: Bound | None
    search: SearchFigures | None
    updates: tuple[UpdateFigures, ...]
    followed: tuple[Followed, ...]
    updates_skipped: tuple[str, ...]
    refresh: Refresh | None
    sources: tuple[SourceFigures, ...]
    notes: tuple[str, ...]
    verdict: Verdict
    tone: Literal["good", "mixed", "bad"]
    recommended: str | None

    def arm(self, name: str) -> ArmFigures:
        """The arm of that name."""
        return next(each for each in self.arms if each.name == name)

    def pair(self, first: str, second: str) -> Pair | None:
        """The comparison of two arms, seen from `first`; None where there is none."""
        return find_pair(self.pairs, first, second)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return content


_TURNED: dict[Finding, Finding] = {"better": "worse", "worse": "better"}


def find_pair(pairs: tuple[Pair, ...], first: str, second: str) -> Pair | None:
    """See `Comparison.pair`."""
    for each in pairs:
        if (each.first, each.second) == (first, second):
            return each
        if (each.first, each.second) == (second, first):
            # Subtracted from 0, since a negated 0 would be shown with a minus.
            turned = None if each.interval is None else (0.0 - each.interval[1], 0.0 - each.interval[0])
            finding = _TURNED.get(each.finding, each.finding)
            return Pair(
                first, second, 0.0 - each.difference, turned, each.p_alone, each.p, each.test, each.detectable, finding
            )
    return None
