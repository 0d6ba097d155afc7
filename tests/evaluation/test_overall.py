"""Figures of all questions are means of the sources' means, worked out by hand here, and agree with each other."""

from __future__ import annotations

import numpy as np
import pytest

from engine.evaluation.choosing import one_hot, single_arm
from engine.evaluation.figures import SourceFigures
from engine.evaluation.fitting import Routed
from engine.evaluation.intervals import resampled_means
from engine.evaluation.measuring import arm_figures, measure
from engine.evaluation.outcomes import ArmOutcome, Outcomes, QuestionOutcome
from engine.evaluation.overall import overall_of, weighted_percentile
from engine.evaluation.rivals import MAJORITY, RANDOM, SINGLE, rival_shares
from engine.evaluation.table import make_table
from engine.evaluation.verdict import below_single
from engine.routing.artefact import Objective
from engine.routing.keys import Keys


def question(name, source, base, context):
    """Quality without and with passages, which take 100 and 300 ms."""
    arms = {"base": ArmOutcome(base, "f1", 100.0), "base+context": ArmOutcome(context, "f1", 300.0)}
    return QuestionOutcome(name, source, {"s0": 0.0}, arms)


@pytest.fixture
def table():
    """Three questions of `docs`, which base answers better, and one of `chat`, which needs passages."""
    rows = [
        question("d1", "docs", 0.9, 0.3),
        question("d2", "docs", 0.6, 0.3),
        question("d3", "docs", 0.3, 0.6),
        question("c1", "chat", 0.0, 1.0),
    ]
    return make_table(Outcomes(Keys("m", "i"), tuple(rows), "x"))[0]


@pytest.fixture
def routed():
    """Passages for d3 and c1 are right, those for d2 are not."""
    chosen = np.array([0, 1, 1, 1], dtype=np.int32)
    expected = np.array([[0.8, 0.2], [0.4, 0.5], [0.4, 0.6], [0.1, 0.9]])
    return Routed(expected, expected, np.zeros((4, 2)), chosen, np.full(4, 0.5))


def test_overall_is_the_mean_of_the_means_of_the_sources():
    overall = overall_of(("docs", "docs", "docs", "chat"), np.arange(4))
    assert overall.weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])
    assert overall.num_sources == 2
    assert overall.mean(np.array([1.0, 0.0, 1.0, 0.5])) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert overall.mean_known(np.array([1.0, np.nan, 0.0, 0.1])) == pytest.approx((1 / 2 + 0.1) / 2)
    assert overall.mean_known(np.array([1.0, np.nan, 0.0, np.nan])) == pytest.approx(1 / 2), (
        "chat has none that is known"
    )
    assert overall.mean_known(np.full(4, np.nan)) is None
    assert overall_of(("a", "b", "b") * 71, np.arange(213)).mean(np.ones(213)) == 1.0


def test_best_single_arm_is_that_of_the_sources_and_not_of_the_largest_one(table):
    # By questions base leads: 0.45 to 0.55 there; by sources 0.3 to 0.7.
    assert arm_figures(table, None)[0].quality.value == pytest.approx((0.6 + 0.0) / 2)
    assert arm_figures(table, None)[1].quality.value == pytest.approx((0.4 + 1.0) / 2)
    assert single_arm(Objective(), table) == 1
    # Two of three are better without passages in docs, so by questions no arm is best more often.
    assert rival_shares(table, table, np.zeros(2))[MAJORITY][0].tolist() == [0.0, 1.0]
    assert rival_shares(table, table, np.zeros(2))[SINGLE][0].tolist() == [0.0, 1.0]


def test_every_figure_of_a_route_counts_the_sources_alike(table, routed):
    single = one_hot(np.array([1, 1, 1, 1]), 2)
    figures = measure(table, routed, {SINGLE: single})
    # docs: (0.9 + 0.3 + 0.6) / 3 as routed, (0.9 + 0.6 + 0.6) / 3 at best, 0.4 with passages for all; chat: 1.0.
    assert figures.quality.value == pytest.approx((0.6 + 1.0) / 2)
    assert figures.oracle.value == pytest.approx((0.7 + 1.0) / 2)
    assert figures.regret.value == pytest.approx(0.05)
    assert figures.headroom.value == pytest.approx((0.80 - 0.70) / (0.85 - 0.70))
    assert figures.context_rate == pytest.approx((2 / 3 + 1) / 2)
    assert figures.mean_ms == pytest.approx(100 + 200 * (2 / 3 + 1) / 2)
    assert figures.latency_saved_ms.value == pytest.approx(300 - figures.mean_ms)
    against = {each.name: each for each in figures.comparisons}
    assert (against[SINGLE].routed, against[SINGLE].other) == pytest.approx((0.8, 0.7))
    # Drawn with passages as often, 5 of 6 times: 1/6 of 0.3 and 5/6 of 0.7.
    assert against[RANDOM].other == pytest.approx(0.3 / 6 + 0.7 * 5 / 6)
    assert figures.curve.qualities[0] == pytest.approx(0.3)
    assert figures.curve.qualities[-1] == pytest.approx(0.7)
    points = {each.name: each for each in figures.frontier}
    assert points["this router"].quality == pytest.approx(0.8)
    assert points["this router"].context_rate == pytest.approx(figures.context_rate)
    assert points["this router"].mean_ms == pytest.approx(figures.mean_ms)
    assert points["always base+context"].quality == pytest.approx(0.7)
    assert points["the best arm each time"].quality == pytest.approx(0.85)
    assert [each.chosen for each in arm_figures(table, routed.chosen)] == pytest.approx([1 / 6, 5 / 6])
    assert figures.zones.best_of_differ == pytest.approx((2 / 3 + 1) / 2)
    assert figures.quality.value == pytest.approx(np.mean([each.routed for each in figures.sources]))
    assert against[SINGLE].other == pytest.approx(np.mean([each.single for each in figures.sources]))


