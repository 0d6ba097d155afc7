"""Products with weights of 4 and 8 bits, against float32 and against GGUF's own reading of the codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from engine.weights.gguf import dequantise_q4_1, dequantise_q8_0
from kernels.packed_linear import (
    BlockCodes,
    pack_codes,
    packed_linear,
    packed_products_absence,
    quantise,
    stack_codes,
)

MISSING = packed_products_absence()
BACKENDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(MISSING is not None, reason=str(MISSING)))]
NEEDS_NATIVE = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def random_codes(outputs: int, inputs: int, bits: int) -> BlockCodes:
    """Codes of every value, with scales of both signs and different sizes."""
    scales = (torch.randn(outputs, inputs // 32) * torch.logspace(-3, 0, inputs // 32)).half()
    if bits == 8:
        return BlockCodes(torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8), scales, None)
    codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8)
    return BlockCodes(codes, scales, torch.randn(outputs, inputs // 32).half())


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_stand_for_the_weights_that_gguf_reads(bits):
    codes = random_codes(7, 96, bits)
    parts = [codes.codes.numpy(), codes.scales.numpy()]
    expected = dequantise_q8_0(*parts) if codes.mins is None else dequantise_q4_1(*parts, codes.mins.numpy())
    assert np.array_equal(codes.dequantised().numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [*range(1, 10), 16, 33])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (70, 96), (15, 576), (1, 64)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_product_is_nearer_to_float32_than_that_of_weights_in_bfloat16(backend, bits, rows, outputs, inputs, has_bias):
    torch.manual_seed(rows)
    # Inputs of very different size within a block: a step for all of them has to serve the small ones too.
    x = (torch.randn(rows, inputs) * torch.logspace(-3, 1, inputs)[torch.randperm(inputs)]).bfloat16()
    codes = random_codes(outputs, inputs, bits)
    bias = torch.randn(outputs).bfloat16() if has_bias else None
    wide = None if bias is None else bias.float()
    weight = codes.dequantised()
    exact = functional.linear(x.float(), weight, wide)
    result = packed_linear(x, pack_codes(codes, bias, backend=backend))
    assert result.shape == exact.shape and result.dtype == torch.bfloat16
    rounded = functional.linear(x.float(), weight.bfloat16().float(), wide)
    # What is left besides rounding the result once.
    beyond = (result.float() - exact).abs() - exact.abs() * 2**-8
    assert beyond.max() <= 0.5 * (rounded - exact).abs().max()


@NEEDS_NATIVE
def test_inputs_down_to_a_128th_of_the_largest_are_exact():
    x = torch.zeros(1, 32).bfloat16()
    x[0, 0], x[0, 5] = 255 * 2.0**-8, 255 * 2.0**-15
    weight = torch.zeros(16, 32)
    weight[3, 5], weight[4, 0] = 127.0, -127.0
    result = packed_linear(x, pack_codes(quantise(weight, 8), backend="native"))
    assert result[0, 3] == (127 * x[0, 5].float()).bfloat16() and result[0, 4] == (-127 * x[0, 0].float()).bfloat16()


def largest_error(x: torch.Tensor, codes: BlockCodes) -> torch.Tensor:
    """float64 [T, out]: what the docstring of packed_linear allows before the result is rounded."""
    blocks = x.double().reshape(len(x), -1, 32)
    minimums = torch.zeros_like(codes.scales) if codes.mins is None else codes.mins
    weight = codes.dequantised().double().reshape(len(minimums), -1, 32)
    scaled = (weight - minimums.double().unsqueeze(-1)).abs().sum(-1)
    of_steps = 2**-16 * blocks.abs().amax(-1) @ scaled.T
    # A block is added to a float32 sum in two steps, and its own numbers are summed in five.
    sizes = blocks.abs().sum(-1) @ (scaled + weight.abs().amax(-1) + minimums.double().abs()).T
    return of_steps + (2 * blocks.shape[1] + 6) * 2**-24 * sizes


# Around the least wide step and the edges of tiles and chunks; slices of one block, of some and of all.
@NEEDS_NATIVE
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [15, 16, 17, 18, 19, 22, 25, 96, 97, 193])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (1, 64), (15, 576), (49, 608), (20, 1536)])
def test_product_of_many_rows_is_off_by_no_more_than_the_steps_of_inputs_allow(bits, rows, outputs, inputs):
    torch.manual_seed(rows)
    x = (torch.randn(rows, inputs) * torch.logspace(-3, 1, inputs)[torch.randperm(inputs)]).bfloat16()
    codes = random_codes(outputs, inputs, bits)
    bias = torch.randn(outputs)
    exact = functional.linear(x.double(), codes.dequantised().double(), bias.double())
    allowed = largest_error(x, codes)
    result = packed_linear(x, pack_codes(codes, bias, backend="native"))
    assert ((result.double() - exact).abs() <= allowed + 2**-8 * (exact.abs() + allowed)).all()


@NEEDS_NATIVE
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [32, 576, 1216])
def test_row_is_the_same_in_steps_of_any_width(bits, inputs):
    torch.manual_seed(inputs)
    x = torch.randn(200, inputs).bfloat16()
    weight = pack_codes(random_codes(33, inputs, bits), torch.randn(33), backend="native")
    alone = torch.cat([packed_linear(row, weight) for row in x.split(1)])
    for rows in (2, 15, 16, 17, 22, 64, 97, 200):
        assert torch.equal(packed_linear(x[:rows], weight), alone[:rows])


@NEEDS_NATIVE
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [5, 16, 20, 100])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_input_that_is_not_finite_gives_no_finite_output_and_spoils_no_other_row(bits, rows, value):
    x = torch.ones(rows, 64).bfloat16()
    x[2, 40] = value
    result = packed_linear(x, pack_codes(random_codes(20, 64, bits), backend="native"))
    others = torch.arange(rows) != 2
    assert not result[2].isfinite().any() and result[others].isfinite().all()


@NEEDS_NATIVE
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 3e38])
def test_inputs_of_any_size_keep_their_precision(size):
    x = torch.full((1, 32), size).bfloat16()
    weight = torch.zeros(16, 32)
    weight[:, 7] = 1.0
    result = packed_linear(x, pack_codes(quantise(weight, 8), backend="native"))
    torch.testing.assert_close(result[0], x[0, :16], rtol=2**-7, atol=0)


@pytest.mark.parametrize(("bits", "steps"), [(4, 15), (8, 254)])
def test_quantised_weights_are_off_by_half_a_step_at_most(bits, steps):
    torch.manual_seed(0)
    weight = torch.randn(33, 128)
    weight[5, :32] = 0.25  # a block without a range
    blocks = weight.reshape(33, 4, 32)
    widths = blocks.amax(-1) - blocks.amin(-1) if bits == 4 else 2 * blocks.abs().amax(-1)
    error = (quantise(weight, bits).dequantised().reshape(33, 4, 32) - blocks).abs().amax(-1)
    # Scale and minimum are rounded to float16.
    assert (error <= widths / steps / 2 + blocks.abs().amax(-1) * 2**-10).all()


def test_weights_stacked_as_codes_are_the_weights_stacked():
    parts = [quantise(torch.randn(outputs, 64), 4) for outputs in (3, 5)]
    stacked = torch.cat([part.dequantised() for part in parts])
    assert torch.equal(stack_codes(parts).dequantised(), stacked)


def test_no_row_gives_no_row():
    weight = pack_codes(random_codes(16, 32, 4))
    assert packed_linear(torch.zeros(0, 32).bfloat16(), weight).shape == (0, 16)


def test_what_does_not_fit_is_refused():
    codes = random_codes(16, 64, 4)
    weight = pack_codes(codes)
    with pytest.raises(ValueError, match=r"packed_linear: x \(3, 63\)"):
        packed_linear(torch.zeros(3, 63).bfloat16(), weight)
    with pytest.raises(ValueError, match="contiguous: False"):
        packed_linear(torch.zeros(64, 3).bfloat16().T, weight)
    with pytest.raises(ValueError, match=r"inputs must be a multiple of 32"):
        quantise(torch.zeros(4, 40), 8)
    with pytest.raises(ValueError, match="pack_codes: 4 bits"):
        pack_codes(BlockCodes(codes.codes, codes.scales[:, :1], codes.mins))
    with pytest.raises(ValueError, match="pack_codes: 4 bits"):
        pack_codes(codes, torch.zeros(15))
    with pytest.raises(ValueError, match="stack_codes"):
        stack_codes([codes, random_codes(16, 64, 8)])


@NEEDS_NATIVE
def test_packed_weight_multiplies_bfloat16_only():
    with pytest.raises(ValueError, match=r"x \(3, 64\) torch\.float32"):
        packed_linear(torch.zeros(3, 64), pack_codes(random_codes(16, 64, 4)))
