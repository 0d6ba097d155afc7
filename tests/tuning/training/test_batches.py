from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tuning.training.batches import plan_epoch, shared_forwards, split_forwards
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.packing import pack

LENGTHS = random.Random(1).choices(range(5, 80), k=500)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=80),
    st.integers(1, 500),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_every_example_is_in_exactly_one_batch_of_an_epoch(lengths: list[int], budget: int, seed: int, epoch: int):
    plan = plan_epoch(lengths, batch_tokens=budget, seed=seed, epoch=epoch)
    assert all(plan)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))


def test_plan_depends_on_seed_and_epoch_alone():
    def plan(seed: int, epoch: int) -> list[tuple[int, ...]]:
        return plan_epoch(LENGTHS, batch_tokens=400, seed=seed, epoch=epoch)

    assert plan(0, 0) == plan(0, 0)
    assert len({tuple(plan(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_batches_are_of_about_equal_tokens_and_none_is_a_leftover():
    sums = [sum(LENGTHS[i] for i in batch) for batch in plan_epoch(LENGTHS, batch_tokens=400, seed=0, epoch=0)]
    assert min(sums) > 300
    assert max(sums) < 500


def test_examples_of_a_batch_have_like_lengths_and_short_ones_do_not_come_first():
    plan = plan_epoch(LENGTHS, batch_tokens=400, seed=0, epoch=0)
    padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in plan)
    assert padded < 1.15 * sum(LENGTHS)
    firsts = [LENGTHS[batch[0]] for batch in plan]
    assert firsts != sorted(firsts)


def test_plan_refuses_no_examples_and_no_budget():
    with pytest.raises(ValueError, match="got 0 and 10 tokens"):
        plan_epoch([], batch_tokens=10, seed=0, epoch=0)
    with pytest.raises(ValueError, match="got 1 and 0 tokens"):
        plan_epoch([3], batch_tokens=0, seed=0, epoch=0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 100))
def test_forwards_hold_the_batch_in_order_and_never_more_than_allowed_but_for_one_long_example(
    lengths: list[int], most: int
):
    forwards = split_forwards(range(len(lengths)), lengths, most)
    assert [index for forward in forwards for index in forward] == list(range(len(lengths)))
    for forward in forwards:
        assert len(forward) == 1 or sum(lengths[index] for index in forward) <= most


def computed(examples: list[EncodedExample], forward: tuple[int, ...]) -> int:
    return pack([examples[index] for index in forward]).input_ids.shape[1]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=2, max_size=30), st.integers(1, 29)), min_size=1),
    st.integers(1, 120),
)
def test_shared_forwards_hold_every_example_once_and_compute_no_more_than_allowed(
    drawn: list[tuple[list[int], int]], most: int
):
    examples = [EncodedExample(tuple(tokens), min(num_prompt, len(tokens) - 1)) for tokens, num_prompt in drawn]
    forwards = shared_forwards(examples, most)
    assert sorted(index for forward in forwards for index in forward) == list(range(len(examples)))
    assert all(len(forward) == 1 or computed(examples, forward) <= most for forward in forwards)


def test_many_completions_of_one_prompt_share_a_forward_with_no_other_prompt():
    generator = random.Random(0)
    prompts = [(1, 2, 3, *generator.choices(range(10, 99), k=200)) for _ in range(4)]
    labels = [tuple(generator.choices(range(10, 99), k=3)) for _ in range(20)]
    examples = [EncodedExample((*prompt, *label), len(prompt)) for label in labels for prompt in prompts]
    forwards = shared_forwards(examples, 2048)
    assert len(forwards) == 4
    # The prompt without its last token, once; that token and all but the last of each label.
    assert [computed(examples, forward) for forward in forwards] == [202 + 20 * 3] * 4


def test_short_examples_of_many_prompts_share_one_forward():
    examples = [EncodedExample((1, 2, 3, *random.Random(i).choices(range(10, 99), k=9)), 8) for i in range(30)]
    assert len(shared_forwards(examples, 2048)) == 1
