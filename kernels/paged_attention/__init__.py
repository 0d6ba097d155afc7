"""Attention over keys and values in blocks of 16 tokens, for decodes, drafts and prompt chunks alike."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import DTYPES, function
from kernels.paged_attention.plan import BLOCK_TOKENS, FixedPlan, PagedPlan, decode_rows, plan_paged
from kernels.paged_attention.torch_op import paged_attention_fixed, paged_attention_torch

__all__ = ["FixedPlan", "PagedPlan", "decode_rows", "paged_attention", "plan_paged"]

MAX_HEAD_DIM = 256
MAX_GROUP = 64


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: PagedPlan | FixedPlan,
    *,
    scale: float,
    window: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """Causal attention of each request's new tokens to all its tokens in the cache, themselves included.

    Args:
        query: [T, H, D], the requests of `plan` one after another; float32, bfloat16 or float16, contiguous.
        keys, values: [N, 16, KV heads, D] caches of query's dtype; H is a multiple of the KV heads.
        plan: `plan_paged` of the step, shared by its layers; or a FixedPlan, which the native kernel does not take.
        scale: multiplies the scores, usually D ** -0.5.
        window: a token sees itself and the `window - 1` before it; 0 is no limit.
        backend: "auto" takes the native kernel on a CPU, made for a few new tokens per request, Triton's on a GPU,
            and torch where there is none.
    Returns: [T, H, D] of query's dtype, accumulated in float32.
    Raises: ValueError when shapes or dtypes disagree.
    Source: PagedAttention, arXiv:2309.06180; split KV and merging: FlashDecoding; shared blocks read once: Hydragen,
        arXiv:2402.05099.
    """
    heads, dim = query.shape[1:]
    kv_heads = keys.shape[2]
    if (
        keys.shape[1:] != (BLOCK_TOKENS, kv_heads, dim)
        or values.shape != keys.shape
        or keys.dtype != query.dtype
        or query.dtype not in DTYPES
        or heads % kv_heads
        or dim > MAX_HEAD_DIM
        or heads > MAX_GROUP * kv_heads
    ):
        raise ValueError(
            f"paged_attention: query {tuple(query.shape)} {query.dtype}, keys {tuple(keys.shape)} {keys.dtype}, "
            f"values {tuple(values.shape)}; heads up to {MAX_HEAD_DIM} wide, up to {MAX_GROUP} for a KV head"
        )
    if isinstance(plan, FixedPlan):
        return _run_fixed(query, keys, values, plan, scale, window, backend)
    chosen = choose_backend("paged_attention", backend, query.device, has_triton=True)
    if chosen == "torch":
        return paged_attention_torch(query, keys, values, plan, scale=scale, window=window)
    if chosen == "triton":
        from kernels.paged_attention.triton_op import paged_attention_triton

        return paged_attention_triton(query, keys, values, plan, scale=scale, window=window)
    out = torch.empty_like(query)
    _native()(
        *(out.data_ptr(), query.data_ptr(), keys.data_ptr(), values.data_ptr()),
        *plan.pointers,
        *(len(plan.items), query.shape[0], plan.tables.shape[1], heads, kv_heads, dim, scale, window),
        DTYPES[query.dtype],
    )
    return out


def _run_fixed(
    query: Tensor, keys: Tensor, values: Tensor, plan: FixedPlan, scale: float, window: int, backend: Backend
) -> Tensor:
    if backend == "native":
        raise RuntimeError("paged_attention: backend 'native' is absent for a FixedPlan; there is: auto, torch, triton")
    known = "torch" if backend == "auto" and query.device.type == "cpu" else backend
    if choose_backend("paged_attention", known, query.device, has_triton=True) == "torch":
        return paged_attention_fixed(query, keys, values, plan, scale=scale, window=window)
    from kernels.paged_attention.triton_op import paged_attention_triton

    return paged_attention_triton(query, keys, values, plan, scale=scale, window=window)


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_paged_attention", "p" * 13 + "iiiiiifii")
