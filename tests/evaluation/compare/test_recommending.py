"""Rules of the recommendation, on figures made by hand."""

from __future__ import annotations

from itertools import combinations

import pytest

from engine.evaluation.compare.cautions import Evidence, cautions
from engine.evaluation.compare.costs import Refresh
from engine.evaluation.compare.figures import ArmFigures, Bound, Hits, Pair, find_pair
from engine.evaluation.compare.recommending import recommend
from engine.evaluation.compare.updating import UpdateFigures
from engine.evaluation.figures import Estimate

NAMES = {"base": "base", "base+context": "base", "few-shot": "few-shot", "auto": "auto"}


def arm(name, quality, ms=100.0, **fields):
    known = {
        "name": name,
        "kind": NAMES.get(name, "adapter"),
        "quality": Estimate(quality, (quality - 0.02, quality + 0.02)),
        "metrics": {"f1": quality},
        "num_failed": 0,
        "first_failure": None,
        "refused": 0.0,
        "cut_off": 0.0,
        "passages": 0.0,
        "grounded": None,
        "valid": None,
        "repetition": 0.0,
        "distinct_2": 0.5,
        "ttft_ms": 10.0,
        "p50_ms": ms,
        "p95_ms": 2 * ms,
        "tokens_in": 20.0,
        "tokens_out": 5.0,
        "tuning_minutes": None,
        "hits": None,
        "untrusted": None,
    }
    return ArmFigures(**(known | fields))


def evidence(*arms, num=200, noise=0.03, bound=None, updates=(), refresh=None):
    """Arms that differ by more than `noise` are told apart; by more than half of it before the correction."""
    pairs = []
    for one, other in combinations(arms, 2):
        gap = one.quality.value - other.quality.value
        is_told = abs(gap) > noise
        finding = "not distinguishable" if not is_told else "better" if gap > 0 else "worse"
        alone = 0.001 if is_told else 0.03 if abs(gap) > noise / 2 else 0.5
        pairs.append(Pair(one.name, other.name, gap, None, alone, 0.01 if is_told else 0.6, "test", 0.04, finding))
    return Evidence(num, arms, tuple(pairs), bound, None, tuple(updates), refresh)


def reasons(found):
    return " ".join(found.verdict.reasons)


def test_an_adapter_as_good_as_passages_is_served_since_it_is_faster():
    found = recommend(evidence(arm("base+context", 0.81, 300), arm("bot", 0.80, 100), arm("bot+context", 0.8, 300)))
    assert found.arm == "bot"
    said = "As good as base+context, bot+context, as far as n = 200 can tell; a difference below about 0.040 would not"
    assert said in reasons(found)
    assert found.tone == "mixed"


def test_passages_without_the_adapter_are_served_where_the_adapter_adds_nothing():
    found = recommend(evidence(arm("bot", 0.3), arm("base+context", 0.7, 300), arm("bot+context", 0.55, 290)))
    assert found.arm == "base+context"
    assert found.tone == "good"
    assert "leave the adapter off" in reasons(found)


def test_the_hybrid_is_served_where_it_beats_both():
    found = recommend(evidence(arm("bot", 0.5), arm("base+context", 0.6, 300), arm("bot+context", 0.75, 310)))
    assert (found.arm, found.tone) == ("bot+context", "good")
    assert "Better beyond chance than bot (+0.250, p 0.010), base+context (+0.150" in reasons(found)


def test_a_cheaper_arm_is_not_taken_for_a_difference_that_only_the_correction_hides():
    found = recommend(evidence(arm("base", 0.48, 50), arm("base+context", 0.50, 300)))
    assert found.arm == "base+context"
    assert "Not distinguishable at n = 200 from base (+0.020" in reasons(found)


def test_a_cheaper_arm_is_not_taken_for_much_quality_even_where_chance_may_explain_it():
    found = recommend(evidence(arm("base", 0.40, 50), arm("base+context", 0.50, 300), noise=0.4))
    assert found.arm == "base+context"


def test_of_equal_and_about_equally_fast_arms_that_with_fewest_parts_is_taken():
    assert recommend(evidence(arm("bot+context", 0.8, 290), arm("base+context", 0.8, 300))).arm == "base+context"
    assert recommend(evidence(arm("bot+context", 0.8, 100), arm("base+context", 0.8, 300))).arm == "bot+context"


