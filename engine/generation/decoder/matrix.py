"""A linear of the decoder in the formats that its weights are kept in, and which of them serves a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from kernels.linear import LinearWeight, linear
from kernels.packed_linear import PackedWeight, packed_linear

# Rows of a step that the formats are compared at. Beyond the last, both wait for the processor alone.
COMPARED_ROWS = (1, 4, 16, 64)
_NUM_TIMINGS = 3
# Seconds that the product of some matrices with so many rows takes.
Measure = Callable[[Sequence["Matrix"], int], float]
# So many bytes of weights pass through no cache, as those of a whole step do.
_MEASURED_BYTES = 128 << 20


@dataclass(slots=True)
class Matrix:
    """A weight [out, in] as numbers of the model's dtype, packed in blocks, or both.

    Where it is both, they stand for the same weights up to the rounding of bfloat16, and steps of at most `packed_rows`
    rows take the packed ones.
    """

    dense: LinearWeight | None
    packed: PackedWeight | None = None
    packed_rows: int = 0

    def multiply(self, x: Tensor) -> Tensor:
        """x @ weight.T + bias; x [T, in] of the model's dtype, contiguous. Raises: ValueError when it does not fit."""
        form = self.form(len(x))
        return packed_linear(x, form) if isinstance(form, PackedWeight) else linear(x, form)

    def form(self, rows: int) -> LinearWeight | PackedWeight:
        """The format that serves a step of so many rows."""
        if self.packed is not None and (self.dense is None or rows <= self.packed_rows):
            return self.packed
        assert self.dense is not None
        return self.dense

    @property
    def least_bytes(self) -> int:
        """Of its smallest format."""
        return min(form.data.nbytes for form in (self.dense, self.packed) if form is not None)

    def keep_packed(self) -> None:
        """Drop the other format, if there is a packed one."""
        if self.packed is not None:
            self.dense = None


def choose_formats(matrices: Sequence[Matrix], time_s: Measure | None = None) -> None:
    """Time both formats of `matrices` at several numbers of rows, and use the packed one up to where it is no slower.

    Where it is so at the largest number, the other one is dropped: its memory is free.
    """
    measure = time_s or _product_s
    both = [matrix for matrix in matrices if matrix.dense is not None and matrix.packed is not None]
    if not both:
        return
    sample = _sample(both)
    most = 0
    for rows in COMPARED_ROWS:
        plain_s = packed_s = math.inf
        for _ in range(1 + _NUM_TIMINGS):  # in turn; the first pays for set-up, and is never the fastest
            plain_s = min(plain_s, _timed(sample, rows, 0, measure))
            packed_s = min(packed_s, _timed(sample, rows, rows, measure))
        # The largest decides, not the first: one disturbed measurement should not cost all of the gain.
        most = rows if packed_s <= plain_s else most
    for matrix in both:
        matrix.packed_rows = most
        if most == COMPARED_ROWS[-1]:
            matrix.keep_packed()


def _sample(matrices: Sequence[Matrix]) -> list[Matrix]:
    """The first ones whose packed weights are too large for the caches, or all."""
    sample: list[Matrix] = []
    size = 0
    for matrix in matrices:
        if size >= _MEASURED_BYTES:
            break
        assert matrix.packed is not None
        sample.append(matrix)
        size += matrix.packed.data.nbytes
    return sample


def _timed(sample: Sequence[Matrix], rows: int, packed_rows: int, measure: Measure) -> float:
    for matrix in sample:
        matrix.packed_rows = packed_rows
    return measure(sample, rows)


def _product_s(matrices: Sequence[Matrix], rows: int) -> float:
    """Seconds of one pass over `matrices`."""
    packed = [matrix.packed for matrix in matrices if matrix.packed is not None]
    inputs = {weight.in_features: torch.ones(rows, weight.in_features, dtype=torch.bfloat16) for weight in packed}
    started = perf_counter()
    for matrix, weight in zip(matrices, packed, strict=True):
        matrix.multiply(inputs[weight.in_features])
    return perf_counter() - started
