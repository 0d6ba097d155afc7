"""A decoder's whole forward in one native call: the other operations in turn, bit for bit what they give one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import addressof, c_double
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.decoder_forward.structs import PAGED_ARRAYS, Chunk, Layer, LayerLowRank, LowRank, Matrix, Model, Step
from kernels.linear import LinearWeight
from kernels.lora_add import LoraPlan, LoraSlots
from kernels.native import bf16_products_absence, function
from kernels.packed_linear import PackedWeight
from kernels.paged_attention import MAX_GROUP, MAX_HEAD_DIM, PagedPlan

Weight = LinearWeight | PackedWeight
PARTS = ("linear", "low rank", "norm and residual", "rope and kv write", "attention", "activation")
_seconds: Any = None  # of PARTS, while `timed_parts` is open


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Norms [M], `q_norm` and `k_norm` [D] or None."""

    attention_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    mlp_norm: Tensor
    qkv: Weight
    output: Weight
    gate_up: Weight
    down: Weight
    window: int

    @property
    def matrices(self) -> tuple[Weight, ...]:
        """All products of the layer."""
        return self.qkv, self.output, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """Rows from `start` on that are a request's last `tokens` of `context`; `table` [blocks] int32."""

    start: int
    tokens: int
    context: int
    table: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """Where a step's tokens stand, and what they attend to.

    cos, sin: [T, D / 2] float32. slots: [T] int64, -1 is not stored. keys, values: [layers, N, 16, KV heads, D].
    paged: plan of the first `num_short` rows, or None. chunks: the rows behind those. Rows behind all of them are
    padding.
    """

    cos: Tensor
    sin: Tensor
    slots: Tensor
    keys: Tensor
    values: Tensor
    paged: PagedPlan | None
    num_short: int
    chunks: Sequence[ChunkRows]


@dataclass(frozen=True, slots=True)
class AdapterStep:
    """What adapters change: slots of (qkv, output, gate_up, down) for each layer, and the rows that use them."""

    layers: Sequence[tuple[LoraSlots | None, ...]]
    rows: LoraPlan


class DecoderForward:
    """The weights of a decoder, laid out for one call."""

    def __init__(
        self,
        embedding: Tensor,
        norm: Tensor,
        layers: Sequence[LayerWeights],
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        head_eps: float,
    ) -> None:
        """
        Args:
            embedding: [V, M] bfloat16. norm: [M]. eps: of the norms [M]. head_eps: of q_norm and k_norm.
        Raises: RuntimeError where `forward_absence` gives a reason.
        """
        weights = [weight for layer in layers for weight in layer.matrices]
        missing = forward_absence(weights, num_heads, num_kv_heads, head_dim)
        if missing is not None or embedding.dtype != torch.bfloat16:
            raise RuntimeError(f"decoder_forward is absent: {missing or f'it takes bfloat16, not {embedding.dtype}'}")
        self._kept = (embedding, norm, tuple(layers))  # the structs point into these
        self._layers = (Layer * len(layers))(*map(_layer, layers))
        sizes = (len(layers), embedding.shape[1], num_heads, num_kv_heads, head_dim)
        self._model = Model(
            *(embedding.data_ptr(), norm.data_ptr(), self._layers, *sizes), eps, head_eps, head_dim**-0.5
        )

    def takes(self, attention: AttentionStep, adapters: AdapterStep | None) -> bool:
        """Whether all of a step has a native kernel: chunks of heads 32, 64 ... wide, and adapters in native slots."""
        slots = [] if adapters is None else [slots for layer in adapters.layers for slots in layer]
        return (self._model.dim % 32 == 0 or not attention.chunks) and all(
            each is None or each.is_native for each in slots
        )

    def run(
        self, tokens: Tensor, attention: AttentionStep, wanted: Tensor, head: Weight, adapters: AdapterStep | None
    ) -> Tensor:
        """Logits [R, V] bfloat16 after the tokens at `wanted`; keys and values of all are stored.

        Args:
            tokens: [T] int64. wanted: [R] int64 indices into T. head: [V, M].
            adapters: None where no row uses one.
        Raises: ValueError when dtypes disagree, or the step is not one that it `takes`.
        """
        is_fit = tokens.dtype == wanted.dtype == torch.int64 and attention.keys.dtype == torch.bfloat16
        if not is_fit or not head.is_packed or not self.takes(attention, adapters):
            raise ValueError(
                f"decoder_forward: tokens {tokens.dtype}, wanted {wanted.dtype}, keys {attention.keys.dtype}, "
                f"a native head ({head.is_packed}) and step; it takes int64, int64, bfloat16"
            )
        paged, chunks = attention.paged, attention.chunks
        places = (attention.cos, attention.sin, attention.slots, attention.keys, attention.values)
        step = Step(
            *(tokens.data_ptr(), len(tokens), *(tensor.data_ptr() for tensor in places), attention.keys[0].numel()),
            *((0,) * PAGED_ARRAYS if paged is None else paged.pointers,),
            *((0, 0) if paged is None else (len(paged.items), paged.tables.shape[1])),
            *(attention.num_short, (Chunk * len(chunks))(*map(_chunk, chunks)), len(chunks)),
            *(None if adapters is None else _low_ranks(adapters.layers),),
            *((None, 0) if adapters is None else (adapters.rows.table.data_ptr(), len(adapters.rows.runs))),
            *(wanted.data_ptr(), len(wanted), _matrix(head), _seconds),
        )
        logits = torch.empty((len(wanted), head.out_features), dtype=torch.bfloat16)
        _native()(logits.data_ptr(), addressof(self._model), addressof(step))
        return logits


