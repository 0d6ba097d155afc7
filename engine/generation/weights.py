"""A decoder's weights and settings from a local folder of safetensors, through transformers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from engine.errors import ModelSourceError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `path`. Raises: ModelSourceError."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{path}: the tokenizer cannot be read ({_one_line(error)}).") from None


def load_model(path: Path, dtype: str, device: str) -> PreTrainedModel:
    """The model saved in `path`, in evaluation mode on `device`; `dtype` as in `generator.dtype`.

    Raises: ModelSourceError for another architecture than ARCHITECTURES, or files that cannot be read.
    """
    _check_architecture(path)
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            output_loading_info=True,
            dtype=resolve_dtype(dtype, device),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelSourceError(f"{path}: the weights cannot be read ({_one_line(error)}).") from None
    if report["missing_keys"]:  # transformers fills them with random numbers
        raise ModelSourceError(
            f"{path}: the weights lack {', '.join(sorted(report['missing_keys'])[:3])}. Save it anew."
        )
    return model.to(device).eval()


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it; else float16 on a GPU and float32 on a CPU."""
    if dtype != "auto":
        named: torch.dtype = getattr(torch, dtype)
        return named
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.bfloat16 if any(_probe(name) for name in probes) else torch.float32


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends an answer: those of generation_config.json and the tokenizer's own."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def kv_token_budget(model: PreTrainedModel, device: str) -> int:
    """Token slots of keys and values in half of a GPU's free memory, or in an eighth of the machine's."""
    config: Any = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes: int = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * model.dtype.itemsize
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] // 2 // token_bytes
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8 // token_bytes


def _check_architecture(path: Path) -> None:
    try:
        architecture = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelSourceError(f"{path}: config.json cannot be read ({_one_line(error)}).") from None
    if architecture not in ARCHITECTURES:
        raise ModelSourceError(
            f"{path}: architecture {architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}. "
            "Name another model with generator.model."
        )


def _probe(name: str) -> bool:
    # Private to torch and not in every version or on every processor; absent means no.
    probe = getattr(torch.cpu, name, None)
    return bool(probe and probe())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
