"""Sampling draws the exact distribution: that of transformers' warpers, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from kernels.dispatch import Backend
from kernels.sampling import sample
from kernels.sampling.reference import probabilities_reference, sample_reference

COMBINATIONS = [
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 1.0, 0.0),
    (1.7, 6, 1.0, 0.0),
    (1.0, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.3, 9, 0.9, 0.05),
    (0.8, 0, 1e-6, 0.0),
]


def parameters(settings_: tuple[float, int, float, float], count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    temperature, top_k, top_p, min_p = settings_
    return (
        torch.full((count,), temperature),
        torch.full((count,), top_k),
        torch.full((count,), top_p),
        torch.full((count,), min_p),
    )


def expected_by_transformers(logits: Tensor, settings_: tuple[float, int, float, float]) -> Tensor:
    temperature, top_k, top_p, min_p = settings_
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(None, scores)
    return scores[0].double().softmax(-1)


@pytest.mark.parametrize("settings_", COMBINATIONS)
def test_definition_is_that_of_transformers(settings_):
    logits = torch.randn(23, generator=torch.Generator().manual_seed(0)) * 2
    expected = expected_by_transformers(logits, settings_)
    torch.testing.assert_close(probabilities_reference(logits, *settings_), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings_", COMBINATIONS)
def test_draws_pass_a_chi_square_test_against_the_exact_distribution(settings_):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(23, generator=generator) * 2
    count = 20_000
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    drawn = sample(logits.expand(count, -1), *parameters(settings_, count), uniform)
    expected = expected_by_transformers(logits, settings_) * count
    observed = torch.bincount(drawn, minlength=23).double()
    assert observed[expected == 0].sum() == 0
    likely = expected > 5
    statistic = float(((observed - expected)[likely] ** 2 / expected[likely]).sum())
    degrees = int(likely.sum()) - 1
    # The mean of chi-square is its degrees of freedom, its variance twice that: 4.5 deviations above, once in 10^4.
    assert statistic <= degrees + 4.5 * (2 * max(degrees, 1)) ** 0.5


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_batch_draws_as_the_reference_does_row_by_row(data):
    count, vocabulary = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 7, 300, 1000]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    spread = data.draw(st.sampled_from([0.01, 1.0, 8.0]))  # almost flat: more tokens matter than are sorted first
    logits = torch.randn(count, vocabulary, generator=generator) * spread
    rows = [
        (
            data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
            data.draw(st.sampled_from([0, 1, 5, 280, 5000])),
            data.draw(st.sampled_from([1e-9, 0.3, 0.95, 1.0])),
            data.draw(st.sampled_from([0.0, 0.2, 1.0])),
        )
        for _ in range(count)
    ]
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    assert sample(logits, *columns, uniform).tolist() == sample_reference(logits, *columns, uniform).tolist()


def test_temperature_zero_takes_the_lowest_id_of_the_best():
    logits = torch.zeros(1, 9)
    logits[0, [4, 7]] = 1.0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert sample(logits.to(dtype), *parameters((0.0, 0, 1.0, 0.0), 1), torch.zeros(1).double()).tolist() == [4]


def test_tokens_at_minus_infinity_are_never_drawn():
    logits = torch.full((500, 40), float("-inf"))
    logits[:, [3, 30]] = 0.0
    uniform = torch.rand(500, dtype=torch.float64)
    assert set(sample(logits, *parameters((2.0, 0, 1.0, 0.0), 500), uniform).tolist()) == {3, 30}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_row_that_is_not_finite_is_named(bad: float):
    logits = torch.zeros(3, 8)
    logits[1, 5] = bad
    with pytest.raises(ValueError, match="row 1 of the logits has no finite maximum"):
        sample(logits, *parameters((1.0, 0, 1.0, 0.0), 3), torch.zeros(3).double())


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 400, 49152])
def test_best_token_is_the_first_of_equals_wherever_it_lies(backend: Backend, dtype: torch.dtype, width: int):
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(6, width, generator=generator).sub(3).to(dtype)
    logits[1] = -0.0  # equal to 0
    logits[1, width // 2] = 0.0
    logits[2, -1] = 1e4
    logits[3, width // 3 :] = 7.0
    logits[4] = float("-inf")
    logits[4, width // 2] = -5.0
    expected = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert sample(logits, *greedy(6), backend=backend).tolist() == expected


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", ["nan", "-nan", "inf"])
@pytest.mark.parametrize("place", [0, 9, 32])
def test_row_with_a_number_that_is_none_is_refused(backend: Backend, dtype: torch.dtype, bad: str, place: int):
    logits = torch.zeros(3, 33, dtype=dtype)
    logits[1, place] = float(bad)
    if bad == "-nan":  # conversions lose the sign
        logits.view(torch.int16 if dtype == torch.bfloat16 else torch.int32)[1, place] |= -1 << (8 * dtype.itemsize - 1)
        assert logits[1, place].signbit() and logits[1, place].isnan()
    with pytest.raises(ValueError, match="row 1 of the logits has no finite maximum"):
        sample(logits, *greedy(3), backend=backend)


def greedy(count: int) -> tuple[Tensor, ...]:
    return *parameters((0.0, 0, 1.0, 0.0), count), torch.zeros(count, dtype=torch.float64)
