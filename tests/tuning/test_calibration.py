"""The temperature and what it changes."""

from __future__ import annotations

import numpy as np
import pytest

from engine.tuning.calibration import (
    MIN_ROWS,
    MIN_TEMPERATURE,
    calibrate,
    fit_temperature,
    label_losses,
    label_probabilities,
)


def drawn(num: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Scores that are `temperature` times too sure, and labels drawn from the true probabilities."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(num, 5)) * 2
    targets = [int(draw.choice(5, p=row)) for row in label_probabilities(scores)]
    return scores * temperature - 7.0, targets


def test_probabilities_sum_to_1_and_losses_are_theirs():
    scores, targets = drawn(20, 1.0)
    probabilities = label_probabilities(scores, 1.7)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(20))
    assert label_losses(scores, targets, 1.7) == pytest.approx(-np.log(probabilities[np.arange(20), targets]))
    assert np.isfinite(label_probabilities(np.array([[-4000.0, 0.0]]))).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fitted_temperature_is_the_one_that_made_the_scores_too_sure(temperature: float):
    assert fit_temperature(*drawn(4000, temperature)) == pytest.approx(temperature, rel=0.1)


def test_calibration_lowers_loss_and_error_and_changes_no_answer():
    scores, targets = drawn(2000, 3.0)
    found = calibrate(scores, targets)
    assert found.loss_after < found.loss_before
    assert found.ece_after < 0.05 < found.ece_before
    assert found.num_rows == 2000


def test_few_rows_fit_no_temperature_and_rows_that_are_all_right_fit_the_least():
    scores = np.array([[0.0, -3.0]] * MIN_ROWS)
    assert fit_temperature(scores[1:], [0] * (MIN_ROWS - 1)) == 1.0
    assert fit_temperature(scores, [0] * MIN_ROWS) == pytest.approx(MIN_TEMPERATURE, rel=1e-6)
