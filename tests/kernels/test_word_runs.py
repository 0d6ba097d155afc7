"""Words of a text, native and in Python, against a regular expression."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.alone import absence
from kernels.word_runs import missing_words

native = pytest.mark.skipif(absence() is not None, reason=f"no native kernel: {absence()}")
backends = pytest.mark.parametrize("backend", ["python", pytest.param("native", marks=native)])
# Letters of one to four bytes, digits that are no ASCII, marks that join, and half of a surrogate pair.
CHARACTERS = "ab1 Zé日𐐀٣²_'’-.—\u0307\0\n\ud800"


@backends
@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from(CHARACTERS), max_size=40), st.data())
def test_words_that_a_text_lacks_are_those_of_no_run(backend, text, data):
    runs = re.findall(r"[^\W_]+", text)
    there = data.draw(st.lists(st.sampled_from(runs), max_size=4)) if runs else []
    drawn = data.draw(st.lists(st.text(st.sampled_from("ab1Zé日𐐀٣²"), min_size=1, max_size=3), max_size=6))
    words = [*drawn, *there]
    assert missing_words(words, text, backend=backend) == [word for word in words if word not in runs]


@backends
def test_a_run_must_be_whole_and_may_end_the_text(backend):
    words = ["card", "é", "now"]
    assert missing_words(words, "cardboard discard é2 nowhere", backend=backend) == words
    assert missing_words(words, "card", backend=backend) == ["é", "now"]
    assert missing_words(words, "(card) é—now", backend=backend) == []
    assert missing_words(words, "", backend=backend) == words
    assert missing_words([], "card", backend=backend) == []


@backends
@pytest.mark.parametrize("word", ["don't", "", "a b", "a\0", "_"])
def test_anything_but_letters_and_digits_is_no_word(backend, word):
    with pytest.raises(ValueError, match=re.escape(repr(word))):
        missing_words(["card", word], "card", backend=backend)
