"""Attention of a prompt chunk on a CPU: many new tokens of one request over its blocks of 16 tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.chunk_attention.torch_op import chunk_attention_torch
from kernels.dispatch import Backend, choose_backend
from kernels.native import bf16_products_absence, function

BLOCK_TOKENS = 16
MAX_HEAD_DIM = 256


def chunk_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: NDArray[np.int32],
    context: int,
    *,
    scale: float,
    window: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """Causal attention of one request's last `n` tokens to all its `context` tokens in the cache.

    Args:
        query: [n, H, D] on a CPU; float32, bfloat16 or float16, contiguous.
        keys, values: [N, 16, KV heads, D] caches of query's dtype; H is a multiple of the KV heads.
        blocks: [ceil(context / 16)] int32, the request's, in order.
        context: tokens in the cache, the new ones included.
        scale: multiplies the scores, usually D ** -0.5.
        window: a token sees itself and the `window - 1` before it; 0 is no limit.
        backend: "auto" takes the native kernel for bfloat16 where the processor has AVX512-bf16 or AVX2 and D is a
            multiple of 32, torch otherwise.
    Returns: [n, H, D] of query's dtype. Weights are rounded to it before they meet the values, sums are float32.
    Raises: ValueError when shapes or dtypes disagree; RuntimeError when "native" was asked for and cannot be.
    Source: FlashAttention-2, arXiv:2307.08691.
    """
    tokens, heads, dim = query.shape
    kv_heads = keys.shape[2]
    if (
        keys.shape[1:] != (BLOCK_TOKENS, kv_heads, dim)
        or values.shape != keys.shape
        or keys.dtype != query.dtype
        or heads % kv_heads
        or not 0 < tokens <= context
        or blocks.shape != (-(-context // BLOCK_TOKENS),)
        or blocks.dtype != np.int32
    ):
        raise ValueError(
            f"chunk_attention: query {tuple(query.shape)} {query.dtype}, keys {tuple(keys.shape)} {keys.dtype}, "
            f"values {tuple(values.shape)}, {len(blocks)} blocks for {context} tokens"
        )
    missing = _why_not_native(query)
    if backend == "native" and missing is not None:
        raise RuntimeError(f"chunk_attention: backend 'native' is absent: {missing}")
    # Other formats are left to torch without a word: that is no missing kernel.
    if missing is not None or choose_backend("chunk_attention", backend, query.device) == "torch":
        return chunk_attention_torch(query, keys, values, blocks, context, scale, window)
    out = torch.empty_like(query)
    _native()(
        *(out.data_ptr(), query.data_ptr(), keys.data_ptr(), values.data_ptr(), blocks.ctypes.data),
        *(tokens, context, heads, kv_heads, dim, scale, window),
    )
    return out


def _why_not_native(query: Tensor) -> str | None:
    dim = query.shape[2]
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or dim % 32 or dim > MAX_HEAD_DIM:
        return f"it takes bfloat16 heads of 32 to {MAX_HEAD_DIM} dimensions on a CPU, not {dim} of {query.dtype}"
    return bf16_products_absence()


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_chunk_attention", "pppppiiiiifi")
