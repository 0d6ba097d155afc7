"""The first router: passages are used when the best score stands out from the background."""

from __future__ import annotations

import pytest

from engine.routing.rule import ScoreRule
from engine.values import Evidence, Passage, ScoreBackground

BACKGROUND = ScoreBackground(mean=0.20, std=0.05, num_questions=64)


def passages(*scores: float) -> tuple[Passage, ...]:
    return tuple(Passage(f"c{i}", f"d{i % 2}", "Title", "", "text", 0, 4, score) for i, score in enumerate(scores))


def evidence(*scores: float, background: ScoreBackground | None = BACKGROUND) -> Evidence:
    return Evidence(passages(*scores), background, version=3, similarities=scores)


def test_router_uses_passages_when_the_best_score_stands_out():
    decision = ScoreRule(min_z=1.5).decide(None, evidence(0.6, 0.4))
    assert decision.route == "rag"
    assert decision.confidence is not None and decision.confidence > 0.9
    assert "0.60" in decision.reasons[0] and "+8.0 standard deviations" in decision.reasons[0]


def test_router_answers_directly_when_the_best_score_is_like_background():
    decision = ScoreRule(min_z=1.5).decide(None, evidence(0.22, 0.2))
    assert decision.route == "direct"
    assert decision.adapter is None


def test_router_is_least_sure_at_its_threshold():
    rule = ScoreRule(min_z=1.5)
    confidences = [rule.decide(None, evidence(score)).confidence for score in (0.1, 0.2, 0.276, 0.35, 0.6)]
    assert min(range(5), key=lambda i: confidences[i]) == 2
    assert all(0.5 <= value <= 1.0 for value in confidences)


def test_router_moves_with_its_threshold():
    assert ScoreRule(min_z=3.0).decide(None, evidence(0.3)).route == "direct"
    assert ScoreRule(min_z=1.0).decide(None, evidence(0.3)).route == "rag"


@pytest.mark.parametrize("pinned", ["direct", "rag"])
def test_router_obeys_a_pinned_route_and_claims_no_confidence(pinned):
    decision = ScoreRule(min_z=1.5).decide(pinned, evidence(0.2))
    assert (decision.route, decision.confidence) == (pinned, None)
    assert "pinned" in decision.reasons[0]


def test_router_says_why_there_is_no_evidence():
    decision = ScoreRule(min_z=1.5).decide(None, None, "the knowledge base is empty")
    assert (decision.route, decision.reasons) == ("direct", ("the knowledge base is empty",))


def test_router_uses_passages_of_a_collection_too_small_for_a_background():
    decision = ScoreRule(min_z=1.5).decide(None, evidence(0.2, background=None))
    assert (decision.route, decision.confidence) == ("rag", None)
