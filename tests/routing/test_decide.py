"""Decisions of a learned router, and what it does where it cannot be trusted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_outcomes import KEYS
from made_router import ARMS, SERVING, artefact, learned, trees

from engine.routing.artefact import JSON_FILE, write_artefact
from engine.routing.decide import Router, Serving, failed_test, load_router

# In the order of SERVING.signals: other, s1, s0.
HIGH, LOW = [9.0, 1.0, 2.0], [9.0, 1.0, -2.0]


def routes(router, rows, allowed=None):
    return [each and each.route for each in router.decide(np.array(rows), allowed)]


def test_signals_are_taken_by_name_and_decide_for_each_question_of_a_batch():
    router = Router(artefact(), SERVING)
    assert router.warning is None
    assert routes(router, [HIGH, LOW, HIGH]) == ["rag", "direct", "rag"]


def test_decision_says_what_was_expected_and_which_signals_spoke_for_it():
    (found,) = Router(artefact(), SERVING).decide(np.array([HIGH]))
    assert found.reasons == (
        "expected quality: base+context 0.98, base 0.02",
        "most for it: s0 is 2 (mean 0)",
        "confidence is the calibrated probability that no other arm answers better",
    )
    assert found.confidence == pytest.approx(1 / (1 + np.exp(-2 * (0.98201 - 0.01799))), abs=1e-4)
    assert (found.adapter, found.router) == (None, "router")


def test_trees_decide_alike_and_name_no_single_signal():
    (found,) = Router(replace(artefact(), learned=learned(trees())), SERVING).decide(np.array([HIGH]))
    assert found.route == "rag"
    assert len(found.reasons) == 2


def test_cost_of_an_arm_is_weighed_and_said():
    router = Router(replace(artefact(), learned=learned(costs=(0.0, 0.99))), SERVING)
    (found,) = router.decide(np.array([HIGH]))
    assert found.route == "direct"
    assert "base+context 0.98 (its cost 0.99)" in found.reasons[0]


def test_only_allowed_arms_are_chosen_and_a_single_one_has_no_confidence():
    router = Router(artefact(), SERVING)
    first, second = router.decide(np.array([HIGH, HIGH]), [{"base"}, ARMS])
    assert (first.route, first.confidence) == ("direct", None)
    assert second.route == "rag"


def test_question_whose_arms_were_never_measured_is_left_to_another_rule():
    router = Router(artefact(), SERVING)
    assert routes(router, [HIGH, HIGH], [{"unmeasured"}, ARMS]) == [None, "rag"]
    assert routes(router, [HIGH], [set()]) == [None]


def test_sets_of_arms_must_be_as_many_as_questions():
    with pytest.raises(ValueError, match="2 questions have 1 sets"):
        Router(artefact(), SERVING).decide(np.array([HIGH, LOW]), [{"base"}])


@pytest.mark.parametrize(
    ("serving", "said"),
    [
        (replace(SERVING, keys=replace(KEYS, model="model-2")), "model is model-2, was model-1"),
        (replace(SERVING, keys=replace(KEYS, index="index-2")), "index is index-2"),
        (replace(SERVING, arms=("base+context",)), "arms that cannot answer now (base)"),
        (replace(SERVING, signals=("s1",)), "needs signals that are not computed here (s0)"),
    ],
)
def test_router_that_does_not_fit_falls_back_to_the_best_single_arm_with_a_warning(serving, said):
    router = Router(artefact(), serving)
    assert said in router.warning
    assert "base+context, is used" in router.warning
    (found,) = router.decide(np.full((1, len(serving.signals)), -2.0))
    assert (found.route, found.confidence) == ("rag", None)
    assert router.warning in found.reasons


def test_missing_best_arm_gives_the_next_best():
    router = Router(artefact(), replace(SERVING, arms=("base",)))
    assert "base, is used" in router.warning
    assert routes(router, [HIGH]) == ["direct"]


def test_adapter_of_unknown_content_is_a_difference():
    keys = replace(KEYS, adapters={})
    arms = ("support", "support+context")
    made = replace(artefact(), arms=arms, ranked=arms)
    assert "adapter support has no digest now" in Router(made, Serving(keys, arms, SERVING.signals)).warning
    assert Router(made, Serving(KEYS, arms, SERVING.signals)).warning is None


def test_no_arm_at_all_is_said_and_decides_nothing():
    router = Router(artefact(), replace(SERVING, arms=()))
    assert "none of its arms can answer" in router.warning
    assert routes(router, [HIGH]) == [None]


def test_router_whose_signal_is_inverted_fails_its_own_test():
    made = artefact()
    heads = made.learned.model.heads
    turned = replace(made.learned.model, heads=replace(heads, weights=-heads.weights))
    broken = replace(made, learned=replace(made.learned, model=turned))
    assert failed_test(made.learned) is None
    assert "fails its own test on 4 of 4" in failed_test(broken.learned)
    router = Router(broken, SERVING)
    assert "fails its own test" in router.warning
    assert routes(router, [LOW]) == ["rag"]


def test_single_arm_says_why_and_how_often_no_other_was_better():
    router = Router(artefact(is_learned=False), SERVING)
    (found,) = router.decide(np.array([LOW]))
    assert router.warning is None
    assert (found.route, found.confidence) == ("rag", 0.7)
    assert "10 questions are too few" in found.reasons[1]


def test_damaged_folder_gives_no_router_and_the_reason(tmp_path):
    write_artefact(artefact(), tmp_path)
    router, warning = load_router(tmp_path, SERVING)
    assert (warning, routes(router, [LOW])) == (None, ["direct"])
    (tmp_path / JSON_FILE).write_text("{")
    router, warning = load_router(tmp_path, SERVING)
    assert router is None
    assert "router.json" in warning


@given(st.lists(st.lists(st.floats(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_any_signals_give_a_decision(rows):
    for found in Router(artefact(), SERVING).decide(np.array(rows)):
        assert found.route in ("rag", "direct")
        assert 0 <= found.confidence <= 1