def test_an_untrusted_arm_is_never_recommended():
    distrusted = arm("bot", 0.9, untrusted="the guard called its training data risky")
    found = recommend(evidence(distrusted, arm("base+context", 0.6)))
    assert found.arm == "base+context"
    assert "Do not believe the figures of bot: the guard" in reasons(found)
    assert recommend(evidence(distrusted, arm("bot+context", 0.9, untrusted="leak"))).arm is None
    both = recommend(evidence(distrusted, arm("bot+context", 0.9, untrusted=distrusted.untrusted), arm("base", 0.6)))
    assert "Do not believe the figures of bot and bot+context: the guard" in reasons(both)


UPDATES = (UpdateFigures("bot", 10, 8, 0, 8), UpdateFigures("base+context", 10, 9, 9, 0))


def test_passages_are_needed_where_documents_change_and_both_are_named_where_the_adapter_is_better():
    refresh = Refresh("docs/a", 3, 0.4, 3)
    found = recommend(evidence(arm("bot", 0.8), arm("base+context", 0.6, 300), updates=UPDATES, refresh=refresh))
    assert found.arm == "base+context"
    assert found.verdict.headline.startswith("Serve bot (the fine-tuned adapter alone) for what does not change")
    assert "bot 0 of 10, base+context 9 of 10. A changed document is found after 0.4 s" in reasons(found)


def test_an_arm_that_follows_changes_and_answers_badly_is_not_recommended_for_that():
    found = recommend(evidence(arm("bot", 0.8), arm("base+context", 0.05, 300), updates=UPDATES))
    assert found.arm == "bot"
    assert "no arm that does answers well" in reasons(found)


def test_updates_that_nobody_or_everybody_follows_decide_nothing():
    for followed, said in ((0, "No arm keeps up"), (10, "All arms keep up")):
        updates = [UpdateFigures(name, 10, 10, followed, 0) for name in ("bot", "base+context")]
        found = recommend(evidence(arm("bot", 0.8), arm("base+context", 0.6, 300), updates=updates))
        assert found.arm == "bot" and said in reasons(found)


@pytest.mark.parametrize(
    ("gain", "num", "said"),
    [(0.05, 60, "may pay"), (0.05, 49, "does not pay"), (0.02, 60, "does not pay")],
)
def test_learning_the_route_is_advised_for_enough_gain_on_enough_questions(gain, num, said):
    bound = Bound(Estimate(0.9, None), gain, num)
    assert said in " ".join(cautions(evidence(arm("base", 0.5), arm("base+context", 0.6), bound=bound)))


def test_a_search_that_misses_most_is_what_to_improve_first():
    hits = Hits(200, 0.4, True, 0.3, 80, Estimate(0.9, None), Estimate(0.1, None))
    said = cautions(evidence(arm("base", 0.3), arm("base+context", 0.42, hits=hits)))
    assert said[0].startswith("Improve the search first: the passages shown hold a right document for 40% of the")
    assert "0.900 where they do and 0.100 where not" in said[0]


def test_examples_in_the_prompt_that_do_as_well_as_training_are_told():
    said = cautions(evidence(arm("bot", 0.80), arm("few-shot", 0.80)))
    assert any("Showing training examples cannot be told from training on them (bot)" in each for each in said)


def test_few_questions_and_a_single_arm_say_what_cannot_be_said():
    few = recommend(evidence(arm("base", 0.1), arm("base+context", 0.9), num=10))
    assert few.arm is None and few.verdict.headline.startswith("No recommendation: 10 questions")
    assert "pay" not in reasons(few)
    alone = recommend(evidence(arm("base", 0.7)))
    assert "nothing to compare it with" in alone.verdict.headline


def test_a_pair_seen_from_the_other_side_has_the_other_signs():
    pair = Pair("a", "b", 0.2, (0.1, 0.3), 0.01, 0.02, "t", 0.1, "better")
    turned = find_pair((pair,), "b", "a")
    assert (turned.difference, turned.interval, turned.finding) == (-0.2, (-0.3, -0.1), "worse")
    assert find_pair((pair,), "a", "c") is None
