"""Scores of many half-precision rows, and of a few in full precision: the two halves of an exact search."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import function
from kernels.row_scan.reference import row_scan_reference

BLOCK_ROWS = 64
MAX_DIM = 4096


def row_scan(
    queries: Tensor, rows: Tensor, allowed: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Inner products of every query with every row, and the best of each block of BLOCK_ROWS rows.

    Args:
        queries: [Q, E] float32, contiguous, E at most MAX_DIM.
        rows: [n, E] float16, contiguous, on the same device; they count as the numbers that they are.
        allowed: [n] bool, rows that may be found; the others score minus infinity. None allows all.
        backend: "auto" takes the native kernel on a CPU and torch otherwise.
    Returns: scores [Q, n] float32, summed in float32, and block maxima [Q, ceil(n / BLOCK_ROWS)] float32.
    Raises: ValueError when shapes, dtypes or devices disagree.
    """
    if (
        queries.dim() != 2
        or rows.dim() != 2
        or queries.shape[1] != rows.shape[1]
        or queries.shape[1] > MAX_DIM
        or (queries.dtype, rows.dtype) != (torch.float32, torch.float16)
        or (allowed is not None and (allowed.dtype, allowed.shape) != (torch.bool, rows.shape[:1]))
        or not (queries.is_contiguous() and rows.is_contiguous())
    ):
        mask = None if allowed is None else (allowed.dtype, tuple(allowed.shape))
        raise ValueError(
            f"row_scan: queries {tuple(queries.shape)} {queries.dtype}, rows {tuple(rows.shape)} {rows.dtype}, "
            f"allowed {mask}; up to {MAX_DIM} wide"
        )
    if choose_backend("row_scan", backend, queries.device) == "torch":
        return row_scan_reference(queries, rows, allowed, BLOCK_ROWS)
    scores = torch.empty(len(queries), len(rows))
    maxima = torch.empty(len(queries), -(-len(rows) // BLOCK_ROWS))
    _scan()(
        *(scores.data_ptr(), maxima.data_ptr(), rows.data_ptr(), queries.data_ptr()),
        None if allowed is None else allowed.data_ptr(),
        *(len(rows), len(queries), rows.shape[1]),
    )
    return scores, maxima


def row_dots(query: Tensor, rows: Tensor, indices: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Inner products of one query with chosen rows, the same for equal rows wherever they stand.

    Args:
        query: [E] float32.
        rows: [n, E] float32, contiguous.
        indices: [c] int64, from 0 to n - 1.
        backend: "auto" takes the native kernel on a CPU and torch otherwise.
    Returns: [c] float32, summed in float32.
    Raises: ValueError when shapes or dtypes disagree.
    """
    if (
        rows.dim() != 2
        or query.shape != rows.shape[1:]
        or (query.dtype, rows.dtype, indices.dtype) != (torch.float32, torch.float32, torch.int64)
        or not (query.is_contiguous() and rows.is_contiguous() and indices.is_contiguous())
    ):
        raise ValueError(
            f"row_dots: query {tuple(query.shape)} {query.dtype}, rows {tuple(rows.shape)} {rows.dtype}, "
            f"indices {indices.dtype}"
        )
    if choose_backend("row_dots", backend, query.device) == "torch":
        return (rows[indices] * query).sum(-1)
    out = torch.empty(len(indices))
    _dots()(*(out.data_ptr(), rows.data_ptr(), indices.data_ptr(), query.data_ptr()), *(len(indices), rows.shape[1]))
    return out


@lru_cache(maxsize=1)
def _scan() -> Any:
    return function("switchyard_row_scan", "pppppiii")


@lru_cache(maxsize=1)
def _dots() -> Any:
    return function("switchyard_row_dots", "ppppii")
