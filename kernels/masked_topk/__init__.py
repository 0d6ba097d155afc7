"""Exact inner-product search among the rows that a bitmask allows: nothing is filtered afterwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.masked_topk.torch_op import masked_topk_torch

__all__ = ["masked_topk", "pack_mask"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WORD_BITS = 32
# Row ids take half of a 64-bit key.
MAX_ROWS = 2**31 - 1


def masked_topk(
    queries: Tensor, rows: Tensor, k: int, mask: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """The k rows with the largest inner products with each query, equal scores by lower row id.

    Args:
        queries: [Q, E]; float32, bfloat16 or float16, finite, contiguous.
        rows: [N, E] of the same dtype and device, N at most MAX_ROWS, finite where they may be found.
        k: at least 1; it may exceed N.
        mask: [ceil(N / 32)] int32 from `pack_mask`: bit r % 32 of word r // 32 says whether row r may be found. None
            allows all. Rows that may not be found are not read where 128 of them lie side by side.
        backend: "auto" takes Triton on a GPU, and torch where there is none and on a CPU.
    Returns: scores [Q, k] float32, summed in float32, descending, and ids [Q, k] int64. Where fewer than k rows are
        allowed, minus infinity and -1 fill up. The same inputs give the same bits on the same device.
    Raises: ValueError when shapes, dtypes or devices disagree, or k < 1; RuntimeError for a backend that is absent.
    Source: blocks are chosen by their best row first, the delegates of Dr. Top-k (Gaihre et al., SC '21).
    """
    num_words = -(-rows.shape[0] // WORD_BITS)
    if (
        queries.dim() != 2
        or rows.dim() != 2
        or queries.shape[1] != rows.shape[1]
        or queries.dtype != rows.dtype
        or rows.dtype not in _DTYPES
        or len(rows) > MAX_ROWS
        or (mask is not None and (mask.shape, mask.dtype) != ((num_words,), torch.int32))
        or not all(each.is_contiguous() for each in (queries, rows))
        or not all(each.device == rows.device for each in (queries, *([] if mask is None else [mask])))
    ):
        seen = None if mask is None else f"{tuple(mask.shape)} {mask.dtype} on {mask.device}"
        raise ValueError(
            f"masked_topk: queries {tuple(queries.shape)} {queries.dtype} on {queries.device}, rows "
            f"{tuple(rows.shape)} {rows.dtype} on {rows.device}, mask {seen}; contiguous queries and rows of one dtype "
            f"(float32, bfloat16 or float16), width and device fit, with a mask of {num_words} int32 words"
        )
    if k < 1:
        raise ValueError(f"masked_topk: k={k} is too small; ask for 1 row or more")
    if choose_backend("masked_topk", backend, rows.device, has_triton=True, has_native=False) == "torch":
        return masked_topk_torch(queries, rows, k, mask)
    from kernels.masked_topk.triton_op import masked_topk_triton

    return masked_topk_triton(queries, rows, k, mask)


def pack_mask(allowed: Tensor) -> Tensor:
    """Bits of which rows may be found, as `masked_topk` takes them.

    Args:
        allowed: [N] bool on the CPU.
    Returns: [ceil(N / 32)] int32 on the CPU; bits beyond the last row are 0.
    Raises: ValueError for another shape, dtype or device.
    """
    if (allowed.dim(), allowed.dtype, allowed.device.type) != (1, torch.bool, "cpu"):
        raise ValueError(
            f"pack_mask: {tuple(allowed.shape)} {allowed.dtype} on {allowed.device}; [N] bool on a CPU fits"
        )
    packed = np.packbits(allowed.numpy(), bitorder="little")
    padded = np.zeros(-(-len(allowed) // WORD_BITS) * 4, np.uint8)
    padded[: len(packed)] = packed
    return torch.from_numpy(padded.view("<i4"))
