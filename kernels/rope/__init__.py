"""Rotary position embedding. On the way to the cache it is part of `kv_write`, which calls this where torch runs."""

from __future__ import annotations

from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import DTYPES
from kernels.rope.reference import rope_reference


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, backend: Backend = "torch") -> Tensor:
    """Rotate each pair (i, i + D / 2) of a head's dimensions by its token's angle.

    Args:
        x: [T, H, D] queries or keys; float32, bfloat16 or float16.
        cos, sin: [T, D / 2] float32.
        backend: "torch" is the only one so far.
    Returns: [T, H, D] of x's dtype, computed in float32 and rounded once.
    Raises: ValueError when shapes or dtypes disagree.
    Source: RoFormer, arXiv:2104.09864, with the halves of GPT-NeoX.
    """
    if x.dim() != 3 or cos.shape != (x.shape[0], x.shape[2] // 2) or sin.shape != cos.shape or x.dtype not in DTYPES:
        raise ValueError(f"rope: x {tuple(x.shape)} {x.dtype}, cos {tuple(cos.shape)}, sin {tuple(sin.shape)}")
    if backend != "torch":
        raise RuntimeError(f"rope: backend {backend!r} is absent; it is part of kv_write there")
    choose_backend("rope", backend, x.device)
    return rope_reference(x, cos, sin)
