"""Grades of answers."""

from __future__ import annotations

import pytest

from engine.evaluation.grading import Grade, grade
from engine.evaluation.questions import Question
from engine.metrics.refusals import NOT_IN_DOCUMENTS


def test_short_answers_are_graded_by_their_words():
    question = Question("q", "Where?", ("Santa Clara, California",))
    assert grade(question, "the Santa Clara California") == Grade(1.0, "f1", False, 1.0)
    assert grade(question, "Santa Clara") == Grade(0.8, "f1", False, 0.0)


def test_long_answers_are_graded_by_their_longest_common_words():
    question = Question("q", "How?", ("Run fly deploy in the folder of the app",))
    found = grade(question, "Run fly deploy in the folder of the app.")
    assert found == Grade(1.0, "rouge_l", False, None)


@pytest.mark.parametrize(
    ("text", "quality"),
    [("card_arrival", 1.0), ("Card arrival.", 1.0), ("card-arrival", 1.0), ("It is card arrival", 0.0), ("card", 0.0)],
)
def test_label_is_right_where_the_answer_is_it_and_nothing_else(text, quality):
    assert grade(Question("q", "where is it", label="card_arrival"), text) == Grade(quality, "accuracy", False, quality)


def test_refusal_is_seen_and_is_right_only_where_nothing_is_known():
    assert grade(Question("q", "Why?", ("rain",)), NOT_IN_DOCUMENTS) == Grade(0.0, "f1", True, 0.0)
    assert grade(Question("q", "Why?"), NOT_IN_DOCUMENTS) == Grade(1.0, "refusal", True)
    assert grade(Question("q", "Why?"), "rain") == Grade(0.0, "refusal", False)


def test_server_that_has_no_answer_refuses_whatever_it_says():
    assert grade(Question("q", "Why?", ("rain",)), "Which one?", refused=True).refused
