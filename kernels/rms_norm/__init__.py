"""RMS norm, with the residual addition before it in the same pass over memory."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import DTYPES, function
from kernels.rms_norm.reference import rms_norm_reference


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """weight * x / sqrt(mean(x ** 2) + eps), of `residual + x` where there is a residual.

    Args:
        x: [T, M]; float32, bfloat16 or float16, contiguous.
        weight: [M], dtype and device of x.
        eps: added to the mean square.
        residual: [T, M] like x; `x` is added to it in place, rounded to its dtype.
        backend: "auto" takes the native kernel on a CPU, Triton's on a GPU, and torch where there is none.
    Returns: [T, M] of x's dtype. The normalised value is rounded before it is multiplied by the weight.
    Raises: ValueError when shapes or dtypes disagree.
    Source: arXiv:1910.07467.
    """
    if x.dim() != 2 or weight.shape != x.shape[1:] or weight.dtype != x.dtype or x.dtype not in DTYPES:
        raise ValueError(f"rms_norm: x {tuple(x.shape)} {x.dtype} and weight {tuple(weight.shape)} {weight.dtype}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(f"rms_norm: x {tuple(x.shape)} {x.dtype}, residual {tuple(residual.shape)} {residual.dtype}")
    chosen = choose_backend("rms_norm", backend, x.device, has_triton=True)
    if chosen == "torch":
        return rms_norm_reference(x, weight, eps, residual)
    if chosen == "triton":
        from kernels.rms_norm.triton_op import rms_norm_triton

        return rms_norm_triton(x, weight, eps, residual)
    out = torch.empty_like(x)
    stream = None if residual is None else residual.data_ptr()
    _native()(out.data_ptr(), x.data_ptr(), stream, weight.data_ptr(), x.shape[0], x.shape[1], eps, DTYPES[x.dtype])
    return out


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_rms_norm", "ppppiifi")
