"""The fit of a fusion weight, and the decision whether it is used."""

from __future__ import annotations

import random

import pytest

from engine.retrieval.fitting import fit
from engine.retrieval.index.fusion import JudgedQuery, ndcg


def judged(num_queries: int, *, is_found_by: str) -> list[JudgedQuery]:
    """Queries with one relevant key, which one leg puts first and the other one last."""
    rng = random.Random(1)
    queries = []
    for _ in range(num_queries):
        good = {key: rng.uniform(0.1, 0.6) for key in range(30)} | {0: 0.9}
        bad = {key: rng.uniform(0.2, 0.9) for key in range(30)} | {0: 0.1}
        dense, lexical = (good, bad) if is_found_by == "dense" else (bad, good)
        queries.append(JudgedQuery(dense, lexical, {0: 1.0}))
    return queries


@pytest.mark.parametrize(("leg", "low", "high"), [("dense", 0.6, 1.0), ("lexical", 0.0, 0.4)])
def test_fit_is_used_where_one_leg_knows_better(leg, low, high):
    found = fit(judged(120, is_found_by=leg), 0.5)
    assert found.is_used and low <= found.alpha <= high
    assert found.fitted > found.default
    assert (found.num_fitted, found.num_held_out) == (60, 60)
    assert 0 < found.gain_low <= found.gain <= found.gain_high
    assert found.gain == pytest.approx(found.fitted - found.default)
    other = "lexical" if leg == "dense" else "dense"
    assert getattr(found, leg) == 1.0 and getattr(found, other) < 0.5


def test_fit_is_not_used_where_it_does_worse_on_the_other_half():
    # What is learned on every other query is wrong for the rest.
    by_meaning, by_words = (judged(60, is_found_by=leg) for leg in ("dense", "lexical"))
    found = fit([query for pair in zip(by_meaning, by_words, strict=True) for query in pair], 0.5)
    assert found.alpha > 0.5 and not found.is_used
    assert found.fitted < found.default and found.gain_high < 0


@pytest.mark.parametrize("default", [0.5, None])
def test_fit_is_used_where_it_makes_no_difference(default):
    found = fit([JudgedQuery({1: 0.9, 2: 0.1}, {1: 9.0, 2: 1.0}, {1: 1.0})] * 100, default)
    assert found.is_used and found.alpha == 0.5 and found.gain == 0


def test_fewer_than_a_hundred_queries_with_something_relevant_are_not_fitted():
    irrelevant = [JudgedQuery({1: 0.5}, {1: 1.0}, {1: 0.0})] * 50
    assert fit(judged(99, is_found_by="dense") + irrelevant, 0.5) is None
    assert fit(judged(100, is_found_by="dense") + irrelevant, 0.5) is not None


def test_document_stands_where_its_best_chunk_does_and_counts_once():
    query = JudgedQuery({}, {}, {7: 1.0, 8: 2.0}, {1: 7, 2: 7, 3: 8, 4: 9})
    best = ndcg([(3, 0.9), (1, 0.8)], query)
    assert best == 1.0
    assert ndcg([(3, 0.9), (3, 0.85), (1, 0.8), (2, 0.7)], query) == 1.0
    assert ndcg([(4, 0.9), (3, 0.8), (1, 0.7)], query) < 1.0
    assert ndcg([(4, 0.9)], query) == 0.0
