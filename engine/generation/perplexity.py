"""Perplexity of a model on a text of ours: what a format of its weights costs in quality, as one number."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch.nn import functional

from engine.config import WeightFormat, usable_cores
from engine.generation import model_files
from engine.generation.attention import build_attention
from engine.generation.attention.base import FlatBatch
from engine.generation.decoder.model import Decoder
from engine.generation.decoder.spec import read_spec
from engine.generation.perplexity_memo import TEXT
from engine.generation.sequence import num_blocks_for

WINDOW_TOKENS = 512


@torch.inference_mode()
def perplexity(
    path: Path, weights: WeightFormat = "auto", *, dtype: str = "auto", text: str | None = None, threads: int = 0
) -> float:
    """exp of the mean negative log-likelihood of a token, over windows of 512 tokens that know nothing of each other.

    The first token of a window is not counted. With packed weights all products are theirs, as in narrow steps.

    Args:
        path: folder of the model.
        weights: as the setting generator.weights.
        dtype: as generator.dtype.
        text: at least two tokens; default: the content of `TEXT`.
        threads: default: every core of this process.
    Raises: ModelSourceError; ConfigError when this machine or model has not that format.
    """
    torch.set_num_threads(threads or usable_cores())
    spec, number = read_spec(path), model_files.resolve_dtype(dtype, "cpu")
    decoder = Decoder(path, spec, dtype=number, device="cpu", weights=weights)
    decoder.keep_packed()
    size = min(WINDOW_TOKENS, spec.max_positions)
    attention = build_attention(
        spec, num_blocks=num_blocks_for(size), max_model_len=size, dtype=number, device=decoder.device
    )
    ids = model_files.load_tokenizer(path)(text or TEXT.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, size):
        window = torch.tensor(ids[start : start + size])
        plan = attention.plan(FlatBatch([len(window)], [len(window)], [list(range(num_blocks_for(len(window))))]))
        logits = decoder.forward(window, attention, plan, torch.arange(len(window) - 1)).float()
        total += float(functional.cross_entropy(logits, window[1:], reduction="sum"))
        count += len(window) - 1
    return math.exp(total / count)
