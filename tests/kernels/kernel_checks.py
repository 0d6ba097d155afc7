"""What the tests of all operations share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.native import absence, bf16_products_absence

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(absence() is not None, reason=f"no native kernels: {absence()}")),
]
# Backend and dtype of the kernels that multiply bfloat16 in pairs.
NEEDS_BF16_PRODUCTS = pytest.mark.skipif(
    bf16_products_absence() is not None, reason=f"no native bfloat16 products: {bf16_products_absence()}"
)
TORCH_AND_NATIVE_BF16 = [
    *(("torch", dtype) for dtype in DTYPES),
    pytest.param("native", torch.bfloat16, marks=NEEDS_BF16_PRODUCTS),
]


def assert_earned(result: Tensor, exact: Tensor, eager: Tensor) -> None:
    """The error against float32 stays within twice that of the same operation in plain torch and its dtype."""
    assert bool(result.isfinite().all()), "an output was not written, or is not finite"
    error, allowed = (result.float() - exact).abs().max(), (eager.float() - exact).abs().max()
    assert error <= 2 * allowed + 1e-6 * exact.abs().max(), f"error {error:.3g}, twice eager is {2 * allowed:.3g}"


def poison(*tensors: Tensor) -> None:
    """Fill with NaN what an operation is to overwrite or not to read."""
    for tensor in tensors:
        tensor.fill_(float("nan"))
