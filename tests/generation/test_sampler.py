"""Draws follow the distribution they are asked for and repeat with their seed."""

from collections import Counter

import pytest
import torch

from engine.generation.sampler import NUM_CANDIDATES, Sampler, choose_tokens
from engine.values import SamplingParams

LOGITS = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()


def drawn(params: SamplingParams, logits: torch.Tensor = LOGITS, count: int = 4000) -> Counter[int]:
    sampler = Sampler(params)
    return Counter(sampler.draw(logits) for _ in range(count))


def test_greedy_takes_the_most_probable_token():
    assert choose_tokens(LOGITS[None], [Sampler(SamplingParams(temperature=0))]) == [1]


def test_draws_follow_the_probabilities_at_temperature_one():
    counts = drawn(SamplingParams(temperature=1, seed=1))
    assert [counts[i] / 4000 for i in range(4)] == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.03)


def test_draws_sharpen_at_a_low_temperature():
    counts = drawn(SamplingParams(temperature=0.5, seed=1))
    squares = torch.tensor([0.01, 0.25, 0.0225, 0.0625])
    assert [counts[i] / 4000 for i in range(4)] == pytest.approx((squares / squares.sum()).tolist(), abs=0.03)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(temperature=1, seed=1, top_k=2), {1, 3}),
        (SamplingParams(temperature=1, seed=1, top_k=99), {0, 1, 2, 3}),
        (SamplingParams(temperature=1, seed=1, top_p=0.6), {1, 3}),
        (SamplingParams(temperature=1, seed=1, top_p=0.5), {1}),
        (SamplingParams(temperature=1, seed=1, top_p=0.0), {1}),
        (SamplingParams(temperature=1, seed=1, top_k=3, top_p=0.8), {1, 3}),
        (SamplingParams(temperature=1e-9, seed=1), {1}),
    ],
)
def test_only_tokens_within_top_k_and_top_p_are_drawn(params: SamplingParams, allowed: set[int]):
    assert set(drawn(params, count=500)) == allowed


def test_top_p_of_an_almost_flat_distribution_keeps_more_than_the_candidates_sorted_first():
    vocabulary = NUM_CANDIDATES * 8
    almost_flat = torch.linspace(0.01, 0, vocabulary)
    ids = drawn(SamplingParams(temperature=1, seed=1, top_p=0.5), almost_flat, 100)
    assert NUM_CANDIDATES < max(ids) <= vocabulary // 2


def test_equal_seeds_draw_equally_and_others_do_not():
    def text(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1, seed=seed))
        return [sampler.draw(LOGITS) for _ in range(60)]

    assert text(7) == text(7)
    assert text(7) != text(8)
    assert text(None) != text(None)
    assert text(-1) == text(2**64 - 1)


def test_rows_of_a_batch_do_not_disturb_each_others_seeds():
    alone = Sampler(SamplingParams(temperature=1, seed=3))
    expected = [choose_tokens(LOGITS[None], [alone])[0] for _ in range(30)]
    samplers = [Sampler(SamplingParams(temperature=1, seed=9)), Sampler(SamplingParams(temperature=1, seed=3))]
    assert [choose_tokens(LOGITS.repeat(2, 1), samplers)[1] for _ in range(30)] == expected
