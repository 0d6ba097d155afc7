"""The structs that native.cpp reads, field by field. Pointers are to memory that somebody else keeps alive."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p
from typing import Any, ClassVar

PAGED_ARRAYS = 9


class Matrix(Structure):
    """A weight as `linear` (16 bits) or `packed_linear` (4 or 8) takes it."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        *((name, c_void_p) for name in ("data", "bias")),
        *((name, c_int64) for name in ("bits", "inputs", "outputs")),
    ]


class LowRank(Structure):
    """Slots of `lora_add`; `a` is null where no adapter changes the linear."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        *((name, c_void_p) for name in ("a", "b", "parts")),
        *((name, c_int64) for name in ("num_parts", "rank")),
    ]


class LayerLowRank(Structure):
    """Those of a layer."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [(name, LowRank) for name in ("qkv", "output", "gate_up", "down")]


class Layer(Structure):
    """A layer's weights."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        *((name, c_void_p) for name in ("attention_norm", "q_norm", "k_norm", "mlp_norm")),
        ("window", c_int64),
        *((name, Matrix) for name in ("qkv", "output", "gate_up", "down")),
    ]


class Model(Structure):
    """What is the same in every step."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        *((name, c_void_p) for name in ("embedding", "norm")),
        ("layers", POINTER(Layer)),
        *((name, c_int64) for name in ("num_layers", "hidden", "heads", "kv_heads", "dim")),
        *((name, c_float) for name in ("eps", "head_eps", "scale")),
    ]


class Chunk(Structure):
    """A request with many new tokens."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("table", c_void_p),
        *((name, c_int64) for name in ("start", "tokens", "context")),
    ]


class Step(Structure):
    """One step."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("tokens", c_void_p),
        ("rows", c_int64),
        *((name, c_void_p) for name in ("cos", "sin", "slots", "keys", "values")),
        ("layer_size", c_int64),
        ("paged", c_void_p * PAGED_ARRAYS),
        *((name, c_int64) for name in ("items", "max_blocks", "short_rows")),
        ("chunks", POINTER(Chunk)),
        ("num_chunks", c_int64),
        ("adapters", POINTER(LayerLowRank)),
        ("runs", c_void_p),
        ("num_runs", c_int64),
        ("wanted", c_void_p),
        ("num_wanted", c_int64),
        ("head", Matrix),
        ("seconds", POINTER(c_double)),
    ]
