"""Measures of probabilities by worked examples."""

from __future__ import annotations

import pytest

from engine.metrics.calibration import expected_calibration_error


def test_calibration_error_is_the_gap_of_confidence_and_share_of_right_answers():
    assert expected_calibration_error([0.8] * 100, [True] * 80 + [False] * 20) == pytest.approx(0.2, abs=0.2)
    assert expected_calibration_error([1.0] * 50, [False] * 50) == 1.0
    assert expected_calibration_error([0.9, 0.6], [True, True]) == pytest.approx(0.25)
