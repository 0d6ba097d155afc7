"""Measures of probabilities by worked examples."""

from __future__ import annotations

import pytest

from engine.metrics.calibration import brier_score, expected_calibration_error


def test_calibration_error_is_the_gap_of_confidence_and_share_of_right_answers():
    assert expected_calibration_error([0.8] * 100, [True] * 80 + [False] * 20) == pytest.approx(0.2, abs=0.2)
    assert expected_calibration_error([1.0] * 50, [False] * 50) == 1.0
    assert expected_calibration_error([0.9, 0.6], [True, True]) == pytest.approx(0.25)


def test_calibration_error_counts_each_row_once_where_bins_are_unequal():
    # 11 rows in 10 bins: the first holds two, 0.0 and 0.1, of which one is right; the others are sure and wrong.
    confidences = [0.0, 0.1, *[1.0] * 9]
    is_right = [False, True, *[False] * 9]
    assert expected_calibration_error(confidences, is_right) == pytest.approx((2 * 0.45 + 9 * 1.0) / 11)


def test_brier_score_is_the_mean_squared_error():
    assert brier_score([1.0, 0.5, 0.2], [True, False, False]) == pytest.approx((0.0 + 0.25 + 0.04) / 3)


@pytest.mark.parametrize("measure", [expected_calibration_error, brier_score])
def test_no_rows_have_no_measure(measure):
    with pytest.raises(ValueError, match="no rows"):
        measure([], [])
