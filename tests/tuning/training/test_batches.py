from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tuning.training.batches import plan_epoch, split_forwards

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
