"""The highest inner products of queries with rows. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernels import alone
from kernels.near_rows.reference import Vectors, encode_near_rows_reference, near_rows_reference

# Beyond, sums of products of codes would leave 32 bits.
MAX_DIM = 65_536


@dataclass(frozen=True, slots=True)
class NearRows:
    """Rows [n, E] float32, ready to be compared with. Without `panels` numpy does it."""

    rows: Vectors
    panels: NDArray[np.uint8] | None
    steps: Vectors  # [n or more] what a code of each row is worth
    error: float  # no row is further from what its codes stand for
    length: float  # no row is longer


def absence() -> str | None:
    """Why the native kernel does not run here, or None where it does."""
    why = alone.absence()
    return why if why is not None or alone.library().switchyard_near_panel() else "this processor has no AVX2"


def pack_near_rows(rows: Vectors, *, backend: Literal["auto", "numpy", "native"] = "auto") -> NearRows:
    """Lay out rows for `near_rows`: beside the rows themselves, codes of 8 bits.

    Args:
        rows: [n, E] float32, finite, n at least 1, E from 1 to MAX_DIM.
        backend: "auto" takes the native kernel where there is one, and numpy otherwise.
    Raises: ValueError when shape or dtype do not fit; RuntimeError when "native" was asked for and is absent.
    """
    if rows.ndim != 2 or not len(rows) or not 1 <= rows.shape[1] <= MAX_DIM or rows.dtype != np.float32:
        raise ValueError(f"pack_near_rows: {rows.shape} {rows.dtype}; [1 or more, 1 to {MAX_DIM}] float32 fits")
    if not np.isfinite(rows).all():
        raise ValueError("pack_near_rows: a row holds NaN or infinity; rows must be finite")
    rows = np.ascontiguousarray(rows)
    why = "numpy was asked for" if backend == "numpy" else absence()
    if backend == "native" and why is not None:
        raise RuntimeError(f"near_rows: backend 'native' is absent: {why}")
    if why is not None:
        return NearRows(rows, None, np.empty(0, np.float32), 0.0, 0.0)
    library = alone.library()
    return NearRows(
        rows,
        *encode_near_rows_reference(rows, int(library.switchyard_near_code()), int(library.switchyard_near_panel())),
    )


def near_rows(queries: Vectors, rows: NearRows, k: int) -> Vectors:
    """The k highest inner products of each query with `rows`.

    Args:
        queries: [Q, E] float32.
        rows: what `pack_near_rows` made.
        k: 1 or more.
    Returns: [Q, min(k, n)] float32, descending, summed in float32; NaN for a query that is not finite.
    Raises: ValueError when shapes or dtypes disagree.
    """
    num, dim = rows.rows.shape
    if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype != np.float32 or k < 1:
        raise ValueError(
            f"near_rows: queries {queries.shape} {queries.dtype}, rows {(num, dim)} float32, k {k}; "
            "as many columns, float32, and a k of 1 or more fit"
        )
    k = min(k, num)
    if rows.panels is None:
        return near_rows_reference(queries, rows.rows, k)
    queries = np.ascontiguousarray(queries)
    out = np.empty((len(queries), k), np.float32)
    alone.library().switchyard_near_rows(
        *(out.ctypes.data, queries.ctypes.data, rows.panels.ctypes.data, rows.steps.ctypes.data, rows.rows.ctypes.data),
        *(len(queries), num, dim, k, rows.error, rows.length),
    )
    return out
