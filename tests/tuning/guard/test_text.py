"""What texts are compared by: normal forms, and inputs without the lines that all of them have."""

from __future__ import annotations

import pytest

from engine.tuning.guard.text import Template, normalise


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where IS my card?", "where is my card"),
        ("I can't log in.", "i cant  log in"),
        ("Ｃａｒｄ", "card"),
        ("(Hello), world!", "hello world"),
    ],
)
def test_case_punctuation_apostrophes_and_blanks_make_no_difference(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), [("1.5 pct", "15 pct"), ("-5", "5"), ("a+b", "a-b"), ("10%", "10$")])
def test_signs_that_carry_meaning_make_a_difference(one, other):
    assert normalise(one) != normalise(other)


def test_text_of_punctuation_alone_stays_what_it_is():
    assert normalise("?!") == "?!"


def test_lines_that_nearly_all_texts_begin_and_end_with_are_left_out():
    texts = [f"Classify the ticket.\n\nTicket: {i}\nAnswer:" for i in range(19)] + ["Something else"]
    template = Template(texts)
    assert template.cut(texts[3]) == "Ticket: 3"
    assert template.cut("Something else") == "Something else"
    assert template.cut("Classify the ticket.\n\nTicket: new\nAnswer:") == "Ticket: new"


def test_texts_that_are_all_the_same_are_no_template():
    texts = ["Summarise:\nthe same text\nplease"] * 10
    template = Template(texts)
    assert len({template.cut(text) for text in texts}) == 1
    assert template.cut(texts[0])


def test_line_of_half_of_the_texts_is_no_template():
    texts = [f"Q:\nquestion {i}" if i % 2 else f"Ask:\nquestion {i}" for i in range(10)]
    assert Template(texts).cut(texts[1]) == "Q:\nquestion 1"
