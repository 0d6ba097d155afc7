"""The adapter against other models on the same rows, and whether chance explains the differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.metrics.bootstrap import paired_interval
from engine.tuning.outcome import Baseline, Evaluation, Outcome


@dataclass(frozen=True, slots=True)
class Comparison:
    """Means of the main metric over the same `num_rows` rows.

    `low` and `high` bound `difference`, adapter less `other`, at 95 %: percentiles of a paired bootstrap. Both are None
    below MIN_ROWS rows. `seconds` is what the other model's training took; None for the base model, which had none.
    """

    kind: Literal["base", "baseline"]
    name: str
    num_rows: int
    adapter: float
    other: float
    low: float | None
    high: float | None
    seconds: float | None = None

    @property
    def difference(self) -> float:
        """Adapter less other; positive where the adapter is better."""
        return self.adapter - self.other

    @property
    def is_better(self) -> bool:
        """Whether the adapter is better beyond chance."""
        return self.low is not None and self.low > 0

    @property
    def is_worse(self) -> bool:
        """Whether the adapter is worse beyond chance."""
        return self.high is not None and self.high < 0


def judging_evaluation(outcome: Outcome) -> Evaluation | None:
    """The evaluation that the adapter is judged by: rows that did not choose it, where there are any."""
    for name in ("evaluation", "validation"):
        found = outcome.evaluation(name)
        if found is not None and found.predictions:
            return found
    return None


def compare(outcome: Outcome, evaluation: Evaluation) -> tuple[Comparison, ...]:
    """Against the base model, then against the baselines in their order; a model without answers is left out."""
    found = [_with_base(evaluation), *(_with_baseline(evaluation, each) for each in outcome.baselines)]
    return tuple(each for each in found if each is not None)


def _with_base(evaluation: Evaluation) -> Comparison | None:
    pairs = [(each.after.quality, each.before.quality) for each in evaluation.predictions if each.before is not None]
    return _comparison("base", "base model", pairs, None)


def _with_baseline(evaluation: Evaluation, baseline: Baseline) -> Comparison | None:
    answers = baseline.answers.get(evaluation.name, ())
    if len(answers) != len(evaluation.predictions):
        return None
    pairs = [
        (each.after.quality, float(answer in each.targets))
        for each, answer in zip(evaluation.predictions, answers, strict=True)
    ]
    return _comparison("baseline", baseline.name, pairs, baseline.seconds)


def _comparison(
    kind: Literal["base", "baseline"], name: str, pairs: list[tuple[float, float]], seconds: float | None
) -> Comparison | None:
    if not pairs:
        return None
    adapter, other = (float(np.mean(side)) for side in zip(*pairs, strict=True))
    low, high = paired_interval([mine - theirs for mine, theirs in pairs]) or (None, None)
    return Comparison(kind, name, len(pairs), adapter, other, low, high, seconds)
