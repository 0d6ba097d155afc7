"""Passages of `qa` prompts: the row's own context, or what the live index finds, with and without the golden one.

A share of the training rows is shown distractors alone, with "not in the documents" as the answer, so that the model
learns to look rather than to recite (RAFT, Zhang et al., arXiv:2403.10131: 20 to 40 % without the golden passage).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256

from engine.tuning.data.rows import QuestionRow
from engine.tuning.guard.text import normalise
from engine.values import Passage

# A passage is of a context when so many of its words are there.
_SHARED_WORDS = 0.5


def context_passage(row: QuestionRow) -> Passage:
    """The row's context as a passage. It must have one."""
    text = row.context or ""
    name = row.document or ""
    return Passage(chunk=name, document=name, title="", heading="", text=text, start=0, end=len(text), score=1.0)


def is_golden(passage: Passage, row: QuestionRow) -> bool:
    """Whether the passage holds an answer, and is from where the row says its answer is from."""
    text = normalise(passage.text)
    if not any(normalise(answer) in text for answer in row.answers):
        return False
    if row.context is not None:
        words, known = set(text.split()), set(normalise(row.context).split())
        return len(words & known) >= _SHARED_WORDS * min(len(words), len(known))
    return row.document is None or passage.document == row.document


def with_golden(row: QuestionRow, found: Sequence[Passage], num: int, seed: int) -> tuple[Passage, ...] | None:
    """`num` passages with a golden one, at the rank where the search has it; None where there is none to show.

    One that the search puts lower takes the last place, and the row's context, where it was not found, any place.
    """
    golden = next((place for place, passage in enumerate(found) if is_golden(passage, row)), None)
    if golden is not None and golden < num:
        return tuple(found[:num])
    if golden is not None:
        return (*found[: num - 1], found[golden])
    if row.context is None:
        return None
    shown = list(found[: num - 1])
    shown.insert(random.Random(_draw(row, seed, "place")).randint(0, len(shown)), context_passage(row))
    return tuple(shown)


def without_golden(row: QuestionRow, found: Sequence[Passage], num: int) -> tuple[Passage, ...]:
    """The first `num` passages that hold no answer."""
    texts = [normalise(answer) for answer in row.answers]
    return tuple(passage for passage in found if not any(text in normalise(passage.text) for text in texts))[:num]


def loses_golden(row: QuestionRow, share: float, seed: int) -> bool:
    """Whether the row is one of the `share` that is shown distractors alone: by its content, the same anywhere."""
    return _draw(row, seed, "share") < share


def _draw(row: QuestionRow, seed: int, what: str) -> float:
    """A number in [0, 1) that depends on content and seed alone."""
    digest = sha256(f"{what} {seed}\n{row.content()}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
