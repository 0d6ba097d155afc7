"""The router learns what there is to learn, admits what there is not, and is never kept without a reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_outcomes import decided_by_first, decided_by_nothing, decided_gradually, made
from made_router import SERVING

from engine.errors import TrainingDataError
from engine.evaluation import fitting, training
from engine.evaluation.evaluate import evaluate_router
from engine.evaluation.outcomes import Outcomes
from engine.evaluation.rivals import RANDOM, SINGLE
from engine.evaluation.training import train_router
from engine.routing.artefact import Objective, write_artefact
from engine.routing.decide import Router, Serving
from engine.routing.heads import TreeHeads

CREATED = "2026-01-02T03:04:05+00:00"


def trained(outcomes: Outcomes, objective: Objective | None = None, **options):
    return train_router(outcomes, objective or Objective(), created=CREATED, **options)


@pytest.fixture(scope="module")
def clear():
    """What is learned where one signal decides."""
    return trained(made(600, decided_by_first, unknown=0.2, with_texts=True, embeddings="noise"))


def test_signal_that_decides_is_learned_and_beats_every_rival(clear):
    figures = clear.evaluation.routed
    assert clear.evaluation.verdict.is_learned, clear.evaluation.verdict
    assert {each.name for each in figures.comparisons} == {
        *(SINGLE, RANDOM, "majority arm", "TF-IDF + LR", "kNN over embeddings")
    }
    assert all(each.is_better for each in figures.comparisons)
    # 0.85 where the right arm answers; 0.55 by either arm alone.
    assert figures.quality.value == pytest.approx(0.84, abs=0.05)
    assert figures.quality.interval[0] < figures.quality.value < figures.quality.interval[1]
    assert figures.pairs[0].auroc > 0.9
    assert 0.4 < figures.context_rate < 0.6


def test_figures_of_a_route_agree_with_each_other(clear):
    figures = clear.evaluation.routed
    assert figures.regret.value == pytest.approx(figures.oracle.value - figures.quality.value)
    single = next(each for each in figures.comparisons if each.name == SINGLE).other
    headroom = (figures.quality.value - single) / (figures.oracle.value - single)
    assert figures.headroom.value == pytest.approx(headroom)
    assert sum(each.chosen for each in clear.evaluation.arms) == pytest.approx(1)
    zones = figures.zones
    assert zones.all_good + zones.differ + zones.all_poor == pytest.approx(1)
    assert zones.differ == pytest.approx(clear.evaluation.num_discordant / 600)
    assert figures.curve.context_rates[0] == 0.0
    assert figures.curve.context_rates[-1] == 1.0
    assert figures.curve.area.interval[0] > 0.05
    names = [point.name for point in figures.frontier]
    assert names[0] == "this router"
    assert names[-3:] == ["always base", "always base+context", "the best arm each time"]
    assert figures.frontier[-1].quality == pytest.approx(figures.oracle.value)


def test_expected_quality_and_confidence_mean_what_they_say():
    figures = trained(made(800, decided_gradually)).evaluation.routed
    for each in figures.calibration:
        assert each.ece_after < 0.08
        assert each.brier_after < 0.2
    assert figures.reliability.ece < 0.08


def test_router_that_is_kept_decides_by_the_signal_after_it_was_written(clear, tmp_path):
    written = write_artefact(clear.artefact, tmp_path)
    assert len(written.learned.self_test.chosen) == 20
    assert {*written.learned.self_test.chosen.tolist()} == {0, 1}
    router = Router(written, Serving(SERVING.keys, written.arms, written.signals))
    assert router.warning is None
    found = router.decide(np.array([[1.5, 0.0, np.nan], [-1.5, 0.0, 0.0]]))
    assert [each.route for each in found] == ["rag", "direct"]
    assert all(each.confidence > 0.7 for each in found)
    assert "most for it: s0 is 1.5" in found[0].reasons[1]


def test_same_outcomes_and_seed_give_the_same_router(clear):
    again = trained(made(600, decided_by_first, unknown=0.2, with_texts=True, embeddings="noise"))
    assert again.evaluation == clear.evaluation
    weights = [each.artefact.learned.model.heads.weights for each in (again, clear)]
    assert weights[0].tolist() == weights[1].tolist()


def test_signals_that_say_nothing_leave_the_best_single_arm_with_the_reason():
    found = trained(made(500, decided_by_nothing))
    verdict = found.evaluation.verdict
    assert not verdict.is_learned
    assert verdict.headline.startswith("Not learned: beyond chance the route is no better than ")
    assert verdict.headline.endswith("base+context answers every question.")
    assert (found.artefact.learned, found.artefact.best_arm) == (None, "base+context")
    assert found.evaluation.routed is not None, "what was tried is shown"


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (made(10, decided_by_first), "10 questions are too few; 300 are needed"),
        (made(299, decided_by_first), "299 questions are too few"),
        (made(300, lambda arm, values: np.ones(len(values))), "on 0 of 300 questions; 50 are needed"),
        (made(300, decided_by_first, group_size=10), "in 30 groups; 50 are needed"),
        (made(300, decided_by_first, num_signals=1, unknown=1.0), "no signal of any question is known"),
    ],
    ids=["ten", "299", "ties", "groups", "unknown"],
)
def test_too_little_gives_the_best_single_arm_with_the_reason(outcomes, said):
    found = trained(outcomes)
    assert said in found.evaluation.verdict.headline
    assert found.artefact.learned is None
    assert found.evaluation.routed is None
    assert found.artefact.headline == found.evaluation.verdict.headline


def test_one_arm_alone_is_refused():
    with pytest.raises(TrainingDataError, match="outcomes of base alone; a route needs two arms"):
        trained(made(400, decided_by_first, arms=("base",)))
    with pytest.raises(TrainingDataError, match="outcomes of base alone"):
        trained(made(400, decided_by_first), arms=["base"])


def test_three_arms_are_told_apart():
    def rate(arm, values):
        wanted = np.select([values[:, 0] < -0.4, values[:, 0] > 0.4], [0, 1], 2)
        return np.where(wanted == ("base", "base+context", "support").index(arm), 0.9, 0.2)

    # The adapter is best in the middle, which no line over s0 says: its square does.
    outcomes = made(900, rate, arms=("base", "base+context", "support"))
    squared = tuple(
        replace(each, signals={**each.signals, "s0.squared": each.signals["s0"] ** 2}) for each in outcomes.questions
    )
    found = trained(replace(outcomes, questions=squared))
    assert found.evaluation.verdict.is_learned, found.evaluation.verdict
    assert all(each.chosen > 0.2 for each in found.evaluation.arms)
    assert len(found.evaluation.routed.pairs) == 3
    assert all(each.auroc > 0.8 for each in found.evaluation.routed.pairs)


def test_knowing_the_source_alone_shows_as_chance_within_sources():
    def rate(arm, values):
        is_docs = np.arange(len(values)) % 2 == 0
        return np.where(is_docs == arm.endswith("+context"), 0.8, 0.3)

    outcomes = made(600, rate, sources=("docs", "trivia"))
    told = tuple(
        replace(each, signals={**each.signals, "topic": float(each.source == "docs")}) for each in outcomes.questions
    )
    found = trained(replace(outcomes, questions=told))
    (pair,) = found.evaluation.routed.pairs
    assert pair.auroc > 0.75
    assert pair.num_sources == 2
    assert 0.4 < pair.within < 0.6
    assert [(each.source, each.best_arm) for each in found.evaluation.routed.sources] == [
        ("docs", "base+context"),
        ("trivia", "base"),
    ]
    assert all(
        each.routed == pytest.approx(each.best_arm_quality, abs=0.03) for each in found.evaluation.routed.sources
    )


def test_budget_of_passages_is_kept_on_questions_that_were_not_fitted_on():
    found = trained(made(600, decided_by_first), Objective("budget", budget=0.25))
    assert found.evaluation.routed.context_rate == pytest.approx(0.25, abs=0.06)
    assert found.artefact.best_arm == "base", "passages for all would not keep to the budget"


def test_latency_is_saved_where_the_fast_arm_is_as_good():
    def rate(arm, values):
        return np.where((values[:, 0] > 0) | arm.endswith("+context"), 0.9, 0.1)

    found = trained(made(900, rate), Objective("latency", epsilon=0.05))
    figures = found.evaluation.routed
    assert found.artefact.best_arm == "base+context"
    assert found.evaluation.verdict.is_learned, found.evaluation.verdict
    assert figures.latency_saved_ms.interval[0] > 50
    assert figures.quality.value > found.evaluation.arms[1].quality.value - 0.05


def test_limit_of_latency_is_kept_by_the_route():
    found = trained(made(600, decided_by_first), Objective(max_p95_ms=340.0))
    assert found.evaluation.routed.p95_ms < 350
    assert found.artefact.best_arm == "base", "passages for all would be too slow"
    assert "of 340 ms allowed" in found.evaluation.verdict.reasons[-1]


def test_trees_are_taken_where_they_win_and_only_for_many_questions(monkeypatch):
    def rate(arm, values):
        # Either sign of both: no line separates it, two cuts do.
        is_same = values[:, 0] * values[:, 1] > 0
        return np.where(is_same == arm.endswith("+context"), 0.95, 0.05)

    outcomes = made(800, rate, num_signals=2)
    plain = trained(outcomes)
    assert not plain.evaluation.verdict.is_learned
    assert "trees are tried from 2,000 questions on" in plain.evaluation.heads
    monkeypatch.setattr(fitting, "MIN_TREE_ROWS", 600)
    found = trained(outcomes)
    assert isinstance(found.artefact.learned.model.heads, TreeHeads)
    assert found.evaluation.routed.quality.value > 0.8
    assert "which beat logistic regression" in found.evaluation.heads


def test_cross_fitting_never_shows_a_question_or_its_group_to_what_routes_it(monkeypatch):
    seen = []
    whole = training.fit_router

    def watched(fit, calibrate, objective, seed):
        seen.append(({*fit.groups.tolist()}, {*calibrate.groups.tolist()}))
        return whole(fit, calibrate, objective, seed)

    monkeypatch.setattr(training, "fit_router", watched)
    trained(made(400, decided_by_first, group_size=4))
    assert len(seen) == 6
    for fit, calibrate in seen:
        assert not fit & calibrate
    assert [len(fit | calibrate) for fit, calibrate in seen] == [80] * 5 + [100]


def test_evaluation_is_of_unseen_questions_only(clear):
    outcomes = made(200, decided_by_first, unknown=0.2, seed=7, name="new")
    found = evaluate_router(clear.artefact, outcomes, created=CREATED)
    assert (found.num_questions, found.num_seen, found.is_crossfitted) == (200, 0, False)
    assert found.routed.quality.value == pytest.approx(0.84, abs=0.08)
    assert found.verdict.headline.startswith("It holds: quality 0.8")
    seen = made(600, decided_by_first, unknown=0.2, with_texts=True, embeddings="noise")
    both = evaluate_router(
        clear.artefact, Outcomes(outcomes.keys, seen.questions + outcomes.questions, "x"), created=CREATED
    )
    assert (both.num_questions, both.num_seen) == (200, 600)
    assert both.routed.quality == found.routed.quality
    with pytest.raises(TrainingDataError, match="600 of its 600 questions trained"):
        evaluate_router(clear.artefact, seen, created=CREATED)


def test_router_that_errs_on_other_questions_does_not_hold(clear):
    def turned(arm, values):
        return 1 - decided_by_first(arm, values)

    found = evaluate_router(clear.artefact, made(100, turned, seed=7, name="new"), created=CREATED)
    assert found.verdict.headline.startswith(
        "It does not hold: beyond chance the route is no better than best single arm"
    )
    assert found.routed.pairs[0].auroc < 0.3


def test_evaluation_refuses_outcomes_that_do_not_fit_the_router(clear):
    other = made(100, decided_by_first, name="new", keys=replace(SERVING.keys, model="model-2"))
    with pytest.raises(TrainingDataError, match="model is model-2, was model-1"):
        evaluate_router(clear.artefact, other, created=CREATED)
    with pytest.raises(TrainingDataError, match=r"lacks signals that the router needs \(s2\)"):
        evaluate_router(clear.artefact, made(100, decided_by_first, name="new", num_signals=2), created=CREATED)
    with pytest.raises(TrainingDataError, match=r"has no arm base\+context"):
        evaluate_router(clear.artefact, made(100, decided_by_first, name="new", arms=("base",)), created=CREATED)


def test_evaluation_of_a_single_arm_shows_the_arms():
    few = trained(made(100, decided_by_first)).artefact
    found = evaluate_router(few, made(100, decided_by_first, name="new", seed=3), created=CREATED)
    assert (found.routed, found.verdict.is_learned) == (None, False)
    assert "100 questions are too few" in found.verdict.headline
    assert len(found.arms) == 2
