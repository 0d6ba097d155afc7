"""The highest inner products in plain numpy: the definition, and what runs without a compiler."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def near_rows_reference(queries: Vectors, rows: Vectors, k: int) -> Vectors:
    """See near_rows."""
    # The longer side first, which the product of a few queries is faster with.
    products = (rows @ queries.T).T  # [Q, n]
    if products.shape[1] > k:
        products = np.partition(products, products.shape[1] - k, axis=1)[:, -k:]
    return np.ascontiguousarray(np.sort(products, axis=1)[:, ::-1])


def encode_near_rows_reference(
    rows: Vectors, max_code: int, panel: int
) -> tuple[NDArray[np.uint8], Vectors, float, float]:
    """Codes in panels [ceil(n / panel), ceil(E / 4), panel, 4], what a step of each row is worth [panels * panel], and
    bounds on the length of what a row loses in codes, and on its own.
    """
    num, dim = rows.shape
    wide = rows.astype(np.float64)
    steps = (np.abs(wide).max(axis=1) / max_code).astype(np.float32)
    held = np.where(steps > 0, steps, 1).astype(np.float64)[:, None]
    codes = np.rint(wide / held).clip(-max_code, max_code)
    error = float(np.linalg.norm(wide - codes * held, axis=1).max())
    length = float(np.linalg.norm(wide, axis=1).max())
    padded = np.full((-(-num // panel) * panel, -(-dim // 4) * 4), max_code + 1, np.uint8)
    padded[:num, :dim] = codes + (max_code + 1)
    panels = padded.reshape(-1, panel, padded.shape[1] // 4, 4).transpose(0, 2, 1, 3)
    # Bounds are rounded upwards on their way to float32.
    return np.ascontiguousarray(panels), np.pad(steps, (0, -num % panel)), error * (1 + 1e-6), length * (1 + 1e-6)
