"""From projected queries, keys and values to rotated queries and a filled cache."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.kv_write.reference import kv_write_reference
from kernels.native import DTYPES, function

MAX_HEAD_DIM = 256


def kv_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    backend: Backend = "auto",
) -> Tensor:
    """Norm (where weights are given) and rotate queries and keys; scatter keys and values to their slots.

    Args:
        qkv: [T, (H + 2 * KV heads) * D] queries, keys, values; float32, bfloat16 or float16, contiguous.
        cos, sin: [T, D / 2] float32, the angle of each token's position.
        slots: [T] int64, block * 16 + offset; -1 is not stored.
        keys, values: [N, 16, KV heads, D] caches of qkv's dtype, written in place.
        num_heads: H, query heads.
        q_norm, k_norm: [D] weights of an RMS norm of each query and key head (Qwen3), both or neither.
        eps: of that norm.
        backend: "auto" takes the native kernel on a CPU, Triton's on a GPU, and torch where there is none.
    Returns: [T, H, D] rotated queries.
    Raises: ValueError when shapes or dtypes disagree.
    """
    tokens, (kv_heads, dim) = qkv.shape[0], keys.shape[2:]
    if (
        qkv.shape != (tokens, (num_heads + 2 * kv_heads) * dim)
        or keys.dtype != qkv.dtype
        or values.shape != keys.shape
        or qkv.dtype not in DTYPES
        or cos.shape != (tokens, dim // 2)
        or slots.shape != (tokens,)
        or dim > MAX_HEAD_DIM
        or (q_norm is None) != (k_norm is None)
    ):
        raise ValueError(
            f"kv_write: qkv {tuple(qkv.shape)} {qkv.dtype}, keys {tuple(keys.shape)} {keys.dtype}, "
            f"values {tuple(values.shape)}, cos {tuple(cos.shape)}, slots {tuple(slots.shape)}, {num_heads} heads "
            f"of at most {MAX_HEAD_DIM} dimensions, norms both or neither"
        )
    chosen = choose_backend("kv_write", backend, qkv.device, has_triton=True)
    if chosen == "torch":
        return kv_write_reference(qkv, cos, sin, slots, keys, values, num_heads, q_norm, k_norm, eps)
    if chosen == "triton":
        from kernels.kv_write.triton_op import kv_write_triton

        return kv_write_triton(qkv, cos, sin, slots, keys, values, num_heads, q_norm, k_norm, eps)
    query = torch.empty((tokens, num_heads, dim), dtype=qkv.dtype)
    _native()(
        *(query.data_ptr(), qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), slots.data_ptr()),
        *(keys.data_ptr(), values.data_ptr()),
        *(None if norm is None else norm.data_ptr() for norm in (q_norm, k_norm)),
        *(eps, tokens, num_heads, kv_heads, dim, DTYPES[qkv.dtype]),
    )
    return query


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_kv_write", "pppppppppfiiiii")
