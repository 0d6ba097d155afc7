"""Matrix products with packed weights, against float32."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import NEEDS_BF16_PRODUCTS, TORCH_AND_NATIVE_BF16, assert_earned
from torch.nn import functional

from kernels.linear import linear, pack_linear


@pytest.mark.parametrize(("backend", "dtype"), TORCH_AND_NATIVE_BF16)
# Every tile height, a remainder after whole tiles, and more than one chunk of rows.
@pytest.mark.parametrize("rows", [*range(1, 14), 29, 1700])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 64), (70, 66), (15, 576), (33, 10)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_equals_float32(backend, dtype, rows, outputs, inputs, has_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if has_bias else None
    exact = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    result = linear(x, pack_linear(weight, bias, backend=backend))
    assert result.shape == exact.shape and result.dtype == dtype
    assert_earned(result, exact, functional.linear(x, weight, bias))


@NEEDS_BF16_PRODUCTS
def test_a_row_is_the_same_up_to_rounding_alone_and_among_others():
    torch.manual_seed(0)
    x = torch.randn(12, 576).bfloat16()
    weight = pack_linear(torch.randn(64, 576).bfloat16(), backend="native")
    together = linear(x, weight)
    # Sums are taken in another order for other numbers of rows, so the last bit of bfloat16 may differ.
    for row in range(12):
        torch.testing.assert_close(linear(x[row : row + 1], weight)[0], together[row], rtol=2**-7, atol=2**-7)


def test_no_row_gives_no_row():
    assert linear(torch.zeros(0, 64).bfloat16(), pack_linear(torch.ones(32, 64).bfloat16())).shape == (0, 32)


def test_what_does_not_fit_is_refused():
    weight = pack_linear(torch.ones(32, 64).bfloat16())
    with pytest.raises(ValueError, match=r"linear: x \(3, 63\)"):
        linear(torch.zeros(3, 63).bfloat16(), weight)
    with pytest.raises(ValueError, match=r"linear: x \(3, 64\) torch\.float32"):
        linear(torch.zeros(3, 64), weight)
    with pytest.raises(ValueError, match="contiguous: False"):
        linear(torch.zeros(64, 3).bfloat16().T, weight)
    with pytest.raises(ValueError, match="pack_linear: weight"):
        pack_linear(torch.ones(32, 64), torch.ones(31))
    with pytest.raises(RuntimeError, match=r"it multiplies bfloat16 on a CPU, this weight is torch\.float32"):
        pack_linear(torch.ones(32, 64), backend="native")
