"""The adapters on the device: A and B of every linear by slot, and what one step uses of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.generation.adapters.files import AdapterWeights, target_shapes
from engine.generation.decoder.spec import DecoderSpec
from kernels.dispatch import Backend
from kernels.lora_add import (
    LoraPlan,
    LoraSlots,
    clear_slot,
    copy_slot,
    empty_slots,
    fixed_lora,
    pack_lora,
    padded_rank,
    plan_lora,
)

Fused = Literal["qkv", "output", "gate_up", "down"]
# The decoder's linears, and the targets that each computes at once.
FUSED: dict[Fused, tuple[str, ...]] = {
    "qkv": ("q", "k", "v"),
    "output": ("o",),
    "gate_up": ("gate", "up"),
    "down": ("down",),
}


@dataclass(slots=True)
class LayerSlots:
    """One layer's linears; None where no adapter that was loaded changes that linear."""

    qkv: LoraSlots | None = None
    output: LoraSlots | None = None
    gate_up: LoraSlots | None = None
    down: LoraSlots | None = None

    @property
    def all(self) -> tuple[LoraSlots | None, ...]:
        """In the order of FUSED."""
        return self.qkv, self.output, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """What the decoder needs of a step whose rows `rows` use adapters."""

    layers: Sequence[LayerSlots]
    rows: LoraPlan


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter on the CPU, laid out as the device's slots are: to put it there is a copy. One slot each."""

    digest: str
    rank: int
    linears: Mapping[tuple[int, Fused], LoraSlots]


class AdapterStore:
    """S slots over all layers. Memory is taken when the first adapter comes, for the linears that it changes."""

    def __init__(
        self,
        spec: DecoderSpec,
        *,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
        backend: Backend = "auto",
    ) -> None:
        """`backend` is that of `lora_add`."""
        self._layers = [LayerSlots() for _ in range(spec.num_layers)]
        self._shapes = target_shapes(spec)
        self._num_slots = num_slots
        self._dtype = dtype
        self._device = device
        # An adapter is laid out on the CPU for the device that computes with it.
        self._backend: Backend = backend if device.type == "cpu" else "torch"
        self._digests = [""] * num_slots
        self._ranks = [0] * num_slots
        self._rank = 0  # of the slots' tensors
        self.layout = 0  # how often tensors came or were replaced: what was recorded with others is stale

    @property
    def num_slots(self) -> int:
        """S."""
        return self._num_slots

    def pack(self, weights: AdapterWeights) -> PackedAdapter:
        """Lay an adapter out. Any thread."""
        linears: dict[tuple[int, Fused], LoraSlots] = {}
        for layer in range(len(self._layers)):
            for fused, targets in FUSED.items():
                parts = [weights.pairs.get((layer, target)) for target in targets]
                if any(part is not None for part in parts):
                    slots = self.empty_linear(fused, padded_rank(weights.rank))
                    pack_lora(slots, 0, parts)
                    linears[layer, fused] = slots
        return PackedAdapter(weights.digest, padded_rank(weights.rank), linears)

    def empty_linear(self, fused: Fused, rank: int) -> LoraSlots:
        """One slot of a linear on the CPU, as `pack` fills it; `rank` is padded."""
        return self._empty(fused, 1, rank, torch.device("cpu"))

    def holds(self, slot: int, digest: str) -> bool:
        """Whether the slot has that adapter's weights."""
        return self._digests[slot] == digest

    def put(self, slot: int, adapter: PackedAdapter) -> None:
        """Make the slot hold the adapter, whatever it held."""
        self._digests[slot], self._ranks[slot] = adapter.digest, adapter.rank
        self._fit_rank()
        for index, layer in enumerate(self._layers):
            for fused in FUSED:
                source = adapter.linears.get((index, fused))
                target: LoraSlots | None = getattr(layer, fused)
                if source is None:
                    if target is not None:
                        clear_slot(target, slot)
                    continue
                if target is None:
                    target = self._empty(fused, self._num_slots, self._rank, self._device)
                    setattr(layer, fused, target)
                    self.layout += 1
                copy_slot(target, slot, source, 0)

    def plan(self, runs: Sequence[tuple[int, int, int]]) -> AdapterPlan:
        """What a step needs whose rows from start to stop use a slot: (start, stop, slot), ascending."""
        rows = plan_lora(runs, self._ranks, num_slots=self._num_slots, dtype=self._dtype, device=self._device)
        return AdapterPlan(self._layers, rows)

    def fixed_plan(self, slots: Tensor) -> AdapterPlan:
        """The same of rows whose slots [T] int32, -1 for none, lie on the device; the tensors stay while `layout` does.

        Raises: RuntimeError where the slots are laid out for the native kernel.
        """
        if any(each.is_native for layer in self._layers for each in _linears(layer)):
            raise RuntimeError(
                "fixed_plan: the native kernel takes its rows from the host; make the store with 'torch'"
            )
        return AdapterPlan(self._layers, fixed_lora(slots, num_slots=self._num_slots, dtype=self._dtype))

    def _fit_rank(self) -> None:
        """Give the tensors the rank of the largest adapter in a slot, not of the largest allowed.

        The native kernel computes each adapter at its own rank, so there they only grow; and on a GPU, where steps that
        were recorded with other tensors would be recorded again.
        """
        needed = max(self._ranks)
        is_native = any(slots.is_native for layer in self._layers for slots in _linears(layer))
        if needed == self._rank or (needed < self._rank and (is_native or self._device.type != "cpu")):
            return
        self._rank = needed
        self.layout += 1
        for layer in self._layers:
            for fused in FUSED:
                old: LoraSlots | None = getattr(layer, fused)
                if old is None:
                    continue
                new = self._empty(fused, self._num_slots, needed, self._device)
                for slot in range(self._num_slots):
                    copy_slot(new, slot, old, slot)
                setattr(layer, fused, new)

    def _empty(self, fused: Fused, num_slots: int, rank: int, device: torch.device) -> LoraSlots:
        targets = FUSED[fused]
        return empty_slots(
            [self._shapes[target][0] for target in targets],
            self._shapes[targets[0]][1],
            num_slots=num_slots,
            rank=rank,
            dtype=self._dtype,
            device=device,
            backend=self._backend,
        )


def _linears(layer: LayerSlots) -> list[LoraSlots]:
    return [slots for slots in layer.all if slots is not None]
