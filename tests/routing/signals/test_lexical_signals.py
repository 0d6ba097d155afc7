"""Signals of words by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.signals.lexical import (
    NAMES,
    WordCounts,
    content_words,
    distinct_words,
    lexical_signals,
    plain_words,
)


def signals_of(question: str, words: WordCounts | None = None) -> dict[str, float]:
    table = lexical_signals([question], words)
    return dict(zip(table.names, table.values[0].tolist(), strict=True))


def test_lengths_digits_and_marks_are_counted():
    found = signals_of('Was "Thriller" sold 70 million times by 1999? I guess so.')
    assert found["lexical.tokens"] == 11
    assert found["lexical.characters"] == 57
    assert found["lexical.sentences"] == 2
    assert found["lexical.digits"] == 6
    assert found["lexical.year"] == found["lexical.quoted"] == found["lexical.question_mark"] == 1.0
    assert found["lexical.personal"] == 1
    assert found["lexical.name_share"] == pytest.approx(1 / 11)


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("Who won?", "who"),
        ("what's a slot", "what"),
        ("When did it open?", "when"),
        ("Where’s the key", "where"),
        ("Which plan is it?", "which"),
        ("Why?", "why"),
        ("how many", "how"),
        ("Can I cancel?", "yes_no"),
        ("Tell me when it opens.", None),
        ("", None),
    ],
)
def test_first_word_says_what_is_asked(question, name):
    found = {key for key, value in signals_of(question).items() if key.startswith("lexical.opens_") and value}
    assert found == (set() if name is None else {f"lexical.opens_{name}"})


@pytest.mark.parametrize(
    ("question", "name", "value"),
    [
        ("Who is the current president now?", "time", 2),
        ("Who is the oldest player?", "superlative", 1),
        ("What is the most popular plan", "superlative", 1),
        ("Is my interest and request in the forest?", "superlative", 0),
        ("Does it work?", "dangling", 1),
        ("Does the plan say that it works?", "dangling", 0),
        ("How can I set fly.toml keys?", "code", 1),
        ("What does --org do", "code", 1),
        ("Is this plain?", "code", 0),
        ("Postgres or Redis and disks", "joining", 2),
    ],
)
def test_marks_of_wording(question, name, value):
    assert signals_of(question)[f"lexical.{name}"] == value


def test_names_are_words_with_a_capital_inside_a_sentence():
    assert signals_of("Does Fly run in Paris? Yes. I do.")["lexical.name_share"] == pytest.approx(2 / 8)


def test_digits_of_every_script_are_counted_and_words_each_once():
    assert signals_of("٣ of 12 plans²")["lexical.digits"] == 4
    assert distinct_words("Plan or plan, the other plan’s Price?") == ("plan", "other", "plan's", "price")


def test_content_words_leave_out_what_says_nothing_by_itself():
    assert content_words(plain_words("What is the price of a Volume?")) == ["price", "volume"]
    assert signals_of("What is the price of a Volume?")["lexical.content_share"] == pytest.approx(2 / 7)


def test_rarity_is_that_of_the_knowledge_base():
    counts = WordCounts(9, {"volume": 4, "price": 9})
    found = signals_of("What is the price of a Volume in zorkmids?", counts)
    assert found["lexical.unknown_share"] == pytest.approx(1 / 3)
    assert found["lexical.max_idf"] == pytest.approx(math.log(1 + 9.5 / 0.5))
    expected = (math.log(1 + 0.5 / 9.5) + math.log(1 + 5.5 / 4.5) + math.log(20)) / 3
    assert found["lexical.mean_idf"] == pytest.approx(expected)
    assert math.isnan(signals_of("What is it?", counts)["lexical.max_idf"])
    assert math.isnan(signals_of("What is the price?")["lexical.max_idf"])


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text_has_finite_signals_and_a_batch_gives_what_each_gives_alone(questions):
    table = lexical_signals(questions)
    assert table.values.shape == (len(questions), len(NAMES))
    assert np.isfinite(table.values[:, :-3]).all()
    for place, question in enumerate(questions):
        np.testing.assert_array_equal(table.values[place], lexical_signals([question]).values[0])


def test_a_long_text_is_looked_at_up_to_a_limit():
    assert signals_of("word " * 100_000)["lexical.tokens"] == 400
