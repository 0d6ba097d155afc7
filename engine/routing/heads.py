"""From signals to the expected quality of each arm: arrays that were fitted elsewhere, applied. numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]

# A signal further from its mean counts as this many standard deviations: no question outweighs everything else.
MAX_DEVIATIONS = 6.0
# Logits beyond are certainty in float64 as well.
_MAX_LOGIT = 40.0


def sigmoid(logits: Floats) -> Floats:
    """Probabilities of log-odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -_MAX_LOGIT, _MAX_LOGIT))))


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Signals [N, F] to columns [N, C]: standardised, an unknown one at its mean, then one column for each signal of
    `unknown` that is 1 where it is not known.

    mean, scale: [F]. unknown: [I] positions of signals; C = F + I.
    """

    mean: Floats
    scale: Floats
    unknown: Integers

    @property
    def num_columns(self) -> int:
        """C"""
        return len(self.mean) + len(self.unknown)

    def columns(self, values: Floats) -> Floats:
        """[N, C]; what is not finite is not known."""
        is_known = np.isfinite(values)
        deviations = (np.where(is_known, values, self.mean) - self.mean) / self.scale
        standard = np.clip(deviations, -MAX_DEVIATIONS, MAX_DEVIATIONS)
        return np.concatenate([standard, ~is_known[:, self.unknown]], axis=1)


@dataclass(frozen=True, slots=True)
class LinearHeads:
    """Log-odds that are linear in the columns. weights: [A, C]. bias: [A]."""

    weights: Floats
    bias: Floats

    def scores(self, columns: Floats) -> Floats:
        """[N, A] log-odds."""
        return np.asarray(columns @ self.weights.T + self.bias)


@dataclass(frozen=True, slots=True)
class TreeHeads:
    """Log-odds that are sums over the leaves that a row falls into, of T trees of M nodes for each arm.

    At node 0 first, a row goes `left` where its column `column` is at most `threshold`, else `right`, `depth` times; a
    leaf leads to itself. column, left, right: [A, T, M]. threshold, value: [A, T, M]. bias: [A].
    """

    column: Integers
    threshold: Floats
    left: Integers
    right: Integers
    value: Floats
    bias: Floats
    depth: int

    def scores(self, columns: Floats) -> Floats:
        """[N, A] log-odds. Columns are compared in float32, as the trees were grown."""
        num_arms, num_trees, num_nodes = self.column.shape
        rows = np.arange(len(columns))[:, None]
        starts = np.arange(num_arms * num_trees, dtype=np.int64) * num_nodes
        column, threshold, left, right = (
            each.reshape(-1) for each in (self.column, self.threshold, self.left, self.right)
        )
        compared = columns.astype(np.float32)
        at = np.broadcast_to(starts, (len(columns), len(starts)))
        for _ in range(self.depth):
            goes_left = compared[rows, column[at]] <= threshold[at]
            at = starts + np.where(goes_left, left[at], right[at])
        leaves = self.value.reshape(-1)[at].reshape(len(columns), num_arms, num_trees)
        return np.asarray(leaves.sum(axis=2) + self.bias)


@dataclass(frozen=True, slots=True)
class PlattCurves:
    """Quality as sigmoid(slope * log-odds + offset), of each arm. slope, offset: [A]."""

    slope: Floats
    offset: Floats

    def qualities(self, scores: Floats) -> Floats:
        """[N, A] in [0, 1]."""
        return sigmoid(scores * self.slope + self.offset)


@dataclass(frozen=True, slots=True)
class IsotonicCurves:
    """Quality between points that never fall, of each arm. xs: [A, K] log-odds, ascending. ys: [A, K]."""

    xs: Floats
    ys: Floats

    def qualities(self, scores: Floats) -> Floats:
        """[N, A] in [0, 1]."""
        curves = [np.interp(scores[:, arm], self.xs[arm], self.ys[arm]) for arm in range(len(self.xs))]
        return np.stack(curves, axis=1)


@dataclass(frozen=True, slots=True)
class QualityModel:
    """Expected quality of each of A arms from F signals."""

    normaliser: Normaliser
    heads: LinearHeads | TreeHeads
    curves: PlattCurves | IsotonicCurves

    def scores(self, values: Floats) -> Floats:
        """[N, A] log-odds before calibration."""
        return self.heads.scores(self.normaliser.columns(values))

    def qualities(self, values: Floats) -> Floats:
        """[N, A] calibrated qualities, in [0, 1]."""
        return self.curves.qualities(self.scores(values))


@dataclass(frozen=True, slots=True)
class Policy:
    """Which arm to take, given expected qualities.

    costs: [A], what taking each arm costs in quality: 0 where quality is all that counts. slope, offset: the
    probability that no other arm answers better is sigmoid(slope * margin + offset), of the margin of the chosen arm's
    expected quality over the best other one's, which costs may have made negative.
    """

    costs: Floats
    slope: float
    offset: float

    def choose(self, qualities: Floats, is_allowed: NDArray[np.bool_] | None = None) -> tuple[Integers, Floats]:
        """[N] position of the allowed arm of the best quality less cost, the first of equal ones, and its margin [N].

        Without a second allowed arm the margin is infinite. is_allowed: [N, A], at least one in each row.
        """
        allowed = qualities if is_allowed is None else np.where(is_allowed, qualities, -np.inf)
        best = (allowed - self.costs).argmax(axis=1)
        rows = np.arange(len(qualities))
        others = allowed.copy()
        others[rows, best] = -np.inf
        return best.astype(np.int32), np.asarray(qualities[rows, best] - others.max(axis=1))

    def confidence(self, margins: Floats) -> Floats:
        """[N] calibrated probabilities that no other arm answers better; 1 where there is no other arm."""
        bounded = np.where(np.isfinite(margins), margins, 0.0)
        return np.where(np.isfinite(margins), sigmoid(self.slope * bounded + self.offset), 1.0)
