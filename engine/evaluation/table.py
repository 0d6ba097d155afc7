"""Outcomes as arrays: what is fitted and measured. Only questions that every arm answered are in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import TrainingDataError
from engine.evaluation.outcomes import Outcomes, QuestionOutcome
from engine.evaluation.overall import Overall, overall_of
from engine.routing.arms import parse_arm
from engine.routing.heads import Floats
from engine.routing.keys import Keys
from engine.tuning.guard.groups import Groups
from engine.tuning.guard.near import NearIndex
from engine.tuning.guard.text import normalise

# Answers that differ by less are as good as each other.
DISCORDANT = 0.1
# An arm that answered fewer of the questions would cost more questions than it is worth.
MIN_ARM_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class OutcomeTable:
    """N questions, A arms, F signals. quality [N, A] in [0, 1], latency_ms [N, A], tokens [N, A] (NaN where unknown),
    refused [N, A]; values [N, F], NaN where not known. `groups` [N]: a number for each group.

    `texts` and `embeddings` [N, E] are None unless every question has one.
    """

    keys: Keys
    arms: tuple[str, ...]
    signals: tuple[str, ...]
    ids: tuple[str, ...]
    sources: tuple[str, ...]
    groups: NDArray[np.int64]
    values: Floats
    quality: Floats
    latency_ms: Floats
    tokens: Floats
    refused: NDArray[np.bool_]
    texts: tuple[str, ...] | None
    embeddings: Floats | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def overall(self) -> Overall:
        """How figures of the questions become one."""
        return overall_of(self.sources, self.groups)

    @property
    def has_context(self) -> NDArray[np.bool_]:
        """[A] whether an arm puts passages into the prompt."""
        return np.array([parse_arm(arm).has_context for arm in self.arms])

    @property
    def regret(self) -> Floats:
        """[N] what the worst arm loses against the best."""
        return np.asarray(self.quality.max(axis=1) - self.quality.min(axis=1))

    @property
    def is_discordant(self) -> NDArray[np.bool_]:
        """[N] whether it matters which arm answers."""
        return np.asarray(self.regret >= DISCORDANT)

    def take(self, rows: NDArray[np.int64]) -> OutcomeTable:
        """The table of some rows."""
        return OutcomeTable(
            keys=self.keys,
            arms=self.arms,
            signals=self.signals,
            ids=tuple(self.ids[row] for row in rows),
            sources=tuple(self.sources[row] for row in rows),
            groups=self.groups[rows],
            values=self.values[rows],
            quality=self.quality[rows],
            latency_ms=self.latency_ms[rows],
            tokens=self.tokens[rows],
            refused=self.refused[rows],
            texts=None if self.texts is None else tuple(self.texts[row] for row in rows),
            embeddings=None if self.embeddings is None else self.embeddings[rows],
        )


def make_table(outcomes: Outcomes, arms: Sequence[str] | None = None) -> tuple[OutcomeTable, int]:
    """The table, and the number of questions left out because an arm has no answer to them.

    Args:
        arms: those to compare; None takes all that the file has.
    Raises: TrainingDataError where an arm is unknown or lacks too many answers, or nothing is left.
    """
    names = _chosen(outcomes, arms)
    whole = [each for each in outcomes.questions if all(_answered(each, arm) for arm in names)]
    for arm in names:
        share = sum(_answered(each, arm) for each in outcomes.questions) / len(outcomes.questions)
        if share < MIN_ARM_SHARE:
            rest = ",".join(each for each in names if each != arm)
            raise TrainingDataError(
                f"{outcomes.origin}: arm {arm} answered {share:.0%} of the questions; {MIN_ARM_SHARE:.0%} are needed. "
                f"Collect it for the rest, or leave it out: --arms {rest or 'NAMES'}."
            )
    if not whole:
        raise TrainingDataError(f"{outcomes.origin}: no question was answered by every arm. Collect them again.")
    return _table(outcomes.keys, names, whole), len(outcomes.questions) - len(whole)


def _chosen(outcomes: Outcomes, arms: Sequence[str] | None) -> tuple[str, ...]:
    names = outcomes.arms if arms is None else tuple(sorted({*arms}))
    unknown = [arm for arm in names if arm not in outcomes.arms]
    if unknown:
        raise TrainingDataError(
            f"{outcomes.origin}: has no arm {', '.join(unknown)}. Measured: {', '.join(outcomes.arms)}."
        )
    return names


def _answered(each: QuestionOutcome, arm: str) -> bool:
    found = each.arms.get(arm)
    return found is not None and found.error is None and found.quality is not None and found.latency_ms is not None


def _table(keys: Keys, arms: tuple[str, ...], rows: Sequence[QuestionOutcome]) -> OutcomeTable:
    signals = tuple(sorted({name for each in rows for name in each.signals}))
    answers = [[each.arms[arm] for arm in arms] for each in rows]
    texts = tuple(each.question for each in rows if each.question is not None)
    embeddings = [each.embedding for each in rows if each.embedding is not None]
    return OutcomeTable(
        keys=keys,
        arms=arms,
        signals=signals,
        ids=tuple(each.id for each in rows),
        sources=tuple(each.source for each in rows),
        groups=np.array(_groups(rows), dtype=np.int64),
        values=_floats([[each.signals.get(name) for name in signals] for each in rows]).reshape(len(rows), -1),
        quality=_floats([[answer.quality for answer in row] for row in answers]),
        latency_ms=_floats([[answer.latency_ms for answer in row] for row in answers]),
        tokens=_floats([[_sum(answer.tokens_in, answer.tokens_out) for answer in row] for row in answers]),
        refused=np.array([[answer.refused for answer in row] for row in answers]),
        texts=texts if len(texts) == len(rows) else None,
        embeddings=_floats(embeddings) if len(embeddings) == len(rows) else None,
    )


def _floats(rows: Sequence[Sequence[float | None]]) -> Floats:
    """None as NaN."""
    return np.array(rows, dtype=np.float64)


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _groups(rows: Sequence[QuestionOutcome]) -> list[int]:
    """The group of each row: those that name one group or ask nearly the same, and those that these join."""
    groups = Groups(len(rows))
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        if row.group is not None:
            groups.join(first.setdefault(row.group, place), place)
    asked = [(place, normalise(row.question)) for place, row in enumerate(rows) if row.question]
    for place, cluster in enumerate(NearIndex([text for _, text in asked]).clusters()):
        groups.join(asked[cluster][0], asked[place][0])
    return groups.roots()
