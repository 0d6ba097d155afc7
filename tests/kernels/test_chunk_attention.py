"""Attention of a prompt chunk over scattered blocks, against float32."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, poison
from torch import Tensor

from kernels.chunk_attention import chunk_attention


def native_absence() -> str | None:
    cache = torch.zeros(1, 16, 1, 32).bfloat16()
    try:
        chunk_attention(torch.zeros(1, 1, 32).bfloat16(), cache, cache, [0], 1, scale=1.0, backend="native")
    except RuntimeError as error:
        return str(error)
    return None


NATIVE = pytest.param(
    "native",
    torch.bfloat16,
    marks=pytest.mark.skipif(native_absence() is not None, reason=native_absence() or "native"),
)


def case(tokens: int, context: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype):
    """Query, caches with NaN where nothing was written, blocks out of order, and the request's keys and values."""
    torch.manual_seed(tokens + context)
    num_blocks = -(-context // 16)
    blocks = torch.randperm(num_blocks + 3)[:num_blocks].tolist()
    keys, values = (torch.empty(num_blocks + 3, 16, kv_heads, dim, dtype=dtype) for _ in range(2))
    poison(keys, values)
    key, value = torch.randn(context, kv_heads, dim).to(dtype), torch.randn(context, kv_heads, dim).to(dtype)
    for position in range(context):
        keys[blocks[position // 16], position % 16] = key[position]
        values[blocks[position // 16], position % 16] = value[position]
    return torch.randn(tokens, heads, dim).to(dtype), keys, values, blocks, key, value


def exact_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(group, 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * scale
    age = torch.arange(len(key) - len(query), len(key))[:, None] - torch.arange(len(key))
    visible = (age >= 0) & (age < window) if window else age >= 0
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, float("-inf")).softmax(-1), value)


@pytest.mark.parametrize(("backend", "dtype"), [*(("torch", dtype) for dtype in DTYPES), NATIVE])
# Block and tile borders, a chunk at the start, in the middle and after a long prefix.
@pytest.mark.parametrize(("tokens", "context"), [(9, 9), (16, 64), (17, 65), (40, 200), (130, 130), (64, 600)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 32), (5, 1, 128), (8, 2, 96)])
@pytest.mark.parametrize("window", [0, 1, 70])
def test_chunk_attention_equals_float32(backend, dtype, tokens, context, heads, kv_heads, dim, window):
    query, keys, values, blocks, key, value = case(tokens, context, heads, kv_heads, dim, dtype)
    exact = exact_attention(query, key, value, dim**-0.5, window)
    result = chunk_attention(query, keys, values, blocks, context, scale=dim**-0.5, window=window, backend=backend)
    assert result.dtype == dtype and bool(result.isfinite().all())
    # Weights and results are rounded once each: two roundings of the largest value.
    allowed = 2 * torch.finfo(dtype).eps * exact.abs().max() + 1e-6
    assert (result.float() - exact).abs().max() <= allowed


def test_shapes_that_disagree_are_refused():
    query, keys, values, blocks, _, _ = case(9, 40, 4, 2, 32, torch.float32)
    with pytest.raises(ValueError, match="2 blocks for 40 tokens"):
        chunk_attention(query, keys, values, blocks[:2], 40, scale=1.0)
    with pytest.raises(ValueError, match="3 blocks for 8 tokens"):
        chunk_attention(query, keys, values, blocks, 8, scale=1.0)
    with pytest.raises(RuntimeError, match="it takes bfloat16 heads"):
        chunk_attention(query, keys, values, blocks, 40, scale=1.0, backend="native")
