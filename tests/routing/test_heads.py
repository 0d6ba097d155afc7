"""Heads, curves and the choice, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from made_router import learned, linear, trees

from engine.routing.heads import MAX_DEVIATIONS, IsotonicCurves, LinearHeads, Normaliser, Policy, sigmoid


def test_unknown_signal_counts_as_its_mean_and_says_so_in_a_column_of_its_own():
    normaliser = Normaliser(np.array([1.0, 10.0]), np.array([2.0, 5.0]), np.array([1], dtype=np.int32))
    columns = normaliser.columns(np.array([[3.0, 20.0], [np.nan, np.nan], [1.0, np.inf]]))
    assert columns.tolist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]


def test_signal_far_out_of_its_range_counts_as_six_deviations():
    normaliser = Normaliser(np.zeros(1), np.ones(1), np.zeros(0, dtype=np.int32))
    assert normaliser.columns(np.array([[1e300], [-1e300]])).tolist() == [[MAX_DEVIATIONS], [-MAX_DEVIATIONS]]


def test_linear_heads_are_sums_of_weighted_columns():
    heads = LinearHeads(np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([0.5, 0.0]))
    assert heads.scores(np.array([[3.0, 4.0]])).tolist() == [[11.5, -4.0]]


def test_trees_send_a_row_left_up_to_the_threshold_and_stay_in_a_leaf():
    scores = trees().scores(np.array([[-1.0, 0.0, 0.0], [0.0, 9.0, 9.0], [0.1, 0.0, 0.0]]))
    assert scores.tolist() == [[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]


def test_each_row_of_a_batch_is_scored_as_it_is_alone():
    columns = np.random.default_rng(0).normal(size=(33, 3))
    for heads in (linear(), trees()):
        alone = np.concatenate([heads.scores(columns[row : row + 1]) for row in range(33)])
        assert heads.scores(columns) == pytest.approx(alone, abs=1e-12)


def test_isotonic_curve_is_straight_between_its_points_and_flat_outside():
    curves = IsotonicCurves(np.array([[0.0, 2.0]]), np.array([[0.2, 0.6]]))
    assert curves.qualities(np.array([[-1.0], [1.0], [5.0]]))[:, 0] == pytest.approx([0.2, 0.4, 0.6])


def test_choice_is_the_best_allowed_arm_after_its_cost_and_its_margin_is_in_quality():
    policy = Policy(np.array([0.0, 0.3, 0.0]), 1.0, 0.0)
    qualities = np.array([[0.5, 0.7, 0.1], [0.5, 0.9, 0.1], [0.5, 0.9, 0.1]])
    allowed = np.array([[True] * 3, [True] * 3, [True, False, True]])
    chosen, margins = policy.choose(qualities, allowed)
    assert chosen.tolist() == [0, 1, 0]
    assert margins == pytest.approx([-0.2, 0.4, 0.4])


def test_choice_without_a_second_arm_has_no_bound_on_its_margin():
    policy = Policy(np.zeros(2), 1.0, 0.0)
    margins = policy.choose(np.array([[0.1, 0.9]]), np.array([[True, False]]))[1]
    assert margins.tolist() == [np.inf]
    assert policy.confidence(margins).tolist() == [1.0]


def test_equal_arms_give_the_first():
    assert Policy(np.zeros(2), 1.0, 0.0).choose(np.array([[0.5, 0.5]]))[0].tolist() == [0]


def test_certainty_of_any_size_is_a_probability():
    assert sigmoid(np.array([-1e9, 0.0, 1e9])) == pytest.approx([0.0, 0.5, 1.0], abs=1e-9)


def test_model_expects_passages_to_help_where_the_signal_is_high():
    qualities = learned().model.qualities(np.array([[2.0, 1.0], [-2.0, 1.0]]))
    assert qualities[0, 1] > 0.9 > 0.1 > qualities[0, 0]
    assert qualities[1, 0] > 0.9 > 0.1 > qualities[1, 1]