def test_percentile_of_equal_weights_is_the_usual_one_and_of_others_leans_to_the_heavier():
    values = np.random.default_rng(0).normal(size=37)
    for percent in (0, 5, 50, 95, 100):
        found = weighted_percentile(values, np.full(37, 1 / 37), percent)
        assert found == pytest.approx(np.percentile(values, percent))
    # 0.5 of the weight that is not its own lies below 20 of weight 0.6: it lies at 0.2 / 0.4.
    assert weighted_percentile(np.array([30.0, 10.0, 20.0]), np.array([0.2, 0.2, 0.6]), 50) == pytest.approx(20.0)
    assert weighted_percentile(np.array([7.0]), np.array([1.0]), 95) == 7.0


def test_draws_of_one_source_are_those_without_sources():
    draw = np.random.default_rng(0)
    values, groups = draw.normal(size=(200, 3)), draw.integers(60, size=200)
    plain = resampled_means(values, groups)
    assert resampled_means(values, groups, np.full(200, 7)) == pytest.approx(plain, abs=1e-12)


def test_draws_of_groups_are_weighed_anew_by_what_each_has_of_the_sources():
    """Beside an implementation that draws rows one group at a time. Groups may be of two sources."""
    draw = np.random.default_rng(3)
    groups = np.repeat(np.arange(50), 6)
    sources = np.where(groups < 40, 0, draw.integers(2, size=300))
    values = draw.normal(size=300) + 3 * sources
    means = []
    for _ in range(3_000):
        rows = np.concatenate([np.flatnonzero(groups == group) for group in draw.integers(50, size=50)])
        present = np.unique(sources[rows])
        means.append(np.mean([values[rows][sources[rows] == source].mean() for source in present]))
    found = overall_of(tuple(map(str, sources)), groups).resampled(values[:, None])[:, 0]
    assert found.mean() == pytest.approx(np.mean(means), abs=0.01)
    assert found.std() == pytest.approx(np.std(means), rel=0.08)


def test_a_draw_with_more_of_a_source_is_no_better_for_it():
    sources = np.repeat([0, 1], [90, 30])
    values = sources.astype(float)
    assert resampled_means(values[:, None], np.arange(120))[:, 0].std() > 0.03
    assert resampled_means(values[:, None], np.arange(120), sources)[:, 0].std() == pytest.approx(0.0, abs=1e-9)


def test_draw_that_lacks_a_source_is_the_mean_of_the_others():
    groups, sources = np.arange(40), np.array(["a"] * 39 + ["b"])
    values = np.where(sources == "a", 1.0, 0.0)
    found = overall_of(tuple(sources.tolist()), groups).resampled(values[:, None])[:, 0]
    assert {*found.round(9).tolist()} == {0.5, 1.0}
    # (39/40)**40 of the draws have no question of b.
    assert np.mean(found > 0.9) == pytest.approx((39 / 40) ** 40, abs=0.03)


def source(name, single, routed, gain):
    return SourceFigures(name, 50, "base", routed, single, routed, 1.0, gain, 0.5)


def test_sources_that_lie_below_the_best_single_arm_are_named_and_those_that_cannot_be_told():
    better = source("docs", 0.4, 0.5, (0.02, 0.18))
    unsure = source("chat", 0.5, 0.45, (-0.12, 0.02))
    worse = source("bank", 0.9, 0.8, (-0.15, -0.05))
    few = source("tiny", 0.2, 0.1, None)
    assert below_single([better, unsure]) == "no source lies below the best single arm beyond its interval"
    assert below_single([better, worse, few]) == (
        "below the best single arm beyond the interval: bank -0.100 (95 % interval -0.150 to -0.050); "
        "too few groups to tell: tiny -0.100"
    )
