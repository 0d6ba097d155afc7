"""The operations of an encoder's layer against their definitions in float32 and float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import BACKENDS
from torch.nn import functional

from kernels.add_norm import add_norm
from kernels.float_linear import float_linear, integer_products_absence, pack_float_linear
from kernels.native import absence
from kernels.self_attention import self_attention
from kernels.self_attention.reference import self_attention_reference

NEEDS_NATIVE = pytest.mark.skipif(absence() is not None, reason=f"no native kernels: {absence()}")

NEEDS_INTEGERS = pytest.mark.skipif(
    integer_products_absence() is not None, reason=f"no integer products: {integer_products_absence()}"
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 7, 13, 97, 211])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 16), (61, 7), (385, 33), (768, 96)])
@pytest.mark.parametrize("gelu", [False, True])
def test_float_linear_equals_float64(backend, rows, inputs, outputs, gelu):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    exact = functional.gelu(exact) if gelu else exact
    result = float_linear(x, pack_float_linear(weight, bias, backend=backend), gelu=gelu)
    torch.testing.assert_close(result.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_is_exact_over_its_whole_range_and_keeps_not_a_number(backend):
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e30, 1e30, 0.0, float("nan")])])
    weight = pack_float_linear(torch.ones(1, 1), torch.zeros(1), backend=backend)
    result = float_linear(x[:, None].contiguous(), weight, gelu=True)[:, 0]
    torch.testing.assert_close(result[:-1].double(), functional.gelu(x[:-1].double()), atol=2e-6, rtol=2e-6)
    assert result[-1].isnan()


def steps_of(values):
    """What 1 stands for in each row and block of 64, [N, blocks]: native_integers.cpp has the reasoning."""
    blocks = functional.pad(values.double(), (0, -values.shape[1] % 64)).unflatten(1, (-1, 64))
    return torch.maximum(blocks.norm(dim=-1) / 46300, blocks.abs().amax(-1) / 32767)


def furthest(x, weight):
    """How far a product of rounded numbers may be off: half a step for each number, and what float32 sums lose."""
    half_x = 0.5 * steps_of(x).repeat_interleave(64, 1)[:, : x.shape[1]]
    half_weight = 0.5 * steps_of(weight).amax(1, keepdim=True).expand(weight.shape)
    x, weight = x.abs().double(), weight.abs().double()
    return half_x @ weight.T + (x + half_x) @ half_weight.T + 3e-6 * x @ weight.T + 1e-30


@NEEDS_INTEGERS
@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(0, 30) | st.sampled_from([96, 97, 211]),
    inputs=st.integers(1, 200) | st.sampled_from([384, 385, 768]),
    outputs=st.integers(1, 40),
    outlier=st.sampled_from([1.0, 1e3, 1e30]),
)
def test_integer_products_are_as_near_as_their_steps_for_any_sizes_and_outliers(rows, inputs, outputs, outlier):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    x[:, inputs // 2] *= outlier
    weight[:, inputs // 3] *= min(outlier, 1e3)
    packed = pack_float_linear(weight, bias, is_exact=False)
    assert packed.steps is not None
    error = (float_linear(x, packed).double() - functional.linear(x.double(), weight.double(), bias.double())).abs()
    assert (error <= furthest(x, weight) + 1e-6).all()


@NEEDS_INTEGERS
@pytest.mark.parametrize("gelu", [False, True])
def test_integer_products_are_off_by_a_ten_thousandth_of_their_root_mean_square(gelu):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(50, 384), torch.randn(200, 384) / 384**0.5, torch.randn(200)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    exact = functional.gelu(exact) if gelu else exact
    error = float_linear(x, pack_float_linear(weight, bias, is_exact=False), gelu=gelu) - exact
    assert error.square().mean().sqrt() < 1e-4 * exact.square().mean().sqrt()


@NEEDS_INTEGERS
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("large", [1, 2, 3, 32, 64])
def test_integer_sums_stay_within_32_bits_where_all_products_add_up(sign, large):
    x = torch.full((7, 128), 1e-3)
    x[:, :large] = 3.0
    weight = sign * x[:1].repeat(17, 1)
    exact = functional.linear(x.double(), weight.double())
    result = float_linear(x, pack_float_linear(weight, torch.zeros(17), is_exact=False))
    torch.testing.assert_close(result.double(), exact, rtol=1e-3, atol=0)


@NEEDS_INTEGERS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_not_a_number_in_integer_products_and_spoils_no_other(bad):
    torch.manual_seed(0)
    x, packed = torch.randn(9, 150), pack_float_linear(torch.randn(20, 150), torch.zeros(20), is_exact=False)
    expected = float_linear(x, packed)
    x[4, 149] = bad
    result = float_linear(x, packed)
    assert result[4].isnan().all()
    kept = [row for row in range(9) if row != 4]
    torch.testing.assert_close(result[kept], expected[kept], rtol=0, atol=0)


@NEEDS_INTEGERS
def test_an_output_whose_weight_is_not_finite_is_not_a_number_in_integer_products():
    weight = torch.ones(3, 70)
    weight[0, 5], weight[1, 69] = float("nan"), float("inf")
    result = float_linear(torch.ones(2, 70), pack_float_linear(weight, torch.zeros(3), is_exact=False))
    assert result[:, :2].isnan().all()
    torch.testing.assert_close(result[:, 2], torch.full((2,), 70.0), rtol=1e-3, atol=0)


@NEEDS_INTEGERS
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, 1e-31])
def test_integer_products_of_nothing_are_the_bias(value):
    x, bias = torch.full((3, 100), value), torch.randn(5)
    for weight in (torch.randn(5, 100), torch.zeros(5, 100)):
        packed = pack_float_linear(weight, bias, is_exact=False)
        torch.testing.assert_close(float_linear(x, packed), bias.expand(3, 5), rtol=0, atol=0)


@NEEDS_INTEGERS
def test_integer_products_of_a_row_do_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    x, packed = torch.randn(211, 384), pack_float_linear(torch.randn(33, 384), torch.randn(33), is_exact=False)
    together = float_linear(x, packed, gelu=True)
    for row in range(0, 211, 7):
        torch.testing.assert_close(float_linear(x[row : row + 1], packed, gelu=True)[0], together[row], rtol=0, atol=0)


def test_weights_that_need_not_be_exact_are_rounded_only_where_that_is_faster():
    weight, bias = torch.randn(4, 8), torch.randn(4)
    assert pack_float_linear(weight, bias).steps is None
    assert pack_float_linear(weight, bias, is_exact=False, backend="torch").steps is None
    rounded = pack_float_linear(weight, bias, is_exact=False)
    assert (rounded.steps is not None) == (integer_products_absence() is None)
    assert (rounded.data.dtype == torch.int16) == (integer_products_absence() is None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 384), (7, 61), (133, 384)])
def test_add_norm_equals_float64(backend, rows, width):
    torch.manual_seed(0)
    x, residual = torch.randn(rows, width) * 5 + 3, torch.randn(rows, width)
    weight, bias = torch.randn(width), torch.randn(width)
    exact = functional.layer_norm((x + residual).double(), (width,), weight.double(), bias.double(), 1e-12)
    result = add_norm(x, residual, weight, bias, 1e-12, backend=backend)
    torch.testing.assert_close(result.double(), exact, atol=1e-5, rtol=0)


@NEEDS_NATIVE
@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 70), max_size=6), heads=st.integers(1, 3), dim=st.sampled_from([32, 64, 96]))
def test_self_attention_equals_the_definition_for_sequences_of_any_length(lengths, heads, dim):
    torch.manual_seed(0)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    qkv = torch.randn(sum(lengths), 3 * heads * dim)
    expected = self_attention_reference(qkv.double(), starts, heads)
    result = self_attention(qkv, starts, heads, backend="native")
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_self_attention_sees_its_own_sequence_alone(backend):
    torch.manual_seed(0)
    qkv = torch.randn(30, 3 * 2 * 32)
    qkv[:11] = float("nan")
    result = self_attention(qkv, torch.tensor([0, 11, 30]), 2, backend=backend)
    assert result[:11].isnan().all() and result[11:].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_self_attention_of_large_scores_is_finite(backend):
    qkv = torch.full((3, 3 * 32), 60.0)
    qkv[1:, 32:64] = -60.0
    torch.testing.assert_close(
        self_attention(qkv, torch.tensor([0, 3]), 1, backend=backend), torch.full((3, 32), 60.0), rtol=1e-6, atol=0
    )


def test_self_attention_of_heads_that_fill_no_panel_is_left_to_torch():
    qkv = torch.randn(5, 3 * 2 * 12)
    starts = torch.tensor([0, 2, 5])
    torch.testing.assert_close(self_attention(qkv, starts, 2), self_attention_reference(qkv, starts, 2))


@NEEDS_NATIVE
def test_native_self_attention_refuses_heads_that_fill_no_panel():
    with pytest.raises(RuntimeError, match="backend 'native' is absent: heads of 12 are no multiple of"):
        self_attention(torch.randn(5, 36), torch.tensor([0, 5]), 1, backend="native")


@pytest.mark.parametrize("starts", [[0, 4], [1, 5], [0, 7, 5], [], [0, 5.0]])
def test_self_attention_refuses_starts_that_do_not_cover_the_tokens(starts):
    with pytest.raises(ValueError, match=r"self_attention: qkv \(5, 96\)"):
        self_attention(torch.randn(5, 96), torch.tensor(starts), 1)


def test_shapes_and_dtypes_that_disagree_are_refused_with_both_sides():
    x, weight = torch.randn(3, 8), pack_float_linear(torch.randn(4, 8), torch.randn(4))
    for wrong in (x[:, :4], x.double(), torch.randn(8, 3).T):
        with pytest.raises(ValueError, match=r"float_linear: x .*weight \(4, 8\) float32"):
            float_linear(wrong, weight)
    with pytest.raises(ValueError, match=r"pack_float_linear: weight \(4, 8\) torch.float32, bias \(3,\)"):
        pack_float_linear(torch.randn(4, 8), torch.randn(3))
    with pytest.raises(ValueError, match=r"add_norm: \(3, 8\) torch.float32, \(2, 8\)"):
        add_norm(x, x[:2], torch.ones(8), torch.ones(8), 1e-5)
