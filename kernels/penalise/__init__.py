"""Penalties on tokens that prompt and answer already have, for all rows of a step at once."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.penalise.torch_op import penalise_torch

__all__ = ["penalise"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def penalise(logits: Tensor, seen: Tensor, strengths: Tensor, *, backend: Backend = "auto") -> None:
    """Change the logits of tokens that were seen, in place: first by repetition, then by presence and frequency.

    A logit above 0 is divided by the row's repetition penalty and another one multiplied by it. Where the answer has
    the token, presence + frequency * count is taken off. Computed in float32 and rounded once.

    Args:
        logits: [N, V] float32, bfloat16 or float16, contiguous.
        seen: [3, E] int32, contiguous: row, token id, and how often the answer has it (0: only the prompt does). A row
            has a token once. Rows below 0 are skipped, so that a recorded step may have fewer than it has room for.
        strengths: [3, N] float32, contiguous: repetition, above 0 and 1 for none; presence and frequency, 0 for none.
        backend: "auto" takes Triton on a GPU, and torch where there is none and on a CPU. With Triton nothing waits for
            the device.
    Raises: ValueError when shapes, dtypes or devices disagree; RuntimeError for a backend that is absent.
    Source: repetition as in CTRL (arXiv:1909.05858), presence and frequency as OpenAI's API has them.
    """
    if (
        logits.dim() != 2
        or logits.dtype not in _DTYPES
        or (seen.dim(), seen.shape[0], seen.dtype) != (2, 3, torch.int32)
        or (strengths.shape, strengths.dtype) != ((3, len(logits)), torch.float32)
        or not all(each.is_contiguous() and each.device == logits.device for each in (logits, seen, strengths))
    ):
        raise ValueError(
            f"penalise: logits {tuple(logits.shape)} {logits.dtype} on {logits.device}, seen {tuple(seen.shape)} "
            f"{seen.dtype} on {seen.device}, strengths {tuple(strengths.shape)} {strengths.dtype} on "
            f"{strengths.device}; logits [N, V] of float32, bfloat16 or float16, [3, E] int32 and [3, N] float32, all "
            "contiguous and on one device, fit"
        )
    if choose_backend("penalise", backend, logits.device, has_triton=True, has_native=False) == "torch":
        penalise_torch(logits, seen, strengths)
        return
    from kernels.penalise.triton_op import penalise_triton

    penalise_triton(logits, seen, strengths)
