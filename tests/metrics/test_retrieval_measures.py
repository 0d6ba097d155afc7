"""Measures of rankings, against ir_measures."""

from __future__ import annotations

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.metrics.retrieval import hit, ndcg, recall, reciprocal_rank

DOCUMENTS = [f"d{number}" for number in range(15)]


@given(
    st.lists(st.sampled_from(DOCUMENTS), unique=True, max_size=12),
    st.sets(st.sampled_from(DOCUMENTS), min_size=1, max_size=4),
    st.sampled_from([1, 5, 10]),
)
def test_measures_are_those_of_ir_measures(ranking, relevant, k):
    qrels = [ir_measures.Qrel("q", each, 1) for each in relevant]
    # ir_measures has nothing to say of a question without results.
    run = [ir_measures.ScoredDoc("q", each, -place) for place, each in enumerate(ranking)] or [
        ir_measures.ScoredDoc("q", "none", 0.0)
    ]
    for measure, ours in (
        (ir_measures.R @ k, recall),
        (ir_measures.Success @ k, hit),
        (ir_measures.RR @ k, reciprocal_rank),
        (ir_measures.nDCG(dcg="log2") @ k, ndcg),
    ):
        assert ours(ranking, relevant, k) == pytest.approx(ir_measures.calc_aggregate([measure], qrels, run)[measure])


def test_a_document_counts_where_its_first_passage_stands():
    assert reciprocal_rank(["a", "a", "b"], ["b"], 2) == 0.5


def test_measures_refuse_a_question_without_relevant_documents():
    with pytest.raises(ValueError, match="nothing is relevant"):
        ndcg(["a"], [], 10)
