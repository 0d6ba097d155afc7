"""An adapter for several ranks: each one's part laid out for its slots, in one piece that can be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.generation.adapters.files import AdapterWeights
from engine.generation.adapters.store import AdapterStore, Fused, PackedAdapter
from engine.generation.parallel.messages import AdapterPlace
from engine.generation.parallel.split import Part, adapter_part
from kernels.lora_add import LoraSlots


@dataclass(frozen=True, slots=True)
class SplitAdapter(PackedAdapter):
    """The first rank's part, and those of the `others` as `flat` makes them."""

    others: tuple[Tensor, ...] = ()


class AdapterSplitter:
    """Lays out an adapter for all ranks. `store` is the first one's."""

    def __init__(self, store: AdapterStore, size: int) -> None:
        self._store = store
        self._size = size

    def pack(self, weights: AdapterWeights) -> SplitAdapter:
        """Any thread."""
        first, *others = (self._store.pack(adapter_part(weights, Part(rank, self._size))) for rank in range(self._size))
        return SplitAdapter(first.digest, first.rank, first.linears, tuple(flat(each.linears) for each in others))


def flat(linears: Mapping[tuple[int, Fused], LoraSlots]) -> Tensor:
    """A and B of all linears one after another."""
    return torch.cat([tensor.flatten() for slots in linears.values() for tensor in (slots.a, slots.b)])


def empty_adapter(store: AdapterStore, place: AdapterPlace) -> PackedAdapter:
    """What an adapter for `place` is laid out in on a rank with this store."""
    return PackedAdapter("", place.rank, {key: store.empty_linear(key[1], place.rank) for key in place.linears})


def fill(adapter: PackedAdapter, content: Tensor) -> None:
    """Write what `flat` made into an empty one."""
    tensors = [tensor for slots in adapter.linears.values() for tensor in (slots.a, slots.b)]
    parts = torch.split(content, [each.numel() for each in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def num_elements(adapter: PackedAdapter) -> int:
    """Of what `flat` would make."""
    return sum(slots.a.numel() + slots.b.numel() for slots in adapter.linears.values())
