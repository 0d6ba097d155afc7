"""Signals of a search's result by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.signals.scores import NAMES, Search, score_shape, search_signals
from engine.values import Clues, Evidence, Passage, ScoreBackground

BACKGROUND = ScoreBackground(mean=0.20, std=0.05, num_questions=64)


def passages(*scores: float) -> tuple[Passage, ...]:
    return tuple(Passage(f"c{i}", f"d{i % 2}", "Title", "", "text", 0, 4, score) for i, score in enumerate(scores))


def search(*similarities: float, background: ScoreBackground | None = BACKGROUND) -> Search:
    return Search("Which text has no title?", similarities, passages(*similarities), background)


def signals_of(one: Search | None) -> dict[str, float | None]:
    return search_signals([one]).rows()[0]


def test_score_shape_measures_distance_from_background_gap_and_documents():
    shape = score_shape((0.5, 0.3, 0.1), passages(0.03, 0.02, 0.01), BACKGROUND)
    assert shape is not None
    assert shape.best == pytest.approx(0.5)
    assert shape.z == pytest.approx(6.0)
    assert shape.gap == pytest.approx(0.3)
    assert shape.num_documents == 2


def test_score_shape_is_none_when_nothing_was_found():
    assert score_shape((), (), BACKGROUND) is None


def test_a_background_without_spread_does_not_make_every_score_stand_out():
    shape = score_shape((0.21,), passages(0.21), ScoreBackground(0.2, 0.0, 64))
    assert shape is not None and shape.z == pytest.approx(0.5)


def test_scores_are_measured_raw_and_in_standard_deviations_of_the_background():
    found = signals_of(search(0.5, 0.3, 0.1))
    assert found["search.best"] == pytest.approx(0.5)
    assert found["search.gap"] == pytest.approx(0.2)
    assert found["search.gap_rest"] == pytest.approx(0.3)
    assert found["search.z_best"] == pytest.approx(6.0)
    assert found["search.z_gap"] == pytest.approx(4.0)
    assert found["search.z_spread"] == pytest.approx(math.sqrt(0.08 / 3) / 0.05)
    assert found["search.z_mean"] == pytest.approx(2.0)


def test_entropy_is_1_for_equal_scores_and_falls_for_a_favourite():
    assert signals_of(search(0.4, 0.4, 0.4))["search.entropy"] == pytest.approx(1.0)
    # z of 1 and 0: shares 0.7311 and 0.2689, entropy 0.5822 nats of ln 2.
    assert signals_of(search(0.25, 0.20))["search.entropy"] == pytest.approx(0.5822 / math.log(2), abs=1e-4)
    assert signals_of(search(0.9, 0.2))["search.entropy"] < 0.01


def test_passages_say_how_many_documents_there_are_and_which_words_they_hold():
    first = Passage("c1", "a", "Billing", "Refunds", "The card was charged twice.", 0, 27, 0.9)
    second = Passage("c2", "a", "Billing", "", "Cancel at any time.", 0, 19, 0.5)
    one = Search("How do I cancel a refund to my card?", (0.5, 0.4), (first, second), BACKGROUND)
    found = signals_of(one)
    assert (found["search.documents"], found["search.document_share"]) == (1.0, 0.5)
    # Content words: i, cancel, refund, my, card. The best passage has "card", both have "cancel" besides.
    assert found["search.coverage"] == pytest.approx(1 / 5)
    assert found["search.coverage_all"] == pytest.approx(2 / 5)


def test_a_word_inside_another_is_not_covered_and_one_at_an_edge_is():
    def coverage(text: str) -> float | None:
        passage = Passage("c", "a", "", "", text, 0, len(text), 0.9)
        return signals_of(Search("card", (0.5,), (passage,), BACKGROUND))["search.coverage"]

    assert [coverage(text) for text in ("cardboard", "discard", "card2", "")] == [0.0] * 4
    assert [coverage(text) for text in ("Card", "a card", "cardboard card", "(card)", "card’s")] == [1.0] * 5


def test_words_with_marks_inside_are_covered_as_a_whole():
    def coverage(question: str, text: str) -> float | None:
        passage = Passage("c", "a", "", "", text, 0, len(text), 0.9)
        return signals_of(Search(question, (0.5,), (passage,), BACKGROUND))["search.coverage"]

    assert coverage("Mike's café", "At Mike’s—the Café.") == 1.0
    assert coverage("Mike's café", "Mike s cafés") == 0.0
    assert coverage("Mike's café", "mike's") == 0.5


def test_a_search_that_found_nothing_has_no_signal_at_all():
    found = signals_of(replace(Search("text?", (), (), BACKGROUND), agreement=0.5, coherence=0.25))
    assert set(found.values()) == {None}


def test_agreement_and_coherence_are_what_the_retriever_found():
    one = replace(search(0.5, 0.4), agreement=0.5, coherence=0.25)
    found = signals_of(one)
    assert (found["search.agreement"], found["search.coherence"]) == (0.5, 0.25)
    found = signals_of(replace(one, agreement=None, coherence=None))
    assert (found["search.agreement"], found["search.coherence"]) == (None, None)


def test_search_reads_evidence_and_its_clues():
    clues = Clues(np.zeros(4, np.float32), agreement=0.2, coherence=0.9)
    evidence = Evidence(passages(0.5, 0.4, 0.3), BACKGROUND, 1, {}, (0.5, 0.4), clues)
    one = Search.of("what?", evidence, max_passages=2)
    assert (one.agreement, one.coherence, len(one.passages)) == (0.2, 0.9, 2)
    assert Search.of("what?", replace(evidence, clues=None)).agreement is None


def test_what_was_not_searched_or_not_found_is_unknown():
    table = search_signals([None, Search("text?", (), (), BACKGROUND), search(0.5, 0.3)])
    assert np.isnan(table.values[:2]).all()
    assert table.column("search.best")[2] == 0.5
    assert search_signals([]).values.shape == (0, len(NAMES))


def test_without_a_background_raw_scores_stay_and_the_others_are_unknown():
    found = signals_of(search(0.5, 0.3, background=None))
    assert (found["search.best"], found["search.gap"]) == (0.5, pytest.approx(0.2))
    assert all(found[name] is None for name in NAMES if name.startswith("search.z_"))
    assert found["search.entropy"] is None


def test_a_single_score_has_neither_gap_nor_spread():
    found = signals_of(search(0.5))
    assert found["search.z_best"] == pytest.approx(6.0)
    assert [found[f"search.{name}"] for name in ("gap", "gap_rest", "z_gap", "z_spread", "entropy")] == [None] * 5


def test_passages_found_by_words_alone_have_no_scores_by_meaning():
    found = signals_of(Search("text", (), passages(3.0, 2.0), BACKGROUND))
    assert found["search.best"] is None and found["search.z_mean"] is None
    assert found["search.documents"] == 2.0


def test_more_than_ten_scores_change_nothing():
    ten = [0.5 - 0.01 * i for i in range(10)]
    assert signals_of(search(*ten, 0.0, -0.5))["search.z_mean"] == signals_of(search(*ten))["search.z_mean"]


def test_search_is_what_the_retriever_answered():
    evidence = Evidence(passages(0.5), BACKGROUND, version=3, similarities=(0.5, 0.4))
    assert Search.of("q", evidence) == Search("q", (0.5, 0.4), evidence.passages, BACKGROUND)


@given(
    st.lists(
        st.lists(st.floats(-1, 1, width=32), max_size=12).map(lambda found: tuple(sorted(found, reverse=True))),
        max_size=5,
    ),
    st.floats(-0.5, 0.9),
    st.floats(0, 0.3),
)
def test_a_batch_gives_what_each_gives_alone_and_shifts_with_its_background(batch, mean, std):
    def at(shift: float, found: tuple[float, ...]) -> Search:
        return Search("one two", tuple(x + shift for x in found), (), ScoreBackground(mean + shift, std, 64))

    table = search_signals([at(0.0, found) for found in batch])
    alone = [search_signals([at(0.0, found)]).values for found in batch]
    np.testing.assert_array_equal(table.values, np.vstack([np.empty((0, len(NAMES))), *alone]))
    shifted = search_signals([at(0.25, found) for found in batch])
    for name in NAMES:
        if name != "search.best":
            np.testing.assert_allclose(shifted.column(name), table.column(name), atol=1e-6)
    entropy = table.column("search.entropy")
    assert ((entropy[~np.isnan(entropy)] >= 0) & (entropy[~np.isnan(entropy)] <= 1 + 1e-9)).all()
