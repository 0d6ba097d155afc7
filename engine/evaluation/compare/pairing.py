"""Every two arms on the same questions: whether they differ, and what these questions could show at all."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from engine.evaluation.compare.figures import Bound, Finding, Pair
from engine.evaluation.compare.measuring import Sheet
from engine.evaluation.figures import Estimate
from engine.evaluation.intervals import bounds, grouped_interval, resampled_means
from engine.evaluation.table import DISCORDANT
from engine.metrics.significance import detectable_difference, fewest_groups, holm, mcnemar_p, sign_flip_p

ALPHA = 0.05
MCNEMAR, SIGN_FLIP = "McNemar, exact", "sign flips"


def compare_pairs(sheet: Sheet) -> tuple[Pair, ...]:
    """All pairs, corrected together, since the best arm is only known by looking at all of them."""
    means = resampled_means(sheet.quality, sheet.groups)
    places = [*combinations(range(len(sheet.contenders)), 2)]
    num_groups = len(np.unique(sheet.groups))
    # McNemar's test takes the questions as independent, which those of one group are not.
    is_mcnemar = sheet.is_binary and num_groups == len(sheet.questions)
    alone = [_p(sheet, one, other, is_mcnemar=is_mcnemar) for one, other in places]
    level = ALPHA / len(places) if places else ALPHA
    found = []
    for (one, other), p_alone, p in zip(places, alone, holm(alone), strict=True):
        differences = sheet.quality[:, one] - sheet.quality[:, other]
        found.append(
            Pair(
                first=sheet.contenders[one].name,
                second=sheet.contenders[other].name,
                difference=float(differences.mean()),
                interval=None if means is None else bounds(means[:, one] - means[:, other]),
                p_alone=p_alone,
                p=p,
                test=MCNEMAR if is_mcnemar else SIGN_FLIP,
                detectable=detectable_difference(differences, sheet.groups, alpha=level),
                finding=_finding(float(differences.mean()), p, num_groups, level),
            )
        )
    return tuple(found)


def bound_of(sheet: Sheet) -> Bound | None:
    """What the best choice for each question would reach; None of a single arm."""
    fixed = [place for place, each in enumerate(sheet.contenders) if each.kind != "auto"]
    if len(fixed) < 2:
        return None
    quality = sheet.quality[:, fixed]
    best = quality.max(axis=1)
    return Bound(
        quality=Estimate(float(best.mean()), grouped_interval(best, sheet.groups)),
        gain=float(best.mean() - quality.mean(axis=0).max()),
        num_differ=int(np.sum(best - quality.min(axis=1) >= DISCORDANT)),
    )


def _p(sheet: Sheet, one: int, other: int, *, is_mcnemar: bool) -> float:
    first, second = sheet.quality[:, one], sheet.quality[:, other]
    return mcnemar_p(first, second) if is_mcnemar else sign_flip_p(first - second, sheet.groups)


def _finding(difference: float, p: float, num_groups: int, level: float) -> Finding:
    if num_groups < fewest_groups(level):
        return "too few"
    if p >= ALPHA:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"
