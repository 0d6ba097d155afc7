"""The router of a running server: who decides which question, among which arms, and what it needs to know first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_router import artefact, learned

from engine.routing.artefact import Artefact
from engine.routing.live import LiveRouter, Surroundings
from engine.routing.needs import Plan
from engine.routing.signals.neighbours import TrainingNeighbours
from engine.routing.signals.questions import counted_words, question_signals
from engine.values import BASE_MODEL, Clues, Evidence, IndexInfo, Passage, RouteRequest, ScoreBackground

NEIGHBOURS = TrainingNeighbours(np.eye(2, 3, dtype=np.float32))
AROUND = Surroundings(
    "model-1", IndexInfo("encoder-1", "chunking-1"), {"tone": "t1", "intents": "i1"}, ("intents",), {"tone": NEIGHBOURS}
)
BACKGROUND = ScoreBackground(0.2, 0.05, 64)
PASSAGES = tuple(Passage(f"c{i}", f"d{i}", "Red apples", "", "green pears", 0, 11, 0.5) for i in range(3))
ARMS = ("base", "base+context", "tone", "tone+context")
# `s0` of the made router is the best similarity in standard deviations, `s1` the nearness of an adapter's inputs.
SIGNALS = ("search.z_best", "adapter.max_cosine.tone")


def made(signals: tuple[str, ...] = SIGNALS, **changed) -> Artefact:
    """`base` where `s0` is low, `base+context` where it is high; measured in the collection docs."""
    return artefact(**{"keys": AROUND.keys("docs"), "signals": signals, **changed})


def live(found: Artefact | None = None, **changed) -> LiveRouter:
    return LiveRouter(**{"min_z": 2.5, "max_passages": 2, "artefact": found, "surroundings": AROUND, **changed})


def evidence(best: float, embedding=(1.0, 0.0, 0.0), **changed) -> Evidence:
    clues = Clues(np.array(embedding, np.float32), 0.5, 0.25, 100, (10, 0))
    return Evidence(PASSAGES, BACKGROUND, 1, {}, (best, best - 0.1), clues)


def request(best: float | None = 0.5, **changed) -> RouteRequest:
    return RouteRequest(**{"text": "red zebras?", "collection": "docs", "evidence": best and evidence(best), **changed})


def one(router: LiveRouter, asked: RouteRequest):
    return router.decide([asked]).decisions[0]


def test_without_an_artefact_the_rule_decides_as_it_did():
    routing = live().decide([request(0.5), request(0.2), request(None, missing="the knowledge base is empty")])
    assert [each.route for each in routing.decisions] == ["rag", "direct", "direct"]
    assert {each.router for each in routing.decisions} == {"score-rule-1"} == {routing.router}
    assert routing.decisions[2].reasons == ("the knowledge base is empty",)
    assert all(each.signals is None for each in routing.decisions)


def test_the_artefact_decides_for_its_collection_and_the_rule_for_others():
    routing = live(made()).decide([request(0.5), request(0.05), request(0.5, collection="other")])
    assert [each.route for each in routing.decisions] == ["rag", "direct", "rag"]
    assert [each.router for each in routing.decisions] == ["router", "router", "score-rule-1"]
    assert routing.router == "router"
    assert routing.decisions[0].signals is not None
    assert routing.decisions[0].signals["search.z_best"] == pytest.approx(6.0)
    assert routing.decisions[0].reasons[0].startswith("expected quality: base+context")


def test_a_batch_is_decided_as_each_is_alone():
    router = live(made())
    asked = [request(0.5), request(0.05), request(0.4, collection="other"), request(None), request(0.1, pinned="rag")]
    together = router.decide(asked).decisions
    assert [replace(each, signals=None) for each in together] == [
        replace(one(router, each), signals=None) for each in asked
    ]


def test_keys_name_collection_encoder_and_chunking_and_no_content():
    keys = live().decide([request()]).keys
    assert keys is not None
    assert keys["model"] == "model-1" and keys["encoder"] == "encoder-1"
    assert keys["adapters"] == {"tone": "t1", "intents": "i1"}
    assert keys["index"].startswith("docs/") and keys == AROUND.keys("docs").to_json()
    others = [replace(AROUND, index=IndexInfo("encoder-2", "chunking-1")).keys("docs")]
    others += [replace(AROUND, index=IndexInfo("encoder-1", "chunking-2")).keys("docs"), AROUND.keys("more")]
    assert len({AROUND.keys("docs").index, *(each.index for each in others)}) == 4


def test_a_collection_of_another_encoder_has_keys_of_its_own_and_is_near_to_no_training_input():
    index = IndexInfo("encoder-1", "chunking-1", {"old": IndexInfo("encoder-0", "chunking-0")})
    router = live(surroundings=replace(AROUND, index=index))
    keys = router.decide([request(collection="old")]).keys
    assert keys is not None and keys["encoder"] == "encoder-0"
    assert router.decide([request()]).keys == AROUND.keys("docs").to_json()
    table = router.signals([request(collection="old"), request(), request()])
    nearest = table.values[:, table.names.index("adapter.max_cosine.tone")]
    assert np.isnan(nearest[0]) and nearest[1] == nearest[2] == 1.0


def test_a_question_that_another_encoder_embedded_a_moment_ago_is_near_to_no_training_input():
    """The search says by which encoder; of an embedding alone its size does."""
    found = evidence(0.5)
    assert found.clues is not None
    other = request(evidence=replace(found, clues=replace(found.clues, encoder="encoder-2")))
    longer = request(None, evidence=None, embedding=np.ones(7, np.float32))
    table = live().signals([other, longer, request()])
    nearest = table.values[:, table.names.index("adapter.max_cosine.tone")]
    assert np.isnan(nearest[:2]).all() and nearest[2] == 1.0


def test_arms_that_can_answer_are_named_and_an_adapter_with_labels_has_one():
    assert live().decide([]).arms == ("base", "base+context", "intents", "tone", "tone+context")
    assert live(surroundings=None).decide([]).arms == ()


def test_an_adapter_whose_name_is_an_arm_of_another_is_none():
    around = replace(AROUND, adapters={"base": "b1", "clarify": "c1", "tone": "t1"})
    assert around.arms() == ["base", "base+context", "tone", "tone+context"]


def test_auto_may_choose_an_adapter_and_a_named_model_leaves_its_own_arms():
    chosen = made(arms=("tone", "base+context"), ranked=("base+context", "tone"))
    router = live(chosen)
    assert (one(router, request(0.05)).adapter, one(router, request(0.05)).route) == ("tone", "direct")
    # Of tone only one arm was measured, which is no choice: the rule decides.
    named = one(router, request(0.05, model="tone"))
    assert (named.adapter, named.router) == ("tone", "score-rule-1")
    assert named.reasons[-1] == "adapter 'tone' named by the request"
    base = one(router, request(0.05, model=BASE_MODEL))
    assert (base.adapter, base.router) == (None, "score-rule-1")


def test_both_measured_arms_of_a_named_model_are_weighed():
    found = one(live(made()), request(0.05, model=BASE_MODEL))
    assert (found.route, found.router, found.adapter) == ("direct", "router", None)
    assert found.confidence is not None


def test_a_pinned_route_leaves_its_arms_and_has_no_confidence():
    router = live(made())
    found = one(router, request(0.05, pinned="rag"))
    assert (found.route, found.confidence, found.router) == ("rag", None, "router")
    assert found.reasons[-1] == "route 'rag' pinned by the request"
    found = one(router, request(0.05, pinned="rag", model=BASE_MODEL))
    assert (found.route, found.router) == ("rag", "score-rule-1")
    assert found.reasons == ("route 'rag' pinned by the request",)


def test_context_is_not_chosen_where_there_is_none_to_be_had():
    router = live(made())
    assert one(router, request(0.9)).route == "rag"
    assert one(router, request(None)).route == "direct"
    empty = replace(evidence(0.9), passages=())
    assert one(router, request(evidence=empty)).route == "direct"
    assert one(router, request(0.9, missing="it labels the text itself")).route == "direct"


def test_a_router_that_was_not_learned_takes_its_best_arm_that_can_answer():
    router = live(made((), learned=None, headline="Not learned: too few."))
    found = one(router, request(0.05))
    assert (found.route, found.confidence) == ("rag", 0.7)
    assert "Not learned: too few." in found.reasons
    assert one(router, request(None, missing="the search failed")).route == "direct"


def test_a_router_of_other_weights_warns_and_its_best_arm_answers():
    router = live(made(), surroundings=replace(AROUND, model="model-2"))
    warning = router.warning("default")
    assert warning is not None and "model is model-2, was model-1" in warning
    assert one(router, request(0.05)).route == "rag"
    assert warning in one(router, request(0.05)).reasons
    assert live(made()).warning("default") is None and live().warning("default") is None


def test_a_router_whose_adapters_inputs_are_not_there_warns():
    router = live(made(), surroundings=replace(AROUND, neighbours={}))
    warning = router.warning("default")
    assert warning is not None and "adapter.max_cosine.tone" in warning


def test_until_it_is_known_what_is_served_the_rule_decides():
    router = live(made(), surroundings=None)
    assert "not known" in (router.warning("default") or "")
    assert one(router, request(0.5)).router == "score-rule-1"
    assert router.decide([request(0.5)]).keys is None


def test_allowed_arms_bound_the_artefact_and_the_rule():
    only_base = {"arms": ("base", "tone")}
    assert one(live(made(), **only_base), request(0.9)).route == "direct"
    found = one(live(**only_base), request(0.9))
    assert (found.route, found.adapter, found.reasons) == ("direct", None, ("router.arms allows base",))
    # A route that the caller pins is obeyed, and a model without an allowed arm keeps the rule.
    assert one(live(**only_base), request(0.9, pinned="rag")).route == "rag"
    assert one(live(arms=("base",)), request(0.9, model="tone")).route == "rag"


def test_signals_are_given_where_they_are_asked_for():
    found = live().decide([request(0.5), request(None)], wants_signals=True).decisions
    assert found[0].signals is not None and found[1].signals is not None
    assert found[0].signals["adapter.max_cosine.tone"] == pytest.approx(1.0)
    assert found[0].signals["search.agreement"] == 0.5 and found[0].signals["search.documents"] == 2.0
    # Of red and zebras, the second is in none of 100 texts.
    assert found[0].signals["lexical.unknown_share"] == 0.5
    assert found[1].signals["lexical.tokens"] == 2.0
    assert found[1].signals["lexical.unknown_share"] is found[1].signals["adapter.max_cosine"] is None


def test_an_embedding_without_a_search_tells_what_adapters_know():
    (found,) = live().decide([request(None, embedding=np.array([0, 1, 0], np.float32))], wants_signals=True).decisions
    assert found.signals is not None and found.signals["adapter.max_cosine.tone"] == pytest.approx(1.0)


def test_words_of_a_question_are_counted_once_and_without_function_words():
    assert counted_words("Is the red card red?") == ("red", "card")
    # Counts of other words than these are of another question.
    odd = replace(evidence(0.5), clues=Clues(np.zeros(3, np.float32), num_texts=9, texts_with=(1, 2, 3)))
    assert np.isnan(question_signals([request(evidence=odd)], {}).column("lexical.max_idf")[0])


@pytest.mark.parametrize(
    ("model", "pinned", "plan"),
    [
        (None, None, Plan(True, wants_clues=True)),
        (BASE_MODEL, None, Plan(True, wants_clues=True)),
        ("tone", None, Plan(True)),
        (None, "direct", Plan(False)),
        (None, "rag", Plan(True)),
        (BASE_MODEL, "direct", Plan(False)),
        (BASE_MODEL, "rag", Plan(True)),
    ],
)
def test_clues_are_wanted_where_arms_are_weighed(model, pinned, plan):
    assert live(made()).needs("docs").plan(model, pinned) == plan


def test_nothing_is_searched_that_no_signal_needs():
    cheap = made(("lexical.tokens", "adapter.max_cosine.tone"))
    needs = live(cheap).needs("docs")
    assert needs.plan(None, None) == Plan(False, embeds=True)
    counted = made(("lexical.max_idf", "adapter.max_cosine.tone"))
    assert live(counted).needs("docs").plan(None, None) == Plan(True, wants_clues=True)
    # What was not looked for may still be chosen.
    undecided = request(None, can_search=True, embedding=np.array([1, 0, 0], np.float32))
    assert one(live(cheap), undecided).route == "rag"


def test_a_single_best_arm_is_searched_for_only_where_it_has_context():
    direct = made((), learned=None, ranked=("base", "base+context"))
    assert live(direct).needs("docs").plan(None, None) == Plan(False)
    assert live(made((), learned=None)).needs("docs").plan(None, None) == Plan(True)
    assert live(direct).needs("other").plan(None, None) == Plan(True)
    assert live().needs("docs").plan(None, "direct") == Plan(False)


def test_costs_and_curves_of_the_artefact_are_applied():
    dear = made(learned=learned(costs=(0.0, 0.99)))
    assert (one(live(made()), request(0.24)).route, one(live(dear), request(0.24)).route) == ("rag", "direct")
