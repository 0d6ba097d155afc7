"""How many tokens keys and values have room for, the same on every rank."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

from engine.config import GeneratorSettings
from engine.errors import ConfigError
from engine.generation.decoder.spec import DecoderSpec
from engine.generation.model_files import num_kv_blocks
from engine.generation.parallel.group import Ranks
from engine.generation.parallel.split import part_spec
from engine.generation.sequence import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Blocks of keys and values, and the longest sequence in tokens."""

    num_blocks: int
    max_model_len: int


def cache_size(
    spec: DecoderSpec, settings: GeneratorSettings, dtype: torch.dtype, device: str, ranks: Ranks
) -> CacheSize:
    """What the rank with the least room has; all ranks call it together. `spec` is the whole model's.

    Raises: ConfigError where the model cannot be split, or ranks read different ones; RankLost.
    """
    part = part_spec(spec, ranks.size)
    max_model_len = min(settings.max_model_len, spec.max_positions)
    # On a CPU all ranks share one memory, on GPUs each has its own.
    counted = part if device.startswith("cuda") else spec
    blocks = num_kv_blocks(counted, dtype, device, kv_tokens=settings.kv_tokens, at_least=max_model_len)
    same = zlib.crc32(repr((spec, dtype, max_model_len)).encode())
    num_blocks, least, negative_most = ranks.least([blocks, same, -same])
    if least != -negative_most:
        raise ConfigError(
            "the processes of generator.tensor_parallel read different models, number formats or settings; start them "
            "with the same ones."
        )
    return CacheSize(num_blocks, min(max_model_len, num_blocks * BLOCK_TOKENS))
