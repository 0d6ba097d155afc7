"""Attention of a prompt chunk over scattered blocks, against float32."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import TORCH_AND_NATIVE_BF16, poison

from kernels.chunk_attention import chunk_attention
from kernels.paged_attention import plan_paged
from kernels.paged_attention.reference import paged_attention_reference


def case(tokens: int, context: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype):
    """Query, caches with NaN where nothing was written, and blocks out of order."""
    torch.manual_seed(tokens + context)
    num_blocks = -(-context // 16)
    blocks = torch.randperm(num_blocks + 3)[:num_blocks].to(torch.int32).numpy()
    keys, values = (torch.empty(num_blocks + 3, 16, kv_heads, dim, dtype=dtype) for _ in range(2))
    poison(keys, values)
    key, value = torch.randn(context, kv_heads, dim).to(dtype), torch.randn(context, kv_heads, dim).to(dtype)
    for position in range(context):
        keys[blocks[position // 16], position % 16] = key[position]
        values[blocks[position // 16], position % 16] = value[position]
    return torch.randn(tokens, heads, dim).to(dtype), keys, values, blocks


@pytest.mark.parametrize(("backend", "dtype"), TORCH_AND_NATIVE_BF16)
# Block and tile borders, a chunk at the start, in the middle and after a long prefix.
@pytest.mark.parametrize(("tokens", "context"), [(9, 9), (16, 64), (17, 65), (40, 200), (130, 130), (64, 600)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (5, 1, 128), (8, 2, 96)])
@pytest.mark.parametrize("window", [0, 1, 70])
def test_chunk_attention_equals_float32(backend, dtype, tokens, context, heads, kv_heads, dim, window):
    query, keys, values, blocks = case(tokens, context, heads, kv_heads, dim, dtype)
    plan = plan_paged([tokens], [context], [blocks], device=torch.device("cpu"))
    exact = paged_attention_reference(query, keys, values, plan, scale=dim**-0.5, window=window)
    result = chunk_attention(query, keys, values, blocks, context, scale=dim**-0.5, window=window, backend=backend)
    assert result.dtype == dtype and bool(result.isfinite().all())
    # Weights and results are rounded once each: two roundings of the largest value.
    allowed = 2 * torch.finfo(dtype).eps * exact.abs().max() + 1e-6
    assert (result.float() - exact).abs().max() <= allowed


def test_shapes_that_disagree_are_refused():
    query, keys, values, blocks = case(9, 40, 4, 2, 32, torch.float32)
    with pytest.raises(ValueError, match="2 blocks for 40 tokens"):
        chunk_attention(query, keys, values, blocks[:2], 40, scale=1.0)
    with pytest.raises(ValueError, match="3 blocks for 8 tokens"):
        chunk_attention(query, keys, values, blocks, 8, scale=1.0)
    with pytest.raises(RuntimeError, match="it takes bfloat16 heads"):
        chunk_attention(query, keys, values, blocks, 40, scale=1.0, backend="native")
