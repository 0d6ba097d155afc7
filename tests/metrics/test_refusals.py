"""Answers that say that they are none."""

from __future__ import annotations

import pytest

from engine.metrics.refusals import NOT_IN_DOCUMENTS, is_refusal


@pytest.mark.parametrize(
    "answer",
    [
        NOT_IN_DOCUMENTS,
        "the answer is not in the documents",
        "I don\N{RIGHT SINGLE QUOTATION MARK}t know.",
        "I do not know the answer to that.",
        "  I'm sorry, but I don't have enough information to say.",
        "The passages do not explicitly mention the price.",
        "The context doesn't contain it. However, Paris is a city.",
        "This information is not provided in the passages.",
        "I cannot find it.",
        "I am unable to answer this question",
        "The question cannot be answered from what was given.",
        "There is no information about that\nin the pages.",
    ],
)
def test_answer_that_says_it_is_none_is_a_refusal(answer):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Paris",
        "Run `fly deploy`. I do not know of another way.",
        "You cannot find the volume there; create it anew.",
        "It is not in the United States.",
        "The file is not in the text directory.",
        "Denver Broncos\nThe passages do not mention others.",
        "Machines do not contain state.",
    ],
)
def test_answer_with_a_no_in_it_is_none(answer):
    assert not is_refusal(answer)
