"""Duplicates, contradictions and leakage, each with the lines that a person has to look at."""

from __future__ import annotations

from engine.tuning.data.rows import CompletionRow, LabelRow, QuestionRow, Row
from engine.tuning.guard.alike import Alike, Contradiction, LeakedRow

CONTEXT = "The Eiffel tower is 330 metres tall and stands in Paris, where it was built for the world's fair of 1889."
OTHER = "The bridge over the Golden Gate was opened in 1937 and is painted in international orange."


def labelled(*pairs: tuple[str, str]) -> list[Row]:
    return [LabelRow(line, text, label) for line, (text, label) in enumerate(pairs, start=1)]


def test_exact_and_near_duplicates_are_counted_with_their_lines():
    rows = labelled(
        ("Where is the card that I ordered last week?", "card"),
        ("My transfer failed", "transfer"),
        ("where is the card that I ordered last week", "card"),
        ("Where is the card that I ordered last weeks?", "card"),
    )
    found = Alike(rows).duplicates(20)
    assert (found.num_exact, found.num_near, found.num_distinct, found.largest) == (1, 2, 2, 3)
    assert found.clusters == ((1, 3, 4),)


def test_largest_clusters_are_listed_first_and_cut_short():
    rows = labelled(*[("one and the same question", "a")] * 5, *[("another text that is repeated", "a")] * 8)
    found = Alike(rows).duplicates(3)
    assert found.clusters == ((6, 7, 8), (1, 2, 3))
    assert found.largest == 8


def test_text_with_two_labels_is_a_contradiction_by_line_and_label():
    rows = labelled(("It is broken!", "complaint"), ("Hello", "greeting"), ("it is broken", "question"))
    found = Alike(rows).contradictions(20)
    assert (found.num_rows, found.num_inputs, found.num_near_clusters) == (2, 1, 0)
    assert found.first == (Contradiction((1, 3), ("complaint", "question"), "It is broken!"),)


def test_near_duplicates_with_two_labels_are_counted_apart_from_contradictions():
    rows = labelled(
        ("Operating profit of the whole group rose to 10 million euros in the last quarter", "positive"),
        ("Operating profit of the whole group fell to 10 million euros in the last quarter", "negative"),
    )
    found = Alike(rows).contradictions(20)
    assert (found.num_inputs, found.num_near_clusters) == (0, 1)


def test_question_contradicts_only_an_answer_about_the_same_context():
    def answers(*pairs: tuple[str, tuple[str, ...]]) -> int:
        rows = [QuestionRow(i, "How tall is it?", found, context=context) for i, (context, found) in enumerate(pairs)]
        return Alike(rows).contradictions(20).num_inputs

    assert answers((CONTEXT, ("330 metres",)), (CONTEXT, ("1889",))) == 1
    assert answers((CONTEXT, ("330 metres",)), (CONTEXT, ())) == 1
    assert answers((CONTEXT, ("330 metres", "330 m")), (CONTEXT, ("330 m",))) == 0
    assert answers((CONTEXT, ("330 metres",)), (OTHER, ("227 metres",))) == 0


def test_prompt_with_several_completions_contradicts_nothing():
    rows: list[Row] = [CompletionRow(1, "Say hello", "Hello"), CompletionRow(2, "Say hello", "Hi")]
    assert Alike(rows).contradictions(20).num_rows == 0


def test_same_question_about_different_contexts_is_no_duplicate():
    rows: list[Row] = [
        QuestionRow(1, "When was it built?", ("1889",), context=CONTEXT),
        QuestionRow(2, "When was it built?", ("1937",), context=OTHER),
        QuestionRow(3, "When was it built?", ("1889",), context=CONTEXT + " Indeed."),
        QuestionRow(4, "When was it built?", ("1889",), document="a.md"),
        QuestionRow(5, "When was it built?", ("1889",), document="b.md"),
    ]
    assert Alike(rows).clusters == [0, 1, 0, 3, 4]


def test_prompts_are_compared_without_the_lines_that_all_of_them_have():
    head = "You answer tickets of customers of a bank. Be brief, be kind, and never ask for a password.\nTicket:\n"
    rows: list[Row] = [
        CompletionRow(i + 1, head + text, "ok")
        for i, text in enumerate(["My card is lost", "A transfer failed", "How high are fees?", "Close my account"])
    ]
    assert Alike(rows).duplicates(20).num_distinct == 4


def test_evaluation_rows_that_are_trained_on_are_found_exactly_and_nearly():
    rows = labelled(("How do I change the address of my account?", "address"), ("My card is lost", "card"))
    evaluation = labelled(
        ("my card is lost!", "card"),
        ("How do I change the address of my accounts?", "address"),
        ("What is the rate of exchange?", "rate"),
    )
    found = Alike(rows).leakage(evaluation, "digest", 20)
    assert (found.num_eval_rows, found.num_exact, found.num_near) == (3, 1, 1)
    assert [(row.eval_line, row.train_line) for row in found.first] == [(1, 2), (2, 1)]
    assert found.first[0] == LeakedRow(1, 2, 1.0)
    assert 0.8 <= found.first[1].similarity < 1


def test_question_leaks_with_its_own_context_only_and_new_ones_about_a_known_context_are_counted():
    rows: list[Row] = [QuestionRow(1, "When was it built?", ("1889",), context=CONTEXT)]
    evaluation: list[Row] = [
        QuestionRow(1, "When was it built?", ("1937",), context=OTHER),
        QuestionRow(2, "How tall is the tower?", ("330 metres",), context=CONTEXT),
        QuestionRow(3, "When was it built?", ("1889",), context=CONTEXT),
    ]
    found = Alike(rows).leakage(evaluation, "digest", 20)
    assert (found.num_exact, found.num_near, found.num_same_context) == (1, 0, 1)
    assert found.first == (LeakedRow(3, 1, 1.0),)
