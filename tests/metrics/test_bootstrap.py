"""Intervals hold what they should."""

from __future__ import annotations

import numpy as np
import pytest

from engine.metrics.bootstrap import paired_interval


def test_interval_is_that_of_drawing_rows_with_replacement():
    draw = np.random.default_rng(3)
    differences = draw.choice([-1.0, 0.0, 0.5, 1.0], size=80)
    low, high = paired_interval(differences)
    means = [draw.choice(differences, size=80).mean() for _ in range(20_000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), abs=0.02)
    assert paired_interval(differences) == (low, high)


def test_interval_of_few_rows_is_not_given():
    assert paired_interval([1.0] * 29) is None
    assert paired_interval([1.0] * 30) == (1.0, 1.0)
