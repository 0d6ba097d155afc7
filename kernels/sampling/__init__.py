"""Choosing one token of each row of logits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import DTYPES, function
from kernels.sampling.torch_op import sample_torch

__all__ = ["sample"]


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Draw a token per row after temperature, top_k, top_p and min_p, in this order.

    Args:
        logits: [N, V]; float32, bfloat16 or float16. Minus infinity is never drawn.
        temperature: [N] float32; 0 takes the best token, the lowest id among equals.
        top_k: [N] int64; only the k best tokens, 0 for all.
        top_p: [N] float32 in (0, 1]; only the best tokens whose probabilities first reach this sum.
        min_p: [N] float32 in [0, 1]; only tokens with at least this share of the best one's probability.
        uniform: [N] float64 in [0, 1), the one random number of each row: equal numbers draw equally.
        backend: "auto" finds best tokens by the native kernel on a CPU; torch does all the rest.
    Returns: [N] int64 token ids.
    Raises: ValueError when shapes disagree, or a row holds NaN or nothing but minus infinity.
    """
    rows = (logits.shape[0],)
    if logits.dim() != 2 or any(t.shape != rows for t in (temperature, top_k, top_p, min_p, uniform)):
        raise ValueError(f"sample: logits {tuple(logits.shape)}, parameters {tuple(temperature.shape)}")
    is_taken = logits.dtype in (torch.float32, torch.bfloat16) and logits.is_contiguous() and logits.shape[1] > 0
    if choose_backend("sampling", backend, logits.device) == "native" and is_taken:
        best = _best(logits)
    else:
        best = logits.max(-1)[:2]
    return sample_torch(logits, *best, temperature, top_k, top_p, min_p, uniform)


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logit and id of each row's best token, the lowest id among equals; NaN where the row holds one."""
    values, indices = torch.empty(len(logits)), torch.empty(len(logits), dtype=torch.int64)
    _native()(indices.data_ptr(), values.data_ptr(), logits.data_ptr(), *logits.shape, DTYPES[logits.dtype])
    return values, indices


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_best", "pppiii")