def forward_absence(weights: Sequence[Weight], num_heads: int, num_kv_heads: int, head_dim: int) -> str | None:
    """Why a decoder with these weights and heads cannot run in one native call, or None where it can."""
    if bf16_products_absence() is not None:
        return bf16_products_absence()
    if any(not weight.is_packed for weight in weights):
        return "a weight is not in a native layout"
    if head_dim > MAX_HEAD_DIM or num_heads > MAX_GROUP * num_kv_heads:
        return f"heads must be up to {MAX_HEAD_DIM} wide, and {MAX_GROUP} at most for a KV head"
    return None


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Seconds that the forwards of this process spend in each of PARTS until the end of the block, given at its end."""
    global _seconds
    seconds = (c_double * len(PARTS))()
    found: dict[str, float] = {}
    _seconds = seconds
    try:
        yield found
    finally:
        _seconds = None
        found.update(zip(PARTS, seconds, strict=True))


def _layer(layer: LayerWeights) -> Layer:
    norms = (layer.attention_norm, layer.q_norm, layer.k_norm, layer.mlp_norm)
    return Layer(
        *(None if norm is None else norm.data_ptr() for norm in norms), layer.window, *map(_matrix, layer.matrices)
    )


def _matrix(weight: Weight) -> Matrix:
    assert weight.bias is not None
    bits = weight.bits if isinstance(weight, PackedWeight) else 16
    return Matrix(weight.data.data_ptr(), weight.bias.data_ptr(), bits, weight.in_features, weight.out_features)


def _chunk(chunk: ChunkRows) -> Chunk:
    return Chunk(chunk.table.ctypes.data, chunk.start, chunk.tokens, chunk.context)


def _low_ranks(layers: Sequence[tuple[LoraSlots | None, ...]]) -> Any:
    return (LayerLowRank * len(layers))(*(LayerLowRank(*map(_low_rank, layer)) for layer in layers))


def _low_rank(slots: LoraSlots | None) -> LowRank:
    if slots is None:
        return LowRank()
    return LowRank(slots.a.data_ptr(), slots.b.data_ptr(), slots.widths.data_ptr(), len(slots.parts), slots.rank)


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_decoder_forward", "ppp")
