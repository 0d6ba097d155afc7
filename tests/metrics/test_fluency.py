"""Repetition and variety of words."""

from __future__ import annotations

import pytest

from engine.metrics.fluency import distinct_2, repetition


def test_repetition_is_the_share_of_runs_that_came_before():
    assert repetition("one two three four five") == 0.0
    assert repetition("yes yes yes") == 0.0
    # Runs: abcd, bcda, cdab, dabc, abcd.
    assert repetition("a b c d. A b c d!") == pytest.approx(1 / 5)


def test_distinct_2_counts_pairs_over_all_answers():
    assert distinct_2(["a b c", "a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["a", ""]) is None
