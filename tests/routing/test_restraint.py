"""Abstaining and asking back: when they stand in place of an arm, and when they never do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.config import parse_config
from engine.errors import ConfigError
from engine.routing.abstain import EvidenceHead
from engine.routing.abstain_files import write_evidence_head
from engine.routing.ambiguity import AmbiguityHead, EmbeddingPart, SignalPart, WordPart
from engine.routing.ambiguity_files import write_ambiguity
from engine.routing.clarify import OPENING
from engine.routing.needs import Plan
from engine.routing.restraint import Asked, Restraint
from engine.values import BASE_MODEL, Decision, Evidence, Message, Passage, ScoreBackground

BACKGROUND = ScoreBackground(mean=0.2, std=0.05, num_questions=64)
RAG = Decision("rag", None, 0.9, ("because",), "score-rule-1")
DIRECT = Decision("direct", None, 0.9, ("because",), "score-rule-1")
USER = Message("user", "how do I install it")


def passage(document: str, title: str) -> Passage:
    return Passage(f"{document}#0", document, title, "", "text", 0, 4, 0.8)


def evidence(best: float = 0.6) -> Evidence:
    found = (passage("a.md", "Install on Linux"), passage("b.md", "Install on macOS"))
    return Evidence(found, BACKGROUND, version=1, similarities=(best, best))


def asked(**fields) -> Asked:
    return Asked(**{"question": USER.content, "messages": (USER,)} | fields)


def words(bias: float) -> AmbiguityHead:
    """A head that says sigmoid(bias) of every question."""
    return AmbiguityHead(bias, WordPart(np.zeros(16, np.float32), frozenset()), None, None, 1.0, 0.0)


def restraint(folder: Path | None = None, head: AmbiguityHead | None = None, **settings) -> Restraint:
    if folder is not None:
        write_ambiguity(folder, head or words(5.0))
        settings["ambiguity"] = str(folder)
    return Restraint(parse_config({"router": settings}, "test").router)


ABSTAINS = {"abstain": {"enabled": True}}
ASKS = {"clarify": {"enabled": True, "max_share": 1.0}}


def test_nothing_is_held_back_by_default():
    for found in (evidence(0.2), evidence(0.9), None):
        reply = restraint().reply(RAG, asked(), found)
        assert reply.decision is RAG and reply.text == "" and not reply.is_whole


@pytest.mark.parametrize("decision", [RAG, DIRECT])
def test_weak_evidence_is_answered_with_the_nearest_pages(decision):
    reply = restraint(**ABSTAINS).reply(decision, asked(), evidence(0.25))
    assert reply.is_whole and reply.decision.route == "abstain" and reply.decision.confidence is None
    assert reply.text.startswith("This is not in the knowledge base.") and "Install on Linux (a.md)" in reply.text
    assert [page.document for page in reply.pages] == ["a.md", "b.md"]
    assert "+1.0 standard deviations" in reply.decision.reasons[0] and reply.decision.reasons[1] == "because"


def test_strong_evidence_is_answered_from():
    assert restraint(**ABSTAINS).reply(RAG, asked(), evidence(0.6)).decision is RAG


def test_what_is_not_weak_is_answered_from_passages_where_the_rule_would_not_use_them():
    held = restraint(**ABSTAINS)
    reply = held.reply(DIRECT, asked(), evidence(0.3))
    assert reply.decision.route == "rag" and "abstaining is on" in reply.decision.reasons[-1] and not reply.is_whole
    learned = Decision("direct", None, 0.8, (), "router-1")
    assert held.reply(learned, asked(), evidence(0.3)).decision is learned
    assert restraint().reply(DIRECT, asked(), evidence(0.3)).decision is DIRECT


def test_a_pinned_direct_route_and_a_search_that_was_not_made_are_left_alone():
    held = restraint(**ABSTAINS)
    assert held.reply(DIRECT, asked(pinned="direct"), evidence(0.2)).decision is DIRECT
    assert held.reply(DIRECT, asked(), None).decision is DIRECT


def test_an_answer_of_a_given_form_is_left_alone(tmp_path):
    held = restraint(tmp_path, **ABSTAINS, **ASKS)
    assert held.reply(RAG, asked(is_free=False), evidence(0.2)).decision is RAG
    assert held.reply(RAG, asked(is_free=False), evidence(0.6)).decision is RAG


def test_an_adapter_answers_without_evidence_unless_passages_were_asked_for():
    held = restraint(**ABSTAINS)
    by_router = Decision("direct", "support-bot", 0.8, (), "router-1")
    assert held.reply(by_router, asked(), evidence(0.2)).decision is by_router
    assert held.reply(DIRECT, asked(model="support-bot"), evidence(0.2)).decision is DIRECT
    assert held.reply(RAG, asked(model="support-bot", pinned="rag"), evidence(0.2)).decision.route == "abstain"


def test_a_question_of_several_readings_is_asked_back(tmp_path):
    reply = restraint(tmp_path, **ASKS).reply(RAG, asked(), evidence())
    assert reply.is_whole and reply.decision.route == "clarify"
    assert reply.text == f"{OPENING}\n- Install on Linux\n- Install on macOS"
    assert [page.document for page in reply.pages] == ["a.md", "b.md"]
    assert "probability of 0.99" in reply.decision.reasons[0]


def test_the_reading_that_is_assumed_is_stated_where_asking_is_off(tmp_path):
    reply = restraint(tmp_path).reply(RAG, asked(), evidence())
    assert not reply.is_whole and reply.decision.route == "rag" and reply.decision.confidence == 0.9
    assert reply.text == "Taking this to be about Install on Linux:\n\n"
    assert "'Install on Linux', 'Install on macOS'; the first is assumed" in reply.decision.reasons[-1]


def test_a_question_of_one_reading_is_answered(tmp_path):
    assert restraint(tmp_path, words(-5.0), **ASKS).reply(RAG, asked(), evidence()).decision is RAG
    named = asked(question="how do I install it on Linux")
    assert restraint(tmp_path, **ASKS).reply(RAG, named, evidence()).decision is RAG


@pytest.mark.parametrize("fields", [{"pinned": "rag"}, {"model": "support-bot"}])
def test_a_pinned_route_and_a_named_adapter_are_never_asked_back(tmp_path, fields):
    assert restraint(tmp_path, **ASKS).reply(RAG, asked(**fields), evidence()).decision is RAG


def test_passages_that_are_not_used_compete_for_nothing(tmp_path):
    assert restraint(tmp_path, **ASKS).reply(DIRECT, asked(), evidence()).decision is DIRECT


def test_nobody_is_asked_twice_in_a_row(tmp_path):
    again = asked(messages=(USER, Message("assistant", f"{OPENING}\n- a\n- b"), USER))
    reply = restraint(tmp_path, **ASKS).reply(RAG, again, evidence())
    assert not reply.is_whole and reply.text.startswith("Taking this")


def test_beyond_the_share_of_questions_back_the_reading_is_stated(tmp_path):
    held = restraint(tmp_path, clarify={"enabled": True, "max_share": 0.5, "window": 4})
    routes = [held.reply(RAG, asked(), evidence()).decision.route for _ in range(8)]
    assert routes == ["rag", "clarify"] * 4


def test_one_tenant_uses_up_no_share_of_another(tmp_path):
    held = restraint(tmp_path, clarify={"enabled": True, "max_share": 0.5, "window": 4})
    assert held.reply(RAG, asked(tenant="a"), evidence()).decision.route == "rag"
    assert held.reply(RAG, asked(tenant="b"), evidence()).decision.route == "rag"
    assert held.reply(RAG, asked(tenant="a"), evidence()).decision.route == "clarify"


def test_weak_evidence_is_said_before_anything_is_asked_back(tmp_path):
    assert restraint(tmp_path, **ABSTAINS, **ASKS).reply(RAG, asked(), evidence(0.2)).decision.route == "abstain"


def test_a_head_that_reads_embeddings_decides_by_them_or_not_at_all(tmp_path):
    part = EmbeddingPart("e" * 64, np.eye(2, 6, dtype=np.float32), np.array([9.0, -9.0], np.float32), 1.0, 0.0)
    signals = SignalPart(("search.gap", "lexical.tokens"), np.zeros(2), np.ones(2), np.zeros(2), np.zeros(2))
    head = AmbiguityHead(0.0, WordPart(np.zeros(16, np.float32), frozenset()), part, signals, 1.0, 0.0)
    held = restraint(tmp_path, head, **ASKS)
    first, second = np.eye(2, dtype=np.float32)
    assert held.reply(RAG, asked(embedding=first, encoder="e" * 64), evidence()).decision.route == "clarify"
    assert held.reply(RAG, asked(embedding=second, encoder="e" * 64), evidence()).decision is RAG
    assert held.reply(RAG, asked(encoder="e" * 64), evidence()).decision is RAG
    for other in ("f" * 64, None):
        assert held.reply(RAG, asked(embedding=first, encoder=other), evidence()).decision is RAG


def test_an_evidence_head_of_another_encoder_leaves_it_to_the_background(tmp_path):
    part = SignalPart(("search.best",), np.zeros(1), np.ones(1), np.zeros(1), np.zeros(1))
    write_evidence_head(tmp_path, EvidenceHead(part, -9.0, 1.0, 0.0, 0.5, encoder="e" * 64))
    held = restraint(abstain={"enabled": True, "head": str(tmp_path)})
    assert held.reply(RAG, asked(encoder="e" * 64), evidence(0.6)).decision.route == "abstain"
    assert held.reply(RAG, asked(encoder="f" * 64), evidence(0.6)).decision is RAG
    assert held.reply(RAG, asked(encoder="f" * 64), evidence(0.2)).decision.route == "abstain"


def test_a_search_is_made_where_its_evidence_may_keep_back_an_answer(tmp_path):
    direct = Plan(searches=False, embeds=True)
    assert restraint().plan(direct, None, None) is direct
    assert restraint(**ABSTAINS).plan(direct, BASE_MODEL, None) == Plan(searches=True, wants_clues=True)
    assert restraint(**ABSTAINS).plan(Plan(searches=True), None, "rag") == Plan(searches=True)
    assert restraint(tmp_path).plan(Plan(searches=True), None, None) == Plan(searches=True, wants_clues=True)
    assert restraint(**ABSTAINS).plan(direct, None, "direct") is direct
    assert restraint(**ABSTAINS).plan(direct, "support-bot", None) is direct


def test_asking_back_without_a_head_is_refused_by_the_settings():
    with pytest.raises(ConfigError, match=r"clarify\.enabled needs ambiguity"):
        parse_config({"router": {"clarify": {"enabled": True}}}, "test")


def test_a_head_that_is_not_there_is_refused(tmp_path):
    settings = parse_config({"router": {"ambiguity": str(tmp_path / "none")}}, "test").router
    with pytest.raises(ConfigError, match=r"ambiguity\.json"):
        Restraint(settings)
