"""Attention on a GPU: one paged call for decodes and prompt chunks together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from engine.generation.attention.base import FlatBatch, HeadNorms, PagedCache, Places
from engine.generation.decoder.spec import DecoderSpec
from kernels.paged_attention import FixedPlan, PagedPlan, paged_attention, plan_paged


@dataclass(frozen=True, slots=True)
class _Plan:
    places: Places
    paged: PagedPlan | FixedPlan
    num_tokens: int


class GpuAttention:
    """An Attention. It also runs on a CPU, where tests compare it with the CPU's own."""

    def __init__(
        self, spec: DecoderSpec, *, num_blocks: int, max_model_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._cache = PagedCache(spec, num_blocks=num_blocks, max_model_len=max_model_len, dtype=dtype, device=device)
        self._spec = spec

    def plan(self, batch: FlatBatch) -> _Plan:
        """See Attention."""
        paged = plan_paged(batch.num_new, batch.contexts, batch.block_tables, device=self._cache.device)
        return _Plan(self._cache.places(batch), paged, sum(batch.num_new))

    def fixed_plan(self, fixed: FixedPlan, slots: Tensor) -> _Plan:
        """A plan whose numbers lie on the device: `slots` [T] int32, where keys and values go, -1 for nowhere."""
        return _Plan(self._cache.places_at(fixed.positions.clamp(min=0), slots), fixed, len(slots))

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """See Attention."""
        self._cache.copy_blocks(sources, targets)

    def native_step(self, plan: _Plan) -> None:
        """See Attention."""

    def run(self, layer: int, qkv: Tensor, norms: HeadNorms | None, plan: _Plan) -> Tensor:
        """See Attention."""
        query = self._cache.write(layer, qkv, norms, plan.places)
        attended = paged_attention(
            query[: plan.num_tokens],
            self._cache.keys[layer],
            self._cache.values[layer],
            plan.paged,
            scale=self._spec.head_dim**-0.5,
            window=self._spec.windows[layer],
            # Named so that tests on a CPU take the same path as a GPU without Triton.
            backend="auto" if query.is_cuda else "torch",
        )
        num_padding = len(query) - plan.num_tokens
        return functional.pad(attended, (0, 0, 0, 0, 0, num_padding)).flatten(1) if num_padding else attended.flatten(1)
