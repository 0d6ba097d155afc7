"""Tests of differences, against scipy and against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from engine.metrics.significance import (
    NUM_FLIPS,
    detectable_difference,
    fewest_groups,
    holm,
    mcnemar_p,
    sign_flip_p,
)

RIGHTS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80)


@given(RIGHTS)
def test_mcnemar_is_the_binomial_test_of_the_questions_that_one_side_gets_right(pairs):
    one, other = zip(*pairs, strict=True)
    first = sum(a > b for a, b in pairs)
    num = first + sum(a < b for a, b in pairs)
    expected = binomtest(first, num, 0.5).pvalue if num else 1.0
    assert mcnemar_p(one, other) == pytest.approx(expected)


@given(RIGHTS)
def test_signs_of_single_questions_give_the_same_as_mcnemar_where_all_are_tried(pairs):
    one, other = np.array(pairs[:14], dtype=float).T
    assert sign_flip_p(one - other, range(len(one))) == pytest.approx(mcnemar_p(one, other))


def test_sign_flips_agree_with_scipy_on_graded_differences():
    draw = np.random.default_rng(3)
    one, other = draw.random(40) + 0.1, draw.random(40)
    theirs = permutation_test(
        (one, other), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert sign_flip_p(one - other, np.arange(40)) == pytest.approx(theirs.pvalue, abs=0.01)


def test_a_group_counts_once_however_many_questions_it_has():
    differences = np.ones(60)
    assert sign_flip_p(differences, np.arange(60)) < 0.001
    assert sign_flip_p(differences, np.repeat(np.arange(3), 20)) == pytest.approx(2 / 2**3)


def test_no_p_is_smaller_than_the_draws_can_show():
    assert sign_flip_p(np.ones(200), np.arange(200)) == 1 / (1 + NUM_FLIPS)
    assert sign_flip_p(np.zeros(200), np.arange(200)) == 1.0


def test_the_null_is_rejected_about_as_often_as_alpha_says():
    draw = np.random.default_rng(0)
    ps = [sign_flip_p(draw.normal(size=12), range(12)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.09


def test_holm_multiplies_by_the_tests_that_are_left_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_six_questions_of_one_direction_are_the_fewest_that_show_anything():
    assert fewest_groups() == 6
    assert mcnemar_p([1] * 6, [0] * 6) < 0.05 <= mcnemar_p([1] * 5, [0] * 5)
    assert detectable_difference(np.ones(5), range(5)) is None


def test_a_detectable_difference_is_found_about_as_often_as_the_power_says():
    draw = np.random.default_rng(1)
    noise = draw.normal(size=200)
    least = detectable_difference(noise, range(200))
    assert least is not None
    found = [sign_flip_p(draw.normal(least, noise.std(), size=200), range(200)) < 0.05 for _ in range(100)]
    assert 0.68 <= np.mean(found) <= 0.92


def test_more_questions_detect_less_and_grouped_ones_more():
    draw = np.random.default_rng(2)
    values = draw.integers(-1, 2, size=400).astype(float)
    assert detectable_difference(values, range(400)) < detectable_difference(values[:100], range(100))
    doubled = np.repeat(values, 5)
    assert detectable_difference(doubled, np.repeat(np.arange(400), 5)) == pytest.approx(
        detectable_difference(values, range(400)), rel=0.01
    )
    assert detectable_difference(np.zeros(100), range(100)) == 0.06
