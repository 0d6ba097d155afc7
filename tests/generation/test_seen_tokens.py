"""What penalties go by: the tokens of prompt and answer, counted as a list of them would be."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from engine.generation.seen_tokens import SeenTokens

TOKENS = st.lists(st.integers(0, 300), max_size=200)


@given(TOKENS, TOKENS, st.lists(st.integers(0, 300), max_size=8))
def test_counts_are_those_of_the_whole_answer_and_of_what_is_ahead(prompt, answer, ahead):
    seen = SeenTokens(prompt)
    for token in answer:
        seen.add(token)
    before = seen.table().tolist()
    ids, counts = seen.table(ahead).tolist()
    assert dict(zip(ids, counts, strict=True)) == Counter(answer + ahead) | dict.fromkeys(
        set(prompt) - set(answer + ahead), 0
    )
    assert len(set(ids)) == len(ids)
    assert seen.table().tolist() == before


def test_nobody_has_seen_anything_at_first():
    assert SeenTokens(()).table().shape == (2, 0)
