"""The gated activation of Llama's MLP."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import DTYPES, function
from kernels.silu_mul.reference import silu_mul_reference


def silu_mul(gate_up: Tensor, *, backend: Backend = "auto") -> Tensor:
    """silu(gate) * up.

    Args:
        gate_up: [T, 2 * I], gate in the first half; float32, bfloat16 or float16, contiguous.
        backend: "auto" takes the native kernel on a CPU, Triton's on a GPU, and torch where there is none.
    Returns: [T, I] of the same dtype; silu is rounded before the product.
    Raises: ValueError for another shape or dtype.
    Source: SwiGLU, arXiv:2002.05202.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or gate_up.dtype not in DTYPES:
        raise ValueError(f"silu_mul: gate_up {tuple(gate_up.shape)} {gate_up.dtype}; it takes [T, 2 * I] floats")
    chosen = choose_backend("silu_mul", backend, gate_up.device, has_triton=True)
    if chosen == "torch":
        return silu_mul_reference(gate_up)
    if chosen == "triton":
        from kernels.silu_mul.triton_op import silu_mul_triton

        return silu_mul_triton(gate_up)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype)
    _native()(out.data_ptr(), gate_up.data_ptr(), rows, width, DTYPES[gate_up.dtype])
    return out


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_silu_mul", "ppiii")
