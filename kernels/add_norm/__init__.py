"""The end of an encoder's block: the residual added, then layer norm."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.add_norm.reference import add_norm_reference
from kernels.dispatch import Backend, choose_backend
from kernels.native import function


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: Backend = "auto"
) -> Tensor:
    """layer_norm(x + residual) * weight + bias.

    Args:
        x: [T, M] float32, contiguous; so is `residual`.
        weight: [M] float32; so is `bias`.
        eps: added to the variance.
        backend: "auto" takes the native kernel on a CPU and torch otherwise.
    Returns: [T, M] float32.
    Raises: ValueError when shapes or dtypes disagree, or a tensor is not contiguous.
    Source: the post-norm residual of the Transformer, arXiv:1706.03762; layer norm, arXiv:1607.06450.
    """
    tensors = (x, residual, weight, bias)
    is_float = all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
    if x.dim() != 2 or x.shape != residual.shape or not weight.shape == bias.shape == x.shape[1:] or not is_float:
        found = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)
        raise ValueError(f"add_norm: {found}; it takes two [T, M] and two [M], contiguous float32")
    if choose_backend("add_norm", backend, x.device) == "torch":
        return add_norm_reference(x, residual, weight, bias, eps)
    out = torch.empty_like(x)
    _native()(*(out.data_ptr(), *(tensor.data_ptr() for tensor in tensors)), *x.shape, eps)
    return out


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_add_norm", "pppppiif")
