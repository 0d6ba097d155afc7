"""How alike rankings and vectors are, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from engine.metrics.likeness import mean_cosine, overlap


def test_rankings_overlap_where_they_hold_the_same_items():
    assert overlap(("a", "b", "c"), ("c", "x")) == pytest.approx(0.5)
    assert overlap(("a", "b"), ()) is None


def test_mean_cosine_is_that_of_the_pairs():
    rows = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=np.float32)
    assert mean_cosine(rows) == pytest.approx((0.6 + 0.8 + 0.0) / 3)
    assert mean_cosine(rows[:1]) is None
