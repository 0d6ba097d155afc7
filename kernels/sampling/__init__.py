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

_COLUMNS = (torch.float32, torch.int64, torch.float32, torch.float32, torch.int64, torch.int64)
# Token ids of one row are numbers of 32 bits to the noise.
MAX_WIDTH = 2**31 - 1


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    *,
    is_checked: bool = True,
    backend: Backend = "auto",
) -> Tensor:
    """Draw a token per row after temperature, top_k, top_p and min_p, in this order.

    Of the tokens that are kept, the one with the largest logit / temperature + noise is drawn. The noise of a token
    depends on seed, position and token alone (`noise.py`): rows draw the same whatever else is in the batch, on every
    backend, but where two sums are equal up to float32's rounding.

    Args:
        logits: [N, V], V at least 1 where there are rows; float32, bfloat16 or float16, rows contiguous. Minus infinity
            is never drawn.
        temperature: [N] float32; 0 takes the best token, the lowest id among equals.
        top_k: [N] int64; only the k best tokens, of equals those with lower ids; 0 for all.
        top_p: [N] float32 in (0, 1]; only the best tokens whose probabilities first reach this sum.
        min_p: [N] float32 in [0, 1]; only tokens with at least this share of the best one's probability.
        seed: [N] int64, any bits.
        position: [N] int64, any bits: with the seed it makes the noise of a row.
        is_checked: False where a row without an answer gives -1 instead of an error. With Triton nothing waits for the
            device then, and the call may be recorded.
        backend: "auto" takes the native kernel on a CPU, Triton on a GPU, and torch, which waits for the device, where
            they are absent.
    Returns: [N] int64 token ids; -1 for a row that holds NaN or infinity, or nothing but minus infinity.
    Raises: ValueError when shapes, dtypes or devices disagree, and for the first row without an answer where that is
        checked; RuntimeError for a backend that is absent.
    Source: a softmax's draw as an argmax, Gumbel (1954); noise by a counter as in Salmon et al., SC '11.
    """
    columns: tuple[Tensor, ...] = (temperature, top_k, top_p, min_p, seed, position)
    _check_inputs(logits, columns)
    if len(logits) == 0:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    columns = tuple(column.contiguous() for column in columns)
    chosen_backend = choose_backend("sampling", backend, logits.device, has_triton=True)
    if chosen_backend == "native":
        ids = torch.empty(len(logits), dtype=torch.int64)
        pointers = (column.data_ptr() for column in columns)
        _native()(ids.data_ptr(), logits.data_ptr(), *logits.shape, logits.stride(0), DTYPES[logits.dtype], *pointers)
    elif chosen_backend == "triton":
        from kernels.sampling.triton_op import sample_triton

        ids = sample_triton(logits, *columns)
    else:
        ids = sample_torch(logits, *columns)
    if is_checked and bool((ids < 0).any()):
        bad = int((ids < 0).nonzero()[0])
        raise ValueError(f"sample: row {bad} of the logits has no finite maximum (NaN or infinity)")
    return ids


def _check_inputs(logits: Tensor, columns: tuple[Tensor, ...]) -> None:
    if (
        logits.dim() != 2
        or logits.dtype not in DTYPES
        or (len(logits) > 0 and not 1 <= logits.shape[1] <= MAX_WIDTH)
        or (logits.shape[1] > 1 and logits.stride(1) != 1)
        or any(column.shape != logits.shape[:1] or column.device != logits.device for column in columns)
        or tuple(column.dtype for column in columns) != _COLUMNS
    ):
        seen = ", ".join(f"{tuple(column.shape)} {column.dtype} on {column.device}" for column in columns)
        raise ValueError(
            f"sample: logits {tuple(logits.shape)} {logits.dtype} on {logits.device}, strides {logits.stride()}, and "
            f"temperature, top_k, top_p, min_p, seed, position {seen}; logits [N, V] of float32, bfloat16 or float16 "
            "with contiguous rows and six columns [N] on their device fit: float32 but for top_k, seed and position, "
            "which are int64"
        )


@lru_cache(maxsize=1)
def _native() -> Any:
    return function("switchyard_sample", "ppiiiipppppp")
