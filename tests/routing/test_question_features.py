"""Hashed n-grams against the same written out for one question at a time."""

from __future__ import annotations

import math
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.routing.question_features import MAX_WORDS, hashed_rows

WIDTH = 2**16
WORDS, PATTERNS, PIECES = range(3)
START, END, STAR, NUMBER = (2**32 + place for place in range(4))
MASK = 2**64 - 1


def column(parts: list[int], family: int, width: int = WIDTH) -> int:
    """Polynomial in an odd factor, finished as MurmurHash3 does."""
    value = family * 8 + len(parts)
    for part in parts:
        value = (value * 0x9E3779B97F4A7C15 + part) & MASK
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & MASK
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
    return (value ^ (value >> 33)) % width


def word(text: str) -> int:
    return crc32(text.encode())


def of_words(text: str) -> int:
    return column([word(each) for each in text.split()], WORDS)


def of_pattern(*marks: str | int) -> int:
    return column([word(mark) if isinstance(mark, str) else mark for mark in marks], PATTERNS)


def of_piece(text: str) -> int:
    return column([ord(character) for character in text], PIECES)


def row_of(question: str, common: set[str] | None = None) -> dict[int, float]:
    found = hashed_rows([question], WIDTH, common or set())
    return dict(zip(found.columns.tolist(), found.values.tolist(), strict=True))


def test_a_short_question_has_the_ngrams_that_it_has_by_hand():
    row = row_of("ab")
    pieces = [of_piece(text) for text in (" ab", "ab ", " ab ")]
    patterns = [(START,), (STAR,), (END,), (START, STAR), (STAR, END), (START, STAR, END)]
    expected = {of_words("ab"): 1.0}
    expected |= dict.fromkeys(pieces, 1 / math.sqrt(3))
    expected |= {of_pattern(*marks): 1 / math.sqrt(6) for marks in patterns}
    assert row == pytest.approx(expected)


def test_words_and_pairs_share_one_length():
    row = row_of("Who won")
    # "who", "won", "who won": three n-grams that occur once each.
    assert row[of_words("who")] == row[of_words("who won")] == pytest.approx(1 / math.sqrt(3))
    assert of_words("won who") not in row


def test_words_that_repeat_grow_with_the_logarithm():
    twice = 1 + math.log(2)
    assert row_of("bye bye")[of_words("bye")] == pytest.approx(twice / math.hypot(twice, 1))


def test_patterns_keep_common_words_and_draw_others_together():
    common = {"who", "plays", "in"}
    row, other = row_of("Who plays Darth Vader in 1977?", common), row_of("who plays ripley in 2024", common)
    for marks in (("who", "plays", STAR, "in"), ("in", NUMBER, END), (START, "who", "plays", STAR)):
        assert of_pattern(*marks) in row
        assert row[of_pattern(*marks)] == other[of_pattern(*marks)]
    assert of_pattern(STAR, STAR) not in row


def test_ngrams_cross_neither_words_nor_questions():
    row = row_of("ab cd")
    assert of_piece("b c") not in row and of_piece("  c") not in row and of_piece(" cd") in row
    pair = hashed_rows(["ab", "cd"], WIDTH, set())
    assert of_words("ab cd") not in set(pair.columns.tolist())


def test_a_question_without_words_has_an_empty_row():
    found = hashed_rows(["?!", "one", ""], WIDTH, set())
    assert found.starts[0] == found.starts[1] and found.starts[2] == found.starts[3]
    assert found.products(np.ones(WIDTH)).tolist()[0::2] == [0.0, 0.0]
    assert hashed_rows([], WIDTH, set()).products(np.ones(WIDTH)).shape == (0,)


def test_a_long_question_is_read_up_to_a_limit():
    long = " ".join(f"w{place}" for place in range(MAX_WORDS))
    assert row_of(long) == row_of(f"{long} more words after it")


@given(st.lists(st.text(max_size=30), max_size=5), st.integers(1, 50))
def test_products_are_those_of_the_dense_row_whatever_the_batch(questions, width):
    weights = np.random.default_rng(0).normal(size=width)
    products = hashed_rows(questions, width, {"a"}).products(weights)
    assert products.shape == (len(questions),)
    for place, question in enumerate(questions):
        alone = hashed_rows([question], width, {"a"})
        dense = np.zeros(width)
        dense[alone.columns] = alone.values
        assert (np.diff(alone.columns) > 0).all()
        assert products[place] == alone.products(weights)[0] == pytest.approx(dense @ weights)
