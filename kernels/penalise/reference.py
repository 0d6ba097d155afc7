"""Penalties one token after the other, in float64: the definition."""

from __future__ import annotations

from torch import Tensor


def penalise_reference(logits: Tensor, seen: Tensor, strengths: Tensor) -> Tensor:
    """See `penalise`: [N, V] float64."""
    result = logits.double()
    for row, token_id, count in seen.T.tolist():
        if row < 0:
            continue
        repetition, presence, frequency = strengths[:, row].tolist()
        value = float(result[row, token_id])
        value = value / repetition if value > 0 else value * repetition
        result[row, token_id] = value - (presence + frequency * count if count else 0.0)
    return result
