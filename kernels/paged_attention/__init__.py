"""Attention over keys and values in blocks of 16 tokens, for decodes, drafts and prompt chunks alike."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import DTYPES, function
from kernels.paged_attention.plan import BLOCK_TOKENS, FixedPlan, PagedPlan, decode_rows, plan_paged
from kernels.paged_attention.reference import paged_attention_reference
from kernels.paged_attention.torch_op import paged_attention_fixed, paged_attention_torch

__all__ = ["FixedPlan", "PagedPlan", "decode_rows", "merge_attention", "paged_attention", "plan_paged"]

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
    lse: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Causal attention of each request's new tokens to all its tokens in the cache, themselves included.

    Args:
        query: [T, H, D], the requests of `plan` one after another; float32, bfloat16 or float16, contiguous.
        keys, values: [N, 16, KV heads, D] caches of query's dtype; H is a multiple of the KV heads.
        plan: `plan_paged` of the step, shared by its layers; or a FixedPlan, which the native kernel does not take.
        scale: multiplies the scores, usually D ** -0.5.
        window: a token sees itself and the `window - 1` before it; 0 is no limit.
        lse: [T, H] float32, overwritten with the logarithm of the sum of each row's exponentiated scores, by which
            `merge_attention` joins parts; minus infinity for a token of nobody. The native kernel does not give it.
        backend: "auto" takes the native kernel on a CPU, made for a few new tokens per request, Triton's on a GPU,
            and torch where there is none. Blocks that the plan shares are read once by the native and Triton's.
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
        or (lse is not None and (lse.shape, lse.dtype) != (query.shape[:2], torch.float32))
    ):
        raise ValueError(
            f"paged_attention: query {tuple(query.shape)} {query.dtype}, keys {tuple(keys.shape)} {keys.dtype}, "
            f"values {tuple(values.shape)}, lse {None if lse is None else (tuple(lse.shape), lse.dtype)}; "
            f"heads up to {MAX_HEAD_DIM} wide, up to {MAX_GROUP} for a KV head"
        )
    if isinstance(plan, FixedPlan):
        return _run_fixed(query, keys, values, plan, scale, window, lse, backend)
    if lse is not None and backend == "native":
        raise RuntimeError(
            "paged_attention: backend 'native' is absent where lse is asked for; there is: torch, triton"
        )
    name = "paged_attention" if lse is None else "paged_attention with lse"
    chosen = choose_backend(name, backend, query.device, has_triton=True, has_native=lse is None)
    if chosen == "torch" and lse is not None:  # torch's attention does not tell it
        return paged_attention_reference(query, keys, values, plan, scale=scale, window=window, lse=lse).to(query.dtype)
    if chosen == "torch":
        return paged_attention_torch(query, keys, values, plan, scale=scale, window=window)
    if chosen == "triton":
        from kernels.paged_attention.triton_op import paged_attention_triton

        return paged_attention_triton(query, keys, values, plan, scale=scale, window=window, lse=lse)
    out = torch.empty_like(query)
    _native()(
        *(out.data_ptr(), query.data_ptr(), keys.data_ptr(), values.data_ptr()),
        *plan.pointers,
        *(len(plan.items), query.shape[0], plan.tables.shape[1], heads, kv_heads, dim, scale, window),
        DTYPES[query.dtype],
    )
    return out


def merge_attention(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to all keys from attention to parts of them, of which no two share a key.

    Args:
        outs: [P, T, H, D] results of each part; any float dtype. Those of a part without keys are not read.
        lses: [P, T, H] float32 as `paged_attention` gives them; minus infinity for a part without keys.
    Returns: [T, H, D] of outs' dtype, merged in float32, and its own lse [T, H]; 0 and minus infinity without any key.
    Raises: ValueError when shapes disagree.
    Source: the merging of FlashDecoding; attention states of FlashInfer, arXiv:2501.01005.
    """
    if outs.dim() != 4 or lses.shape != outs.shape[:3] or lses.dtype != torch.float32:
        raise ValueError(f"merge_attention: outs {tuple(outs.shape)}, lses {tuple(lses.shape)} {lses.dtype}")
    lse = lses.logsumexp(0)
    shares = (lses - lse.masked_fill(lse == float("-inf"), 0.0)).exp()[..., None]  # [P, T, H, 1]
    merged = (outs.float().masked_fill(shares == 0, 0.0) * shares).sum(0)
    return merged.to(outs.dtype), lse


def _run_fixed(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    plan: FixedPlan,
    scale: float,
    window: int,
    lse: Tensor | None,
    backend: Backend,
) -> Tensor:
    if backend == "native":
        raise RuntimeError("paged_attention: backend 'native' is absent for a FixedPlan; there is: auto, torch, triton")
    known = "torch" if backend == "auto" and query.device.type == "cpu" else backend
    if choose_backend("paged_attention", known, query.device, has_triton=True) == "torch":
        if lse is not None:
            raise RuntimeError(
                "paged_attention: backend 'torch' is absent where a FixedPlan's lse is asked for; there is: triton"
            )
        return paged_attention_fixed(query, keys, values, plan, scale=scale, window=window)
    from kernels.paged_attention.triton_op import paged_attention_triton

    return paged_attention_triton(query, keys, values, plan, scale=scale, window=window, lse=lse)


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_paged_attention", "p" * 13 + "iiiiiifii")
