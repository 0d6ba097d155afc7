"""The decision which arm answers each question of a batch, by a router that was read from a folder.

Where the router was made for other weights, lacks an arm or a signal, or fails its own test, the best single arm
answers and `warning` says why. The route is never drawn by chance.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidRouter
from engine.routing.arms import parse_arm
from engine.routing.artefact import Artefact, Learned, read_artefact
from engine.routing.heads import Floats, Integers, LinearHeads
from engine.routing.keys import Keys
from engine.values import Decision

# Float64 of another machine differs in the last digits only.
TEST_TOLERANCE = 1e-6
_NUM_NAMED_ARMS = 3
_NUM_NAMED_SIGNALS = 2


@dataclass(frozen=True, slots=True)
class Serving:
    """What there is to decide with: digests, arms that can answer now, and names of signals in their order."""

    keys: Keys
    arms: Collection[str]
    signals: tuple[str, ...]


def load_router(folder: Path, serving: Serving) -> tuple[Router | None, str | None]:
    """The router in `folder` and what is wrong with it, for /readyz. Without a router another rule has to decide."""
    try:
        router = Router(read_artefact(folder), serving)
    except InvalidRouter as error:
        return None, str(error)
    return router, router.warning


class Router:
    """Decides for batches of questions. Holds no state between them."""

    def __init__(self, artefact: Artefact, serving: Serving) -> None:
        self.artefact = artefact
        self.name = artefact.name
        # Arms that can answer, in the artefact's order of arms.
        self._serves = np.array([arm in serving.arms for arm in artefact.arms])
        self._rank = np.array([artefact.ranked.index(arm) for arm in artefact.arms])
        self._arms = [parse_arm(arm) for arm in artefact.arms]
        why = _unfit(artefact, serving)
        self._learned: Learned | None = artefact.learned if why is None else None
        self._is_trusted = why is None
        places = {name: place for place, name in enumerate(serving.signals)}
        self._places = [] if self._learned is None else [places[name] for name in artefact.signals]
        self.warning: str | None = None
        if why is not None:
            ranked = [arm for arm in artefact.ranked if arm in serving.arms]
            instead = (
                f"the best single arm that can answer, {ranked[0]}, is used"
                if ranked
                else "none of its arms can answer"
            )
            self.warning = (
                f"{self.name} does not decide: {why}; {instead}. Measure and train again: switchyard router train."
            )

    @property
    def weighs(self) -> bool:
        """Whether it reads signals: not where it is, or has to be, the best single arm."""
        return self._learned is not None

    def decide(self, signals: Floats, allowed: Sequence[Collection[str]] | None = None) -> list[Decision | None]:
        """The arm of each question.

        Args:
            signals: [N, F] in the order of `Serving.signals`, NaN for what is not known.
            allowed: names of the arms that each question may get; None allows all that can answer.
        Returns: N decisions, with None where no allowed arm was measured: another rule has to decide there.
        `confidence` is the calibrated probability that no other arm answers better; None where a warning is in force,
        or no second arm is allowed.
        """
        is_allowed = self._allowed(len(signals), allowed)
        has_any = np.asarray(is_allowed.any(axis=1))
        if self._learned is None or not has_any.any():
            return [self._single(row) if some else None for row, some in zip(is_allowed, has_any, strict=True)]
        decided = iter(self._weigh(self._learned, signals[has_any][:, self._places], is_allowed[has_any]))
        return [next(decided) if some else None for some in has_any]

    def _allowed(self, num: int, allowed: Sequence[Collection[str]] | None) -> NDArray[np.bool_]:
        if allowed is None:
            return np.tile(self._serves, (num, 1))
        if len(allowed) != num:
            raise ValueError(f"{num} questions have {len(allowed)} sets of arms; each needs one")
        named = [[arm in arms for arm in self.artefact.arms] for arms in allowed]
        return np.asarray(np.array(named, dtype=bool).reshape(num, len(self._serves)) & self._serves)

    def _single(self, is_allowed: NDArray[np.bool_]) -> Decision:
        """The allowed arm that did best as a single one."""
        place = min(np.flatnonzero(is_allowed), key=lambda arm: self._rank[arm])
        name = self.artefact.arms[place]
        knows = self._is_trusted and is_allowed.sum() > 1
        said = f"{name} is the best single arm that is allowed"
        return self._decision(
            int(place),
            self.artefact.rates[place] if knows else None,
            said,
            self.warning or self.artefact.headline,
        )

    def _weigh(self, learned: Learned, values: Floats, is_allowed: NDArray[np.bool_]) -> list[Decision]:
        columns = learned.model.normaliser.columns(values)
        qualities = learned.model.curves.qualities(learned.model.heads.scores(columns))
        chosen, margins = learned.policy.choose(qualities, is_allowed)
        sure = learned.policy.confidence(margins).tolist()
        worth = np.where(is_allowed, qualities - learned.policy.costs, -np.inf)
        order = np.argsort(-worth, axis=1, kind="stable")
        nums = is_allowed.sum(axis=1).tolist()
        told = self._signals(learned, values, columns, chosen, order)
        costs = learned.policy.costs.tolist()
        decisions = []
        for row, (place, places, expected) in enumerate(
            zip(chosen.tolist(), order.tolist(), qualities.tolist(), strict=True)
        ):
            # Arms that are not allowed come last.
            reasons = [self._expected(costs, expected, places[: nums[row]])]
            confidence = sure[row] if nums[row] > 1 else None
            if confidence is not None:
                reasons += [told[row]] if told[row] else []
                reasons.append("confidence is the calibrated probability that no other arm answers better")
            decisions.append(self._decision(place, confidence, *reasons))
        return decisions

    def _expected(self, costs: list[float], qualities: list[float], rivals: list[int]) -> str:
        """`expected quality: base+context 0.71, base 0.44`"""
        named = [
            f"{self.artefact.arms[arm]} {qualities[arm]:.2f}" + (f" (its cost {costs[arm]:.2f})" if costs[arm] else "")
            for arm in rivals[:_NUM_NAMED_ARMS]
        ]
        return "expected quality: " + ", ".join(named)

    def _signals(
        self, learned: Learned, values: Floats, columns: Floats, chosen: Integers, order: NDArray[np.intp]
    ) -> list[str]:
        """The signals that speak most for each chosen arm over the second of `order` [N, A].

        Empty where none does, and where the heads are no sums of them.
        """
        heads, means = learned.model.heads, learned.model.normaliser.mean
        if not isinstance(heads, LinearHeads) or order.shape[1] < 2:
            return [""] * len(values)
        num = len(means)
        weights = heads.weights[:, :num]
        weighed = (weights[chosen] - weights[order[:, 1]]) * columns[:, :num]
        best = np.argsort(-weighed, axis=1, kind="stable")[:, :_NUM_NAMED_SIGNALS]
        parts = (best, np.take_along_axis(weighed, best, 1), np.take_along_axis(values, best, 1), means[best])
        told = []
        for row in zip(*(part.tolist() for part in parts), strict=True):
            said = [
                f"{self.artefact.signals[place]} is {value:.3g} (mean {mean:.3g})"
                for place, weight, value, mean in zip(*row, strict=True)
                if weight > 0
            ]
            told.append("most for it: " + ", ".join(said) if said else "")
        return told

    def _decision(self, place: int, confidence: float | None, *reasons: str) -> Decision:
        arm = self._arms[place]
        return Decision(arm.route, arm.adapter, confidence, reasons, self.name)


def _unfit(artefact: Artefact, serving: Serving) -> str | None:
    """Why the artefact cannot be trusted here, or None."""
    different = artefact.keys.differences(serving.keys)
    served = {parse_arm(arm).adapter for arm in artefact.arms if arm in serving.arms}
    unnamed = sorted({*artefact.keys.adapters} & served - {*serving.keys.adapters})
    different += [f"adapter {name} has no digest now" for name in unnamed]
    if different:
        return f"it was measured with something else ({'; '.join(different)})"
    missing = [arm for arm in artefact.arms if arm not in serving.arms]
    if missing:
        return f"it chooses among arms that cannot answer now ({', '.join(missing)})"
    if artefact.learned is None:
        return None
    unknown = [name for name in artefact.signals if name not in serving.signals]
    if unknown:
        return f"it needs signals that are not computed here ({', '.join(unknown[:5])})"
    return failed_test(artefact.learned)


def failed_test(learned: Learned) -> str | None:
    """Why the router fails its own test, or None: rows of its training must be decided as they were then."""
    test = learned.self_test
    qualities = learned.model.qualities(test.values)
    chosen, _ = learned.policy.choose(test.qualities)
    again, _ = learned.policy.choose(qualities)
    wrong = (chosen != test.chosen) | (again != test.chosen)
    wrong |= np.abs(qualities - test.qualities).max(axis=1) > TEST_TOLERANCE
    if not wrong.any():
        return None
    return f"it fails its own test on {int(wrong.sum())} of {len(wrong)} stored questions"
