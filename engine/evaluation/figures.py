"""Figures of an evaluation: plain values that are written as JSON and shown in a report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from engine.evaluation.intervals import Interval
from engine.routing.artefact import FrontierPoint, Objective


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or other figure, with its 95 % interval; None for few questions."""

    value: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """An arm alone. `best_rate`: share of questions that no other arm answered better; `chosen`: that it was routed to.

    `refused`: share that it said not to know. Tokens are None where not counted.
    """

    name: str
    quality: Estimate
    refused: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    tokens: float | None
    best_rate: float
    chosen: float


@dataclass(frozen=True, slots=True)
class PairFigures:
    """How well expected gains tell which of two arms is better, on the `num_rows` questions where it matters.

    auroc, low, high: of all these; `within`: its mean within the `num_sources` sources that have enough of both,
    weighed by their questions, and so free of telling sources apart. None where there are too few.
    """

    first: str
    second: str
    num_rows: int
    auroc: float | None
    interval: Interval | None
    within: float | None
    num_sources: int


@dataclass(frozen=True, slots=True)
class CalibrationFigures:
    """Expected calibration error and Brier score of an arm's expected quality, before and after calibration."""

    arm: str
    ece_before: float
    ece_after: float
    brier_before: float
    brier_after: float


@dataclass(frozen=True, slots=True)
class SourceFigures:
    """One source: its best arm in hindsight, and quality by that arm, by the best single arm, as routed, at best.

    `gain`: the interval of what the route gains over the best single arm; None where the source has too few groups.
    """

    source: str
    num_rows: int
    best_arm: str
    best_arm_quality: float
    single: float
    routed: float
    oracle: float
    gain: Interval | None
    context_rate: float

    @property
    def difference(self) -> float:
        """Positive where the route is better than the best single arm."""
        return self.routed - self.single

    @property
    def is_below(self) -> bool:
        """Whether the route is worse than the best single arm beyond chance."""
        return self.gain is not None and self.gain[1] < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean worth (quality less cost) as routed and by a rival, and the interval of the difference."""

    name: str
    routed: float
    other: float
    interval: Interval | None

    @property
    def difference(self) -> float:
        """Positive where the router is better."""
        return self.routed - self.other

    @property
    def is_better(self) -> bool:
        """Whether the router is better beyond chance."""
        return self.interval is not None and self.interval[0] > 0


@dataclass(frozen=True, slots=True)
class Curve:
    """Quality over the share of questions with passages, as what passages must gain is varied.

    `area`: mean height above the straight line between never and always, which arms drawn at random would follow.
    """

    context_rates: tuple[float, ...]
    qualities: tuple[float, ...]
    area: Estimate


@dataclass(frozen=True, slots=True)
class Zones:
    """Shares of the questions by what the arms made of them; of those that matter, the share routed to a best arm."""

    all_good: float
    differ: float
    all_poor: float
    best_of_differ: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """Mean confidence and share of best arms in bins of equal counts, and their mean distance."""

    confidence: tuple[float, ...]
    share: tuple[float, ...]
    ece: float
    brier: float


@dataclass(frozen=True, slots=True)
class RoutedFigures:
    """Everything that needs a route. `headroom`: share of what the best choice gains over the best single arm."""

    quality: Estimate
    oracle: Estimate
    regret: Estimate
    headroom: Estimate | None
    context_rate: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    latency_saved_ms: Estimate
    comparisons: tuple[Comparison, ...]
    pairs: tuple[PairFigures, ...]
    calibration: tuple[CalibrationFigures, ...]
    reliability: Reliability
    zones: Zones
    curve: Curve | None
    frontier: tuple[FrontierPoint, ...]
    sources: tuple[SourceFigures, ...]


@dataclass(frozen=True, slots=True)
class ChangedFigures:
    """Decisions for questions of which each has a text that was changed in one way, and its first text.

    `unchanged`: share of decisions that are the same; `before` and `after`: quality by the arm chosen then, as it
    answered the first text. `num_texts` may be more than questions: several texts of one question count as one.
    """

    kind: str
    num_questions: int
    num_texts: int
    unchanged: Estimate
    before: float
    after: float
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Robustness:
    """What changed texts do to decisions. `num_without_text` questions had no text and were left out.

    `same_as_measured`: share of the questions that are decided by the signals of now as by those of the outcomes.
    """

    seed: int
    num_questions: int
    num_without_text: int
    same_as_measured: float
    kinds: tuple[ChangedFigures, ...]


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds from signals to a decision: of one alone, and the median of each in batches of `batch`."""

    p50_ms: float
    p95_ms: float
    batch: int
    batched_ms: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the route is the learned one, in a sentence, and what else a reader should know."""

    is_learned: bool
    headline: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a router is worth on `num_questions` questions of `origin`, its `num_sources` sources counted alike.

    `is_crossfitted`: each question was routed by a router fitted without its fold; otherwise the router had not seen
    any. `num_left_out` lack an answer of an arm, `num_seen` had trained the router. `not_run`: rivals and why.
    `routed` is None where nothing could be fitted, `robustness` where changed questions were not asked for, `overhead`
    where it was not measured.
    """

    title: str
    origin: str
    created: str
    objective: Objective
    num_questions: int
    num_sources: int
    num_discordant: int
    num_groups: int
    num_left_out: int
    num_seen: int
    is_crossfitted: bool
    best_arm: str
    verdict: Verdict
    arms: tuple[ArmFigures, ...]
    routed: RoutedFigures | None
    not_run: dict[str, str]
    heads: str
    robustness: Robustness | None = None
    overhead: Overhead | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return content
