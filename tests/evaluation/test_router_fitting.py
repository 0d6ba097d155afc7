"""What scikit-learn fits is what the arrays compute, curves and costs do what they are for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_outcomes import decided_by_first, decided_by_nothing, made

from engine.errors import ConfigError
from engine.evaluation import fitting_heads
from engine.evaluation.calibrating import MIN_ISOTONIC_ROWS, fit_curves, fit_platt
from engine.evaluation.choosing import (
    check_objective,
    find_costs,
    measured,
    one_hot,
    routed_by,
    single_arm,
)
from engine.evaluation.fitting_heads import fit_linear, fit_normaliser, fit_trees, question_weights
from engine.evaluation.folds import make_folds
from engine.evaluation.overall import overall_of
from engine.evaluation.rivals import (
    MAJORITY,
    NEIGHBOURS,
    SINGLE,
    WORDS,
    held_to,
    random_shares,
    rival_shares,
    rivals_not_run,
)
from engine.evaluation.table import make_table
from engine.metrics.calibration import expected_calibration_error
from engine.metrics.ranking import auroc
from engine.routing.artefact import Objective
from engine.routing.heads import IsotonicCurves, PlattCurves, sigmoid


@pytest.fixture(scope="module")
def table():
    return make_table(made(400, decided_by_first, unknown=0.3))[0]


def test_normaliser_is_fitted_to_what_is_known():
    values = np.array([[1.0, 5.0, np.nan], [3.0, np.nan, np.nan], [5.0, 5.0, np.nan]])
    normaliser = fit_normaliser(values)
    assert normaliser.mean[:2].tolist() == [3.0, 5.0]
    assert normaliser.scale[0] == pytest.approx(np.std([1, 3, 5]))
    assert normaliser.unknown.tolist() == [1]
    # Neither a constant signal nor one that was never known can speak later.
    assert normaliser.columns(np.array([[3.0, 900.0, 900.0]]))[0] == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_questions_count_by_what_is_lost_on_them(table):
    weights = question_weights(table)
    assert weights.mean() == pytest.approx(1)
    matters = table.regret > 0.5
    assert weights[matters].min() / weights[~matters].max() == pytest.approx(10)


def test_linear_heads_find_the_signal_that_decides(table):
    normaliser = fit_normaliser(table.values)
    heads, unseen = fit_linear(normaliser.columns(table.values), table, make_folds(table, 3, 0))
    base, context = heads.weights[:, 0], heads.weights[:, 1:]
    assert base[0] < -0.5 < 0.5 < base[1]
    assert np.abs(context).max() < np.abs(base).min() / 2
    assert np.corrcoef(unseen[:, 1], heads.scores(normaliser.columns(table.values))[:, 1])[0, 1] > 0.95


def test_scores_that_curves_are_fitted_to_know_nothing_of_their_own_row(table):
    # Noise: a head that had seen a row would lean towards its quality.
    columns = np.random.default_rng(0).normal(size=(len(table), 60))
    heads, unseen = fit_linear(columns, table, make_folds(table, 3, 0))
    assert auroc(heads.scores(columns)[:, 0], table.quality[:, 0] > 0.5) > 0.6
    assert auroc(unseen[:, 0], table.quality[:, 0] > 0.5) < 0.56


def test_arm_that_is_always_right_has_a_head_that_says_so(table):
    always = replace(table, quality=np.column_stack([np.ones(len(table)), table.quality[:, 1]]))
    heads, _ = fit_linear(fit_normaliser(table.values).columns(table.values), always, make_folds(table, 3, 0))
    assert heads.weights[0].tolist() == [0.0] * 4
    assert sigmoid(heads.bias)[0] > 0.99


def test_trees_as_arrays_say_what_scikit_learn_says(table):
    columns = fit_normaliser(table.values).columns(table.values)
    trees = fit_trees(columns, table, seed=3)
    inputs, labels, counted = fitting_heads._doubled(columns, table.quality[:, 1], question_weights(table))
    model = fitting_heads._booster(3).fit(inputs, labels, sample_weight=counted)
    asked = np.random.default_rng(9).normal(size=(200, columns.shape[1]))
    assert trees.scores(asked)[:, 1] == pytest.approx(model.decision_function(asked), abs=1e-9)


def test_platt_undoes_what_is_too_sure():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=4_000)
    right = (draw.random(4_000) < sigmoid(logits)).astype(float)
    slope, offset = fit_platt(5 * logits + 3, right)
    assert slope == pytest.approx(0.2, abs=0.02)
    assert offset == pytest.approx(-0.6, abs=0.1)


def test_platt_of_scores_that_are_the_wrong_way_round_is_the_mean():
    scores = np.linspace(-1, 1, 100)
    slope, offset = fit_platt(scores, (scores < -0.5).astype(float))
    assert slope == 0.0
    assert sigmoid(np.array([offset]))[0] == pytest.approx(0.25, abs=0.01)


def test_curve_is_platts_for_few_rows_and_isotonic_for_many_and_both_calibrate():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(MIN_ISOTONIC_ROWS, 2)) * 4
    quality = (draw.random(scores.shape) < sigmoid(scores / 4)).astype(float)
    few, many = fit_curves(scores[:-1], quality[:-1]), fit_curves(scores, quality)
    assert isinstance(few, PlattCurves)
    assert isinstance(many, IsotonicCurves)
    before = expected_calibration_error(sigmoid(scores)[:, 0], quality[:, 0])
    for curves in (few, many):
        assert expected_calibration_error(curves.qualities(scores)[:, 0], quality[:, 0]) < before / 2


def test_single_arm_is_the_best_that_keeps_to_the_objective(table):
    better = replace(table, quality=np.column_stack([table.quality[:, 0] * 0.5, np.ones(len(table))]))
    assert single_arm(Objective(), better) == 1
    assert single_arm(Objective("budget", budget=0.5), better) == 0
    assert single_arm(Objective(max_p95_ms=200), better) == 0
    same = replace(table, quality=np.ones_like(table.quality))
    assert single_arm(Objective(), same) == 0, "the faster of equal ones"


def test_objective_that_no_arm_fits_is_refused_with_what_could_be(table):
    with pytest.raises(ConfigError, match=r"within 5 ms; the lowest is 1\d\d ms"):
        check_objective(Objective(max_p95_ms=5), table)


def test_budget_is_kept_on_the_questions_that_it_was_found_on(table):
    expected = np.column_stack([np.full(len(table), 0.5), 0.5 + 0.1 * table.values[:, 0]])
    for budget in (0.0, 0.1, 0.3):
        costs = find_costs(Objective("budget", budget=budget), expected, table)
        share = routed_by(costs, expected)[:, 1].mean()
        assert share == pytest.approx(budget, abs=1 / len(table))
    # Where passages gain nothing they are not used up to the budget.
    assert routed_by(find_costs(Objective("budget", budget=0.9), expected, table), expected)[:, 1].mean() < 0.6


def test_latency_is_bought_only_as_far_as_quality_allows():
    table, _ = make_table(made(600, decided_by_first))
    expected = np.column_stack([sigmoid(-3 * table.values[:, 0]), sigmoid(3 * table.values[:, 0])])
    free = routed_by(np.zeros(2), expected)
    for epsilon in (0.0, 0.5):
        chosen = routed_by(find_costs(Objective("latency", epsilon=epsilon), expected, table), expected)
        lost = table.quality[:, single_arm(Objective(), table)].mean() - measured(chosen, table.quality).mean()
        assert lost <= epsilon
        assert measured(chosen, table.latency_ms).mean() < measured(free, table.latency_ms).mean()


def test_p95_is_within_its_limit_where_the_quality_objective_has_one(table):
    expected = np.column_stack([np.full(len(table), 0.4), 0.5 + 0.1 * table.values[:, 0]])
    costs = find_costs(Objective(max_p95_ms=250), expected, table)
    assert np.percentile(measured(routed_by(costs, expected), table.latency_ms), 95) <= 250
    assert find_costs(Objective(), expected, table).tolist() == [0.0, 0.0]


def test_rivals_know_the_training_questions_only():
    def words(arm, values):
        return np.where(np.arange(len(values)) % 2 == int(arm.endswith("+context")), 1.0, 0.0)

    table, _ = make_table(made(300, words, with_texts=True, embeddings="noise"))
    table = replace(table, texts=tuple("open the door" if row % 2 else "close the lid" for row in range(300)))
    train, test = table.take(np.arange(200)), table.take(np.arange(200, 300))
    shares = rival_shares(train, test, np.zeros(2))
    assert {*shares} == {SINGLE, MAJORITY, WORDS, NEIGHBOURS}
    assert measured(shares[WORDS], test.quality).mean() == 1.0
    assert measured(shares[SINGLE], test.quality).mean() == 0.5
    assert rivals_not_run(table) == {}


def test_neighbours_find_what_is_near():
    table, _ = make_table(made(400, decided_by_first, num_signals=2, embeddings="signals"))
    train, test = table.take(np.arange(300)), table.take(np.arange(300, 400))
    shares = rival_shares(train, test, np.zeros(2))
    assert measured(shares[NEIGHBOURS], test.quality).mean() > measured(shares[SINGLE], test.quality).mean() + 0.15
    assert WORDS not in shares
    assert "no texts" in rivals_not_run(table)[WORDS]


def test_majority_is_the_arm_that_is_best_most_often_and_single_the_one_of_the_best_mean():
    table, _ = make_table(made(10, decided_by_nothing))
    quality = np.array([[0.6, 0.5]] * 7 + [[0.0, 1.0]] * 3)
    shares = rival_shares(replace(table, quality=quality), table, np.zeros(2))
    assert (shares[MAJORITY][0].tolist(), shares[SINGLE][0].tolist()) == ([1.0, 0.0], [0.0, 1.0])


def test_rival_is_held_to_a_share_of_passages_by_leaving_them_out_by_chance():
    table, _ = make_table(made(10, decided_by_nothing))
    shares = one_hot(np.array([1] * 6 + [0] * 4), 2)
    held = held_to(0.3, shares, table, table.overall)
    assert held[:6] == pytest.approx(np.array([[0.5, 0.5]] * 6))
    assert held[6:].tolist() == [[1.0, 0.0]] * 4
    assert held_to(0.6, shares, table, table.overall) is shares


def test_random_arms_are_drawn_as_often_as_the_route_takes_them():
    chosen = one_hot(np.array([0, 1, 1, 1]), 2)
    alike = overall_of(("docs",) * 4, np.arange(4))
    assert random_shares(chosen, alike).tolist() == [[0.25, 0.75]] * 4
    assert random_shares(chosen, overall_of(("a", "a", "b", "b"), np.arange(4))).tolist() == [[0.25, 0.75]] * 4
    # One of the three of a, none of b.
    two = overall_of(("a", "a", "a", "b"), np.arange(4))
    assert random_shares(chosen, two) == pytest.approx(np.tile([1 / 6, 5 / 6], (4, 1)))
