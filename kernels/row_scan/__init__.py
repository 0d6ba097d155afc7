"""Scores of many rows in 16-bit codes, and of a few in full precision: the two halves of an exact search."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.dispatch import Backend, choose_backend
from kernels.native import function
from kernels.row_scan.reference import MAX_CODE, MAX_NORM, encode_rows_reference, row_scan_reference

BLOCK_ROWS = 64
MAX_DIM = 4096
# Of the codes of a row: rounding adds at most half the root of MAX_DIM.
MAX_CODE_NORM = MAX_NORM + 32


class CodedRows(NamedTuple):
    """Vectors as `codes` [n, E] int16 times `scales` [n] float32."""

    codes: Tensor
    scales: Tensor


def encode_rows(vectors: Tensor, *, backend: Backend = "auto") -> CodedRows:
    """The nearest codes of each row, whose inner products with other codes fit 32 bits.

    Args:
        vectors: [n, E] float32, finite, contiguous, E at most MAX_DIM.
        backend: "auto" takes the native kernel on a CPU and torch otherwise.
    Returns: codes with a norm of at most MAX_CODE_NORM, and what one step of them is worth.
    Raises: ValueError when the shape or dtype does not fit.
    """
    if (
        vectors.dim() != 2
        or vectors.shape[1] > MAX_DIM
        or vectors.dtype != torch.float32
        or not vectors.is_contiguous()
    ):
        raise ValueError(f"encode_rows: {tuple(vectors.shape)} {vectors.dtype}; [n, up to {MAX_DIM}] float32 fits")
    if choose_backend("encode_rows", backend, vectors.device) == "torch":
        return CodedRows(*encode_rows_reference(vectors))
    coded = CodedRows(torch.empty(vectors.shape, dtype=torch.int16), torch.empty(len(vectors)))
    _encode()(
        *(coded.codes.data_ptr(), coded.scales.data_ptr(), vectors.data_ptr()),
        *(MAX_NORM, MAX_CODE, *vectors.shape),
    )
    return coded


def row_scan(
    queries: CodedRows, rows: CodedRows, allowed: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Inner products of every query with every row by their codes, and the best of each block of BLOCK_ROWS rows.

    Args:
        queries: Q of them, as `encode_rows` makes them, contiguous, E at most MAX_DIM.
        rows: n of them, likewise, on the same device.
        allowed: [n] bool, rows that may be found; the others score minus infinity. None allows all.
        backend: "auto" takes the native kernel on a CPU and torch otherwise.
    Returns: scores [Q, blocks, BLOCK_ROWS] float32 of exact sums, minus infinity beyond the last row, and block
        maxima [Q, blocks] float32; blocks = ceil(n / BLOCK_ROWS).
    Raises: ValueError when shapes, dtypes or devices disagree.
    """
    dtypes = [tensor.dtype for tensor in (*queries, *rows)]
    if (
        queries.codes.dim() != 2
        or rows.codes.dim() != 2
        or queries.codes.shape[1] != rows.codes.shape[1]
        or queries.codes.shape[1] > MAX_DIM
        or dtypes != 2 * [torch.int16, torch.float32]
        or any(coded.scales.shape != coded.codes.shape[:1] for coded in (queries, rows))
        or (allowed is not None and (allowed.dtype, allowed.shape) != (torch.bool, rows.scales.shape))
        or not all(tensor.is_contiguous() for tensor in (*queries, *rows))
    ):
        mask = None if allowed is None else (allowed.dtype, tuple(allowed.shape))
        raise ValueError(
            f"row_scan: queries {tuple(queries.codes.shape)}, rows {tuple(rows.codes.shape)}, codes and scales "
            f"{dtypes}, allowed {mask}; up to {MAX_DIM} wide, int16 codes with a float32 scale each"
        )
    if choose_backend("row_scan", backend, queries.codes.device) == "torch":
        return row_scan_reference(*queries, *rows, allowed, BLOCK_ROWS)
    num_queries, num_rows = len(queries.codes), len(rows.codes)
    scores = torch.empty(num_queries, -(-num_rows // BLOCK_ROWS), BLOCK_ROWS)
    maxima = torch.empty(scores.shape[:2])
    _scan()(
        *(scores.data_ptr(), maxima.data_ptr(), rows.codes.data_ptr(), rows.scales.data_ptr()),
        *(queries.codes.data_ptr(), queries.scales.data_ptr()),
        None if allowed is None else allowed.data_ptr(),
        *(num_rows, num_queries, rows.codes.shape[1]),
    )
    return scores, maxima


def row_dots(queries: Tensor, owners: Tensor, rows: Tensor, indices: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Inner products of queries with rows chosen for each, the same for equal rows wherever they stand.

    Args:
        queries: [Q, E] float32, contiguous.
        owners: [c] int64, the query of each index, from 0 to Q - 1.
        rows: [n, E] float32, contiguous.
        indices: [c] int64, from 0 to n - 1.
        backend: "auto" takes the native kernel on a CPU and torch otherwise.
    Returns: [c] float32, summed in float32.
    Raises: ValueError when shapes or dtypes disagree.
    """
    dtypes = (queries.dtype, rows.dtype, owners.dtype, indices.dtype)
    if (
        rows.dim() != 2
        or queries.dim() != 2
        or queries.shape[1] != rows.shape[1]
        or owners.shape != indices.shape
        or dtypes != (torch.float32, torch.float32, torch.int64, torch.int64)
        or not all(tensor.is_contiguous() for tensor in (queries, rows, owners, indices))
    ):
        raise ValueError(
            f"row_dots: queries {tuple(queries.shape)} {queries.dtype}, rows {tuple(rows.shape)} {rows.dtype}, "
            f"owners {tuple(owners.shape)} {owners.dtype}, indices {tuple(indices.shape)} {indices.dtype}"
        )
    if choose_backend("row_dots", backend, queries.device) == "torch":
        return (rows[indices] * queries[owners]).sum(-1)
    out = torch.empty(len(indices))
    _dots()(
        *(out.data_ptr(), rows.data_ptr(), indices.data_ptr(), queries.data_ptr(), owners.data_ptr()),
        *(len(indices), rows.shape[1]),
    )
    return out


@lru_cache(maxsize=1)
def _encode() -> Any:
    return function("switchyard_encode_rows", "pppffii")


@lru_cache(maxsize=1)
def _scan() -> Any:
    return function("switchyard_row_scan", "pppppppiii")


@lru_cache(maxsize=1)
def _dots() -> Any:
    return function("switchyard_row_dots", "pppppii")
