"""Sampling draws the exact distribution, that of transformers' warpers, and the same token everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import BACKENDS, NEEDS_TRITON, WITH_TRITON
from sampling_checks import Batch, chi_square_passes, keys, parameters
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from kernels.dispatch import Backend
from kernels.sampling import sample
from kernels.sampling.noise import gumbel, gumbel_torch, row_key, row_keys_torch, token_hash
from kernels.sampling.reference import noise_reference, probabilities_reference, sample_reference
from kernels.sampling.torch_op import NOISE_RANGE

COMBINATIONS = [
    (1.0, 0, 1.0, 0.0),
    (0.6, 0, 1.0, 0.0),
    (1.7, 6, 1.0, 0.0),
    (1.0, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.1),
    (1.3, 9, 0.9, 0.05),
    (0.8, 0, 1e-6, 0.0),
]


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings_", COMBINATIONS)
def test_draws_pass_a_chi_square_test_against_the_exact_distribution(settings_, backend):
    logits = torch.randn(23, generator=torch.Generator().manual_seed(1)) * 2
    count = 20_000
    drawn = sample(logits.expand(count, -1), *parameters(settings_, count), *keys(count), backend=backend)
    expected = probabilities_reference(logits, *settings_) * count
    assert chi_square_passes(torch.bincount(drawn, minlength=23).double(), expected)


@pytest.mark.parametrize("is_one_request", [True, False])
def test_draws_of_many_tokens_and_of_neighbours_are_independent(is_one_request: bool):
    """Counters in a row: the positions of one request, or the seeds 0, 1, 2 and so on at one position."""
    count = 100_000
    counter, fixed = torch.arange(count), torch.full((count,), 7)
    seed, position = (fixed, counter) if is_one_request else (counter, fixed)
    settings_ = parameters((1.0, 0, 1.0, 0.0), count)
    drawn = sample(torch.zeros(1, 1000).expand(count, -1), *settings_, seed, position)
    assert chi_square_passes(torch.bincount(drawn, minlength=1000).double(), torch.full((1000,), count / 1000))
    few = drawn % 10
    pairs = torch.bincount(10 * few[:-1] + few[1:], minlength=100).double()
    assert chi_square_passes(pairs, torch.full((100,), (count - 1) / 100))


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62), st.lists(st.integers(0, 2**31 - 1), min_size=1))
def test_noise_of_torch_has_the_bits_of_the_definition(seed, position, tokens):
    key = row_key(seed, position)
    ours = row_keys_torch(torch.tensor([seed]), torch.tensor([position]))
    assert int(ours) % 2**64 == key
    expected = [gumbel(token_hash(key, token)) for token in tokens]
    assert gumbel_torch(ours, torch.tensor(tokens)).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_noise_covers_the_range_that_the_backends_count_on():
    assert -NOISE_RANGE + 22.88 < gumbel(2**32 - 1) < 0 < gumbel(0) < 22.88
    assert gumbel(2**31) == pytest.approx(0.3665129)  # of one half


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("width", [1, 2, 61, 5003])
def test_flat_logits_draw_the_token_with_the_most_noise(backend: Backend, width: int):
    seed, position = keys(6, seed=width)
    drawn = sample(torch.zeros(6, width), *parameters((1.0, 0, 1.0, 0.0), 6), seed, position, backend=backend)
    noise = [noise_reference(*each, width) for each in zip(seed.tolist(), position.tolist(), strict=True)]
    assert drawn.tolist() == [int(each.argmax()) for each in noise]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_batch_draws_as_the_reference_does_row_by_row(backend, data):
    Batch(data, [1, 2, 7, 64, 65, 300, 1009]).check(backend=backend)


@NEEDS_TRITON
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_batch_draws_as_the_reference_does_on_triton(data):
    Batch(data, [1, 2, 7, 64, 65, 300, 1009]).check(backend="triton")


@NEEDS_TRITON
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("max_block", [32, 128])
def test_parts_of_a_row_change_no_draw(dtype: torch.dtype, max_block: int, monkeypatch: pytest.MonkeyPatch):
    from kernels.sampling import triton_op

    logits = 2 * torch.randn(3, 523, generator=torch.Generator().manual_seed(4)).to(dtype)
    columns = [torch.tensor(each) for each in ([0.0, 1.0, 1.5], [0, 40, 0], [1.0, 0.9, 0.5], [0.0, 0.0, 0.02])]
    expected = sample_reference(logits, *columns, *keys(3))
    for programs in (1, 7, 500):
        monkeypatch.setattr(triton_op, "_PROGRAMS", programs)
        drawn = triton_op.sample_triton(logits, *columns, *keys(3), max_block=max_block)
        assert torch.equal(drawn, expected)


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("settings_", [(1.0, 0, 1.0, 0.0), (1.3, 40, 0.9, 0.01)])
def test_row_draws_the_same_alone_and_in_any_batch(backend: Backend, settings_):
    logits = torch.randn(12, 400, generator=torch.Generator().manual_seed(5))
    seed, position = keys(12)

    def drawn(rows: list[int]) -> list[int]:
        columns = parameters(settings_, len(rows))
        return sample(logits[rows], *columns, seed[rows], position[rows], backend=backend).tolist()

    together = drawn(list(range(12)))
    assert drawn([7, 3, 7, 11]) == [together[row] for row in (7, 3, 7, 11)]
    assert drawn([5]) == [together[5]]


def test_other_seeds_and_other_positions_draw_others():
    logits, settings_ = torch.zeros(64, 1000), parameters((1.0, 0, 1.0, 0.0), 64)
    same, counter = torch.full((64,), 3), torch.arange(64)
    for seed, position in ((counter, same), (same, counter), (counter << 40, same)):
        assert len(sample(logits, *settings_, seed, position).unique()) > 50
    assert len(sample(logits, *settings_, same, same).unique()) == 1
