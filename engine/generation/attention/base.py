"""What the decoder may expect of attention, and what every device's version has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.generation.decoder.spec import DecoderSpec
from engine.generation.sequence import BLOCK_TOKENS
from kernels.decoder_forward import AttentionStep
from kernels.kv_write import kv_write


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norm of each query and key head before rotation (Qwen3). Weights [D]."""

    query: Tensor
    key: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """The requests of one step. Request i brings `num_new[i]` tokens, the last of its `contexts[i]` tokens so far.

    `block_tables[i]` holds at least ceil(contexts[i] / BLOCK_TOKENS) KV blocks. `num_padding` rows at the end of the
    flat batch belong to nobody.
    """

    num_new: Sequence[int]
    contexts: Sequence[int]
    block_tables: Sequence[Sequence[int]]
    num_padding: int = 0


class Attention(Protocol):
    """Keeps the keys and values of all blocks, and attends to them."""

    def plan(self, batch: FlatBatch) -> Any:
        """What all layers of one step share."""

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy KV blocks of all layers, as if all at once."""

    def run(self, layer: int, qkv: Tensor, norms: HeadNorms | None, plan: Any) -> Tensor:
        """Rotate, store keys and values, attend. `qkv` [T, (H + 2 * KV heads) * D] to [T, H * D]; padding gives 0."""

    def native_step(self, plan: Any) -> AttentionStep | None:
        """What a forward in one native call needs to do as much itself; None where there is no such call."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where each token of a flat batch stands. `cos`, `sin` [T, D / 2] float32; `slots` [T] int64, -1 for padding."""

    cos: Tensor
    sin: Tensor
    slots: Tensor


class PagedCache:
    """Keys and values of every layer in blocks of BLOCK_TOKENS tokens, and the rotation tables."""

    def __init__(
        self, spec: DecoderSpec, *, num_blocks: int, max_model_len: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (spec.num_layers, num_blocks, BLOCK_TOKENS, spec.num_kv_heads, spec.head_dim)
        # Not filled, so memory is taken as blocks come into use.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.spec = spec
        self.device = device
        # In float32 and on the CPU on every device: positions beyond 2**11 lose their last bits in half precision.
        angles = torch.outer(torch.arange(max_model_len).float(), spec.rope.frequencies(spec.head_dim))
        self._cos, self._sin = angles.cos().to(device), angles.sin().to(device)

    def places(self, batch: FlatBatch) -> Places:
        """Positions and slots of the flat batch's tokens."""
        positions: list[int] = []
        slots: list[int] = []
        for num_new, context, table in zip(batch.num_new, batch.contexts, batch.block_tables, strict=True):
            for position in range(context - num_new, context):
                positions.append(position)
                slots.append(table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS)
        positions += [0] * batch.num_padding
        slots += [-1] * batch.num_padding
        index = torch.tensor(positions, device=self.device)
        return self.places_at(index, torch.tensor(slots, device=self.device))

    def places_at(self, positions: Tensor, slots: Tensor) -> Places:
        """Those of tokens at `positions` [T], none of them negative, that go to `slots` [T]; both on the device."""
        return Places(self._cos.index_select(0, positions), self._sin.index_select(0, positions), slots.long())

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """See Attention."""
        source = torch.tensor(sources, dtype=torch.long, device=self.device)
        target = torch.tensor(targets, dtype=torch.long, device=self.device)
        for tensor in (self.keys, self.values):
            for layer in tensor:  # one at a time, so that what is copied fits a cache
                layer[target] = layer[source]

    def write(self, layer: int, qkv: Tensor, norms: HeadNorms | None, places: Places) -> Tensor:
        """Store keys and values of the new tokens; returns the rotated queries [T, H, D]."""
        return kv_write(
            qkv,
            places.cos,
            places.sin,
            places.slots,
            self.keys[layer],
            self.values[layer],
            num_heads=self.spec.num_heads,
            q_norm=norms.query if norms else None,
            k_norm=norms.key if norms else None,
            eps=norms.eps if norms else 0.0,
        )
