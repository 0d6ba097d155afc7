"""Attention over paged keys and values, one interface, one file a device."""

from __future__ import annotations

import torch

from engine.generation.attention.base import Attention
from engine.generation.attention.cpu import CpuAttention
from engine.generation.attention.gpu import GpuAttention
from engine.generation.decoder.spec import DecoderSpec


def build_attention(
    spec: DecoderSpec, *, num_blocks: int, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> Attention:
    """The attention of `device`, with an empty cache of `num_blocks` blocks for prompts up to `max_model_len`."""
    backend = CpuAttention if device.type == "cpu" else GpuAttention
    return backend(spec, num_blocks=num_blocks, max_model_len=max_model_len, dtype=dtype, device=device)
