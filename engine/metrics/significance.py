"""Whether two systems differ on the same questions, and what a set of questions could show at all.

McNemar's exact test is for answers that are right or wrong (Psychometrika 12, 1947): under the null a question that
only one side gets right is as likely to be the other's. Graded answers are tested by flipping signs: under the null
each difference is as likely to be its negative (Fisher's randomisation test). Several tests are corrected by Holm's
method (Scandinavian Journal of Statistics 6, 1979), which holds however they depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, comb, log2, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

NUM_FLIPS = 20_000
# Of so few all signs are tried.
_MAX_EXACT = 14
_CHUNK = 4_000_000
_ROUNDING = 1e-9

Numbers = Sequence[float] | NDArray[np.float64]
Groups = Sequence[int] | NDArray[np.int64]


def mcnemar_p(one: Numbers, other: Numbers) -> float:
    """Two-sided p of as uneven a split of the questions that only one side gets right. 1 is right, 0 is wrong."""
    mine, theirs = np.asarray(one), np.asarray(other)
    first, second = int(np.sum(mine > theirs)), int(np.sum(mine < theirs))
    num = first + second
    tail = sum(comb(num, place) for place in range(min(first, second) + 1))
    return min(1.0, float(2 * tail / 2**num))


def sign_flip_p(differences: Numbers, groups: Groups, seed: int = 0) -> float:
    """Two-sided p of as large a mean difference where the signs of whole groups are drawn by chance.

    Exact for few groups that differ; else of NUM_FLIPS draws, and never below 1 / (NUM_FLIPS + 1).
    """
    sums = np.abs(_sums(np.asarray(differences, dtype=np.float64), np.asarray(groups)))
    seen = abs(float(np.sum(differences))) - _ROUNDING
    sums = sums[sums > _ROUNDING]
    if len(sums) == 0:
        return 1.0
    if len(sums) <= _MAX_EXACT:
        flips = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float(np.mean(np.abs((2 * flips - 1) @ sums) >= seen))
    draw = np.random.default_rng(seed)
    num_as_large, step = 0, max(1, _CHUNK // len(sums))
    for first in range(0, NUM_FLIPS, step):
        flips = draw.integers(0, 2, size=(min(step, NUM_FLIPS - first), len(sums)), dtype=np.int8)
        num_as_large += int(np.sum(np.abs((2.0 * flips - 1.0) @ sums) >= seen))
    return (1 + num_as_large) / (1 + NUM_FLIPS)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p corrected for being one of several, in their order."""
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    found, highest = [1.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = highest
    return found


def fewest_groups(alpha: float = 0.05) -> int:
    """So many groups must differ, all in one direction, before either test gives a p below `alpha`."""
    return ceil(log2(2 / alpha))


def detectable_difference(
    differences: Numbers, groups: Groups, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The smallest mean difference that would be found, with probability `power`, on as many and as varied questions.

    None where there are too few groups for any. Questions of one group count together.
    """
    values, places = np.asarray(differences, dtype=np.float64), np.asarray(groups)
    num_groups, fewest = len(np.unique(places)), fewest_groups(alpha)
    if num_groups < max(fewest, 2):
        return None
    spread = _sums(values - values.mean(), places)
    error = sqrt(float(np.sum(spread**2)) * num_groups / (num_groups - 1)) / len(values)
    normal = NormalDist()
    # Where hardly anything differs, so many groups would still have to.
    return max((normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * error, _least(values, num_groups, fewest))


def _least(values: NDArray[np.float64], num_groups: int, fewest: int) -> float:
    sizes = np.abs(values[np.abs(values) > _ROUNDING])
    # Small differences add up to less than whole ones.
    return fewest / num_groups * (float(sizes.mean()) if len(sizes) else 1.0)


def _sums(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    places = np.unique(groups, return_inverse=True)[1]
    return np.asarray(np.bincount(places, weights=values), dtype=np.float64)
