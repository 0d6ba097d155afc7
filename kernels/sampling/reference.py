"""Sampling in plain PyTorch and float64, one full sort: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities_reference(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """[V] float64: the distribution that `sample` draws from, for one row [V] and a temperature above 0."""
    probabilities = (logits.double() / temperature).softmax(-1)
    order = probabilities.argsort(descending=True, stable=True)
    kept = probabilities[order]
    if top_k:
        kept[top_k:] = 0
    kept /= kept.sum()
    # A token stays while those before it have not reached top_p, so the first always does.
    kept[kept.cumsum(0) - kept >= top_p] = 0
    kept[kept < min_p * kept[0]] = 0
    result = torch.zeros_like(probabilities)
    result[order] = kept / kept.sum()
    return result


def sample_reference(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
) -> Tensor:
    """See `sample`: the first token, in descending order of probability, where the cumulative sum passes `uniform`."""
    chosen = []
    for row in range(len(logits)):
        if temperature[row] == 0:
            chosen.append(int(logits[row].argmax()))
            continue
        settings = float(temperature[row]), int(top_k[row]), float(top_p[row]), float(min_p[row])
        probabilities = probabilities_reference(logits[row], *settings)
        order = probabilities.argsort(descending=True, stable=True)
        cumulative = probabilities[order].cumsum(0)
        index = int(torch.searchsorted(cumulative, uniform[row] * cumulative[-1], right=True))
        chosen.append(int(order[min(index, len(order) - 1)]))
    return torch.tensor(chosen, dtype=torch.long)
