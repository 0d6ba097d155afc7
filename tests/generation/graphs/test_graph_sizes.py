"""Sizes of step that are recorded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.generation.graphs.sizes import MAX_TOKENS, graph_sizes, size_for


def test_sizes_are_small_powers_of_two_and_then_multiples_of_eight():
    assert graph_sizes(128) == (1, 2, 4, 8, *range(16, 129, 8))


def test_few_answers_have_room_for_drafts_and_many_have_an_end():
    assert graph_sizes(1)[-1] == 64
    assert graph_sizes(70)[-1] == 72
    assert graph_sizes(10_000)[-1] == MAX_TOKENS


@given(st.integers(1, 300), st.integers(1, 300))
def test_step_takes_the_smallest_size_that_holds_it(num_tokens: int, max_num_seqs: int):
    sizes = graph_sizes(max_num_seqs)
    size = size_for(num_tokens, sizes)
    if size is None:
        assert num_tokens > sizes[-1]
    else:
        assert size >= num_tokens and all(other < num_tokens for other in sizes if other < size)
