"""Answers that say that they are none."""

from __future__ import annotations

import re

# What adapters are trained to say where the documents hold no answer.
NOT_IN_DOCUMENTS = "The answer is not in the documents."

_TEXTS = r"(?:passages?|documents?|documentation|context|text|information|sources?|knowledge base)"
_NOT = r"(?: not|n't)"
_UNABLE = r"(?:cannot|can not|can't|could not|couldn't)"
_SAYS_NOTHING = re.compile(
    "|".join(
        [
            rf"\b(?:answer|information|question|this|that|it)\b.{{0,60}}? (?:is|are|was){_NOT} (?:\w+ )?(?:in|by|from) "
            rf"(?:the|these|any of the) (?:\w+ )?{_TEXTS}\b",
            rf"\bi (?:do{_NOT}|dont) (?:actually |really )?know\b",
            rf"\bi (?:do{_NOT}|dont) have (?:any |enough |that |the |this )?(?:information|answer|context)\b",
            rf"\b{_TEXTS} (?:\w+ )?(?:do|does){_NOT} (?:\w+ly )?"
            r"(?:hold|contain|mention|say|state|provide|specify|include|answer|give|tell)\b",
            rf"\bi (?:{_UNABLE}|am unable to|am not able to) (?:answer|find|determine)\b",
            rf"\b(?:answer|question|it|this|that) {_UNABLE} be (?:answered|determined|found)\b",
            r"\bthere is no (?:information|answer|mention)\b",
        ]
    )
)
_FIRST_SENTENCE = re.compile(r"\s*[^\n]*?(?:[.!?](?=\s|$)|(?=\n)|$)")


def is_refusal(answer: str) -> bool:
    """Whether the first sentence of an answer says, in English, that the answer is not known or not in the documents.

    What is said after an answer takes none of it back.
    """
    found = _FIRST_SENTENCE.match(answer)
    sentence = answer if found is None else found.group()
    return (
        _SAYS_NOTHING.search(" ".join(sentence.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split()))
        is not None
    )
