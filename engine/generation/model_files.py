"""What a model's folder and the machine say before it runs: tokenizer, end tokens, number format, KV blocks."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.errors import ModelSourceError
from engine.generation.decoder.spec import DecoderSpec
from engine.generation.sequence import BLOCK_TOKENS
from kernels.native import bf16_products_absence


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `path`. Raises: ModelSourceError."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{path}: the tokenizer cannot be read ({_one_line(error)}).") from None


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it or our kernels do; else float16 on a GPU, float32 on a CPU."""
    if dtype != "auto":
        named: torch.dtype = getattr(torch, dtype)
        return named
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    has_products = bf16_products_absence() is None or torch_multiplies_bfloat16()
    return torch.bfloat16 if has_products else torch.float32


def torch_multiplies_bfloat16() -> bool:
    """Whether torch has instructions for it on this processor, rather than widening in software."""
    return any(_probe(name) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def eos_token_ids(path: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends an answer: those of generation_config.json (else of config.json) and the tokenizer's own."""
    configured: Any = None
    for name in ("generation_config.json", "config.json"):
        with suppress(OSError, ValueError, AttributeError):
            configured = json.loads((path / name).read_text(encoding="utf-8")).get("eos_token_id")
        if configured is not None:
            break
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def num_kv_blocks(spec: DecoderSpec, dtype: torch.dtype, device: str, *, kv_tokens: int | None, at_least: int) -> int:
    """Blocks of keys and values: for `kv_tokens`, else what half of a GPU's free or 1/8 of the machine's memory holds.

    Never fewer than `at_least` tokens need.
    """
    if kv_tokens is None:
        budget = torch.cuda.mem_get_info(device)[0] // 2 if device.startswith("cuda") else memory_bytes() // 8
        kv_tokens = budget // spec.kv_token_bytes(dtype)
    return -(-max(kv_tokens, at_least) // BLOCK_TOKENS)


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its container's limit where that is lower."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return machine


def _probe(name: str) -> bool:
    # Private to torch and not in every version or on every processor; absent means no.
    probe = getattr(torch.cpu, name, None)
    return bool(probe and probe())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
