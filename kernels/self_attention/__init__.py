"""Attention of an encoder: every token sees its whole sequence, and sequences lie one after another without padding."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import function, library
from kernels.self_attention.reference import self_attention_reference


def self_attention(qkv: Tensor, starts: Tensor, heads: int, *, backend: Backend = "auto") -> Tensor:
    """softmax(q @ k.T / sqrt(D)) @ v of each head and sequence.

    Args:
        qkv: [T, 3 * H * D] float32, contiguous: query, key and value of each token.
        starts: [S + 1] int64 on the CPU, rising from 0 to T: sequence i is tokens starts[i] to starts[i + 1].
        heads: H.
        backend: "auto" takes the native kernel on a CPU where D fills its panels, and torch otherwise.
    Returns: [T, H * D] float32.
    Raises: ValueError when shapes or dtypes disagree; RuntimeError when "native" was asked for and cannot be.
    Source: arXiv:1706.03762; packing without padding as in ByteTransformer, arXiv:2210.03052.
    """
    is_fit = qkv.dim() == 2 and qkv.shape[1] % (3 * heads) == 0 and qkv.dtype == torch.float32 and qkv.is_contiguous()
    if not is_fit or starts.dtype != torch.int64 or starts.dim() != 1 or not _cover(starts, qkv.shape[0]):
        raise ValueError(
            f"self_attention: qkv {tuple(qkv.shape)} {qkv.dtype}, {heads} heads, starts {tuple(starts.shape)} "
            f"{starts.dtype}; it takes contiguous float32 [T, 3 * H * D] and int64 from 0 rising to T"
        )
    dim = qkv.shape[1] // (3 * heads)
    chosen = choose_backend("self_attention", backend, qkv.device)
    panel = _panel() if chosen == "native" else 1
    if dim % panel and backend == "native":
        raise RuntimeError(f"self_attention: backend 'native' is absent: heads of {dim} are no multiple of {panel}")
    if chosen == "torch" or dim % panel:
        return self_attention_reference(qkv, starts, heads)
    out = torch.empty((qkv.shape[0], heads * dim))
    _native()(out.data_ptr(), qkv.data_ptr(), starts.data_ptr(), len(starts) - 1, heads, dim, dim**-0.5)
    return out


def _cover(starts: Tensor, tokens: int) -> bool:
    """Whether `starts` cuts exactly so many tokens: the native kernel trusts it with addresses."""
    if starts.device.type != "cpu" or not starts.is_contiguous():
        return False
    bounds = starts.tolist()
    return bool(bounds) and bounds[0] == 0 and bounds[-1] == tokens and bounds == sorted(bounds)


@lru_cache(maxsize=1)
def _panel() -> int:
    return int(library().switchyard_float_panel())


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_self_attention", "pppiiif")
