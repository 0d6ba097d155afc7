"""Fusion of two rankings, by hand-computed examples and by properties."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_fusion import plain_convex, plain_reciprocal_ranks

from engine.retrieval.index import fusion
from engine.retrieval.index.fusion import FUSED_DEPTH, JudgedQuery, Ranking, fit_alpha, hits_of, hybrid, ranked

legs = st.dictionaries(st.integers(0, 30), st.floats(0.01, 100.0), max_size=20)


def reciprocal_rank_fusion(rankings: Sequence[Sequence[int]], **options: Any) -> Ranking:
    return fusion.reciprocal_rank_fusion([np.array(ranking, np.int64) for ranking in rankings], **options).pairs()


def convex(dense: Mapping[int, float], lexical: Mapping[int, float], alpha: float) -> Ranking:
    return fusion.convex(ranked(dense), ranked(lexical), alpha).pairs()


def keys_of(ranking: list[tuple[int, float]]) -> list[int]:
    return [key for key, _ in ranking]


def by_score(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda key: (-scores[key], key))


def test_rrf_sums_reciprocal_ranks():
    fused = reciprocal_rank_fusion([[7, 3, 9], [3, 5]])
    assert keys_of(fused) == [3, 7, 5, 9]
    assert [score for _, score in fused] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])


def test_rrf_weighs_rankings_and_ranks_as_told():
    fused = reciprocal_rank_fusion([[1, 2], [2, 1]], k0=1, weights=[3, 1])
    assert fused == [(1, pytest.approx(3 / 2 + 1 / 3)), (2, pytest.approx(3 / 3 + 1 / 2))]


def test_rrf_breaks_ties_by_key():
    assert keys_of(reciprocal_rank_fusion([[9, 4, 2], [4, 9, 1]])) == [4, 9, 1, 2]


def test_rrf_of_nothing_is_nothing():
    assert reciprocal_rank_fusion([]) == reciprocal_rank_fusion([[], []]) == []


@given(st.lists(st.lists(st.integers(0, 20), unique=True, max_size=15), min_size=1, max_size=4), st.randoms())
def test_rrf_does_not_depend_on_the_order_of_the_rankings(rankings, rng):
    shuffled = rng.sample(rankings, len(rankings))
    assert reciprocal_rank_fusion(shuffled) == reciprocal_rank_fusion(rankings)


@given(legs, legs, st.floats(0.001, 1000.0))
def test_rrf_order_is_the_same_when_scores_are_scaled(dense, lexical, scale):
    # Ranks are all it is given, so scaling may change a ranking only where scores collapse to a tie.
    scaled = {key: score * scale for key, score in lexical.items()}
    if by_score(scaled) == by_score(lexical):
        fused = reciprocal_rank_fusion([by_score(dense), by_score(lexical)])
        assert reciprocal_rank_fusion([by_score(dense), by_score(scaled)]) == fused


@given(legs, legs, st.integers(31, 40), st.floats(0.0, 1.0))
def test_what_is_first_in_both_legs_is_first_in_either_fusion(dense, lexical, best, alpha):
    dense, lexical = dense | {best: 101.0}, lexical | {best: 101.0}
    assert reciprocal_rank_fusion([by_score(dense), by_score(lexical)])[0][0] == best
    assert convex(dense, lexical, alpha)[0] == (best, pytest.approx(1.0))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -0.5], [1.0, float("nan")], [1.0, float("inf")]])
def test_rrf_refuses_weights_that_do_not_fit(weights):
    with pytest.raises(ValueError, match="do not fit 2 rankings; give each one, 0 or more"):
        reciprocal_rank_fusion([[1], [2]], weights=weights)


def test_rrf_refuses_a_key_twice_in_one_ranking_and_a_negative_k0():
    with pytest.raises(ValueError, match="a ranking of 3 keys holds 2 distinct ones"):
        reciprocal_rank_fusion([[1, 2, 1]])
    with pytest.raises(ValueError, match="k0=-1 is below 0"):
        reciprocal_rank_fusion([[1]], k0=-1)


def test_convex_scales_cosines_from_the_lowest_found_and_words_from_zero():
    fused = dict(convex({1: 0.9, 2: 0.7, 4: 0.5}, {2: 8.0, 3: 4.0}, 0.75))
    assert fused == pytest.approx({1: 0.75, 2: 0.75 * 0.5 + 0.25, 4: 0.0, 3: 0.25 * 0.5})


def test_convex_counts_a_key_that_a_leg_lacks_as_that_legs_lowest_where_the_leg_was_cut_off():
    words = {key: 100.0 - key for key in range(FUSED_DEPTH)}  # the lowest is 1 / 100 of the best
    assert dict(convex({500: 1.0, 501: 0.0}, words, 0.5))[500] == pytest.approx(0.5 + 0.5 * 0.01)
    del words[99]
    assert dict(convex({500: 1.0, 501: 0.0}, words, 0.5))[500] == pytest.approx(0.5)


@given(st.integers(FUSED_DEPTH, 3 * FUSED_DEPTH), st.floats(0.05, 0.95))
def test_convex_scale_does_not_depend_on_how_many_were_fetched(num_fetched, alpha):
    every = {key: 1 / (1 + key) for key in range(3 * FUSED_DEPTH)}
    some = dict(list(every.items())[:num_fetched])
    words = {key: 300.0 - key for key in range(0, 100, 7)}
    wide, narrow = dict(convex(every, words, alpha)), dict(convex(some, words, alpha))
    assert all(wide[key] == narrow[key] for key in narrow)


@given(legs, legs)
def test_convex_at_one_and_zero_ranks_as_the_leg_alone(dense, lexical):
    for alpha, leg in ((1.0, dense), (0.0, lexical)):
        fused = dict(convex(dense, lexical, alpha))
        assert fused.keys() == leg.keys()
        for one, other in zip(by_score(leg), by_score(leg)[1:], strict=False):
            assert fused[one] >= fused[other]


def test_convex_takes_words_below_zero_as_the_new_minimum():
    assert dict(convex({}, {1: -3.0, 2: 1.0}, 0.0)) == pytest.approx({1: 0.0, 2: 1.0})


def test_convex_of_a_leg_with_equal_scores_is_one():
    assert convex({1: 0.3}, {2: 4.0, 3: 4.0}, 0.25) == [(2, 0.75), (3, 0.75), (1, 0.25)]
    assert convex({}, {}, 0.5) == []


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_convex_refuses_alpha_outside_of_its_range(alpha):
    with pytest.raises(ValueError, match=r"is not in \[0, 1\]; 1 is the dense leg alone"):
        convex({1: 1.0}, {1: 1.0}, alpha)


# Few values, so that there are ties, and legs on both sides of the cut.
few = st.dictionaries(st.integers(0, 400), st.integers(-3, 60).map(lambda step: step / 7), max_size=FUSED_DEPTH + 60)


@given(few, few, st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.95, 1.0]))
def test_convex_equals_the_plain_definition_to_the_last_bit(dense, lexical, alpha):
    assert convex(dense, lexical, alpha) == plain_convex(dense, lexical, alpha)


@given(st.integers(0, 2**31), st.floats(0.0, 1.0))
def test_convex_of_full_legs_equals_the_plain_definition_to_the_last_bit(seed, alpha):
    drawn = random.Random(seed)
    dense = {key: drawn.uniform(-1, 1) for key in drawn.sample(range(400), FUSED_DEPTH + drawn.randrange(-2, 3))}
    lexical = {key: drawn.uniform(0, 30) for key in drawn.sample(range(400), FUSED_DEPTH + drawn.randrange(-2, 3))}
    assert convex(dense, lexical, alpha) == plain_convex(dense, lexical, alpha)


unique_keys = st.lists(st.integers(0, 60), unique=True, max_size=40)


@given(unique_keys, unique_keys, st.sampled_from([0, 6, 60]))
def test_reciprocal_ranks_of_two_legs_equal_the_plain_definition_to_the_last_bit(dense, lexical, k0):
    weights = (1.1, 1.0)
    fused = reciprocal_rank_fusion([dense, lexical], k0=k0, weights=weights)
    assert fused == plain_reciprocal_ranks([dense, lexical], k0, weights)


@given(unique_keys, unique_keys)
def test_hybrid_by_ranks_is_the_plain_sum_as_a_share_of_the_best_possible(dense, lexical):
    legs = [hits_of([(key, -float(rank)) for rank, key in enumerate(leg)]) for leg in (dense, lexical)]
    plain = plain_reciprocal_ranks([dense, lexical], 6, (1.1, 1.0))
    assert hybrid(*legs, None).pairs() == [(key, score / (2.1 / 7)) for key, score in plain]
    assert hybrid(*legs, None).pairs(3) == hybrid(*legs, None).pairs()[:3]


def planted(alpha: float, num_queries: int) -> list[JudgedQuery]:
    """Queries whose relevant keys are the first three of a convex combination at `alpha`."""
    rng = random.Random(alpha)
    queries = []
    for _ in range(num_queries):
        dense = {key: rng.uniform(-1.0, 1.0) for key in range(40)}
        lexical = {key: rng.uniform(0.0, 20.0) for key in range(40)}
        gains = {key: 1.0 for key, _ in convex(dense, lexical, alpha)[:3]}
        queries.append(JudgedQuery(dense, lexical, gains))
    return queries


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.85, 1.0])
def test_fit_recovers_the_alpha_that_made_the_judgements(alpha):
    assert fit_alpha(planted(alpha, 150)) == pytest.approx(alpha, abs=0.051)


def test_fit_prefers_the_middle_where_alpha_makes_no_difference():
    assert fit_alpha([JudgedQuery({1: 0.9, 2: 0.1}, {1: 9.0, 2: 1.0}, {1: 1.0})] * 100) == 0.5


def test_fit_weighs_gains_by_their_size():
    # The dense leg finds the key of gain 3 first, the lexical leg that of gain 1.
    assert fit_alpha([JudgedQuery({1: 1.0, 2: -1.0}, {1: 0.1, 2: 9.0}, {1: 3.0, 2: 1.0})] * 100) >= 0.5
    assert fit_alpha([JudgedQuery({1: 1.0, 2: -1.0}, {1: 0.1, 2: 9.0}, {1: 1.0, 2: 3.0})] * 100) < 0.5


def test_fit_refuses_fewer_than_a_hundred_queries_with_something_relevant():
    queries = planted(0.5, 99) + [JudgedQuery({1: 0.5}, {1: 1.0}, {1: 0.0})] * 50
    with pytest.raises(ValueError, match=r"99 judged queries have something relevant; alpha needs 100 or more"):
        fit_alpha(queries)
