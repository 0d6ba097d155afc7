"""What the tests of all operations share."""

from __future__ import annotations

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

from kernels.native import absence, bf16_products_absence
from kernels.triton_absence import triton_absence

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BACKENDS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(absence() is not None, reason=f"no native kernels: {absence()}")),
]
NEEDS_TRITON = pytest.mark.skipif(
    triton_absence("cpu") is not None, reason=f"no Triton kernels: {triton_absence('cpu')}"
)
WITH_TRITON = [*BACKENDS, pytest.param("triton", marks=NEEDS_TRITON)]
# Triton's interpreter does not compute in bfloat16; `python -m loadtest.gpu` checks that on a GPU.
WITH_TRITON_AND_DTYPE = [
    *(
        pytest.param(*backend.values, dtype, marks=backend.marks)
        if isinstance(backend, ParameterSet)
        else (backend, dtype)
        for backend in BACKENDS
        for dtype in DTYPES
    ),
    *(pytest.param("triton", dtype, marks=NEEDS_TRITON) for dtype in (torch.float32, torch.float16)),
]
# Backend and dtype of operations that CPUs have no native kernel for.
TORCH_AND_TRITON = [
    *(("torch", dtype) for dtype in DTYPES),
    *(pytest.param("triton", dtype, marks=NEEDS_TRITON) for dtype in (torch.float32, torch.float16)),
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
