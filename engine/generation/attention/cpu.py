"""Attention on a CPU: one kernel for a few query tokens per request, another for prompt chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.generation.attention.base import FlatBatch, HeadNorms, PagedCache, Places
from engine.generation.decoder.spec import DecoderSpec
from engine.generation.sequence import BLOCK_TOKENS
from kernels.chunk_attention import chunk_attention
from kernels.decoder_forward import AttentionStep, ChunkRows
from kernels.paged_attention import PagedPlan, paged_attention, plan_paged

# More new tokens than this are a chunk: matrix products then beat going through the cache token by token.
MAX_SHORT_TOKENS = 8
# Sharers beyond the first, times the blocks they share, from which reading those once pays.
MIN_SHARED_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class _Plan:
    places: Places
    short: PagedPlan | None
    num_short_tokens: int
    chunks: tuple[ChunkRows, ...]


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
            blocks = np.array(table[: -(-context // BLOCK_TOKENS)], dtype=np.int32)
            chunks.append(ChunkRows(start, num_new, context, blocks))
            start += num_new
        return _Plan(self.cache.places(batch), short, num_short_tokens, tuple(chunks))

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """See Attention."""
        self.cache.copy_blocks(sources, targets)

    def native_step(self, plan: _Plan) -> AttentionStep:
        """See Attention."""
        return AttentionStep(
            *(plan.places.cos, plan.places.sin, plan.places.slots, self.cache.keys, self.cache.values),
            *(plan.short, plan.num_short_tokens, plan.chunks),
        )

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
            rows = slice(chunk.start, chunk.start + chunk.tokens)
            out[rows] = chunk_attention(
                query[rows],
                self.cache.keys[layer],
                self.cache.values[layer],
                chunk.table,
                chunk.context,
                scale=self._scale,
                window=window,
            )
        return out.flatten(1)
