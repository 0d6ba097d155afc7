"""Attention on a CPU: the native kernel for a few query tokens per request, torch's flash attention for chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.generation.attention.base import FlatBatch, HeadNorms, PagedCache, Places
from engine.generation.decoder.spec import DecoderSpec
from engine.generation.sequence import BLOCK_TOKENS
from kernels.paged_attention import PagedPlan, paged_attention, plan_paged

# More new tokens than this are a chunk: matrix products then beat going through the cache token by token.
MAX_SHORT_TOKENS = 8
# Sharers beyond the first, times the blocks they share, from which reading those once pays.
MIN_SHARED_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A request with many new tokens: rows [start, stop) of the flat batch, after `num_before` tokens in the cache."""

    start: int
    stop: int
    num_before: int
    blocks: slice | Tensor  # of the cache, in order; a slice is read without a copy


@dataclass(frozen=True, slots=True)
class _Plan:
    places: Places
    short: PagedPlan | None
    num_short_tokens: int
    chunks: tuple[_Chunk, ...]


class CpuAttention:
    """An Attention. Requests with few new tokens must come first in the flat batch."""

    def __init__(
        self, spec: DecoderSpec, *, num_blocks: int, max_model_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.cache = PagedCache(spec, num_blocks=num_blocks, max_model_len=max_model_len, dtype=dtype, device=device)
        self._spec = spec
        self._scale = spec.head_dim**-0.5

    def plan(self, batch: FlatBatch) -> _Plan:
        """See Attention."""
        num_short = next((i for i, n in enumerate(batch.num_new) if n > MAX_SHORT_TOKENS), len(batch.num_new))
        short = None
        if num_short:
            short = plan_paged(
                batch.num_new[:num_short],
                batch.contexts[:num_short],
                batch.block_tables[:num_short],
                device=self.cache.device,
                min_shared_blocks=MIN_SHARED_BLOCKS,
            )
        num_short_tokens = start = sum(batch.num_new[:num_short])
        chunks = []
        for num_new, context, table in list(zip(batch.num_new, batch.contexts, batch.block_tables, strict=True))[
            num_short:
        ]:
            num_blocks = -(-context // BLOCK_TOKENS)
            chunks.append(_Chunk(start, start + num_new, context - num_new, _as_slice(table[:num_blocks])))
            start += num_new
        return _Plan(self.cache.places(batch), short, num_short_tokens, tuple(chunks))

    def run(self, layer: int, qkv: Tensor, norms: HeadNorms | None, plan: _Plan) -> Tensor:
        """See Attention."""
        query = self.cache.write(layer, qkv, norms, plan.places)
        window = self._spec.windows[layer]
        short = None
        if plan.short is not None:
            short = paged_attention(
                query[: plan.num_short_tokens],
                self.cache.keys[layer],
                self.cache.values[layer],
                plan.short,
                scale=self._scale,
                window=window,
            )
            if plan.num_short_tokens == len(query):
                return short.flatten(1)
        out = torch.zeros_like(query)
        if short is not None:
            out[: plan.num_short_tokens] = short
        for chunk in plan.chunks:
            keys = _gather(self.cache.keys[layer], chunk)
            values = _gather(self.cache.values[layer], chunk)
            part = query[chunk.start : chunk.stop].transpose(0, 1)[None]  # [1, H, n, D]
            attended = self._attend(part, keys, values, chunk.num_before, window)
            out[chunk.start : chunk.stop] = attended[0].transpose(0, 1)
        return out.flatten(1)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, num_before: int, window: int) -> Tensor:
        """[1, H, n, D] over [1, KV heads, L, D], causal at the end of L."""
        length = keys.shape[2]
        if 0 < window < length:
            mask = _window_mask(query.shape[2], length, window)
            return functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, scale=self._scale, enable_gqa=True
            )
        own, own_lse = _flash(query, keys[:, :, num_before:], values[:, :, num_before:], True, self._scale)
        if num_before == 0:
            return own
        # Two calls without a mask and a merge are exact, and cheaper than one call with a mask.
        before, before_lse = _flash(query, keys[:, :, :num_before], values[:, :, :num_before], False, self._scale)
        weight = torch.sigmoid(before_lse - own_lse).unsqueeze(-1)  # softmax over the two parts
        return torch.lerp(own.float(), before.float(), weight).to(own.dtype)


def _flash(query: Tensor, keys: Tensor, values: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output [1, H, n, D] and log-sum-exp [1, H, n] float32. Grouped query heads and strided views are fine."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, is_causal, scale=scale
    )
    return output, lse.float()


def _gather(cache: Tensor, chunk: _Chunk) -> Tensor:
    """One request's keys or values as [1, KV heads, L, D] (strided)."""
    blocks = cache[chunk.blocks]  # [n, BLOCK_TOKENS, KV heads, D]
    length = chunk.num_before + chunk.stop - chunk.start
    return blocks.flatten(0, 1)[:length].transpose(0, 1)[None]


def _as_slice(blocks: Sequence[int]) -> slice | Tensor:
    first, last = blocks[0], blocks[-1]
    if last - first == len(blocks) - 1 and list(blocks) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return torch.tensor(blocks)


def _window_mask(num_new: int, length: int, window: int) -> Tensor:
    """[n, L] bool: key j is visible to the query at position i if j <= i and i - j < window."""
    query = torch.arange(length - num_new, length)[:, None]
    key = torch.arange(length)[None]
    return (key <= query) & (query - key < window)
