"""out[t] += B (A x[t]) with the adapter of each row, in plain PyTorch and float32: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

# Of each part of a fused weight A [r, in] and B [out, r], or None where the adapter leaves the part as it is.
LoraParts = Sequence[tuple[Tensor, Tensor] | None]


def lora_add_reference(
    out: Tensor, x: Tensor, adapters: Sequence[LoraParts], parts: Sequence[int], runs: Sequence[tuple[int, int, int]]
) -> Tensor:
    """See `lora_add`; `adapters` by slot. Returns a new tensor, float32."""
    result = out.float().clone()
    for start, stop, slot in runs:
        column = 0
        for width, pair in zip(parts, adapters[slot], strict=True):
            if pair is not None:
                inner = x[start:stop].float() @ pair[0].float().T
                result[start:stop, column : column + width] += inner @ pair[1].float().T
            column += width
    return result
