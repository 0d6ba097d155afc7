"""Sampling in plain PyTorch and float64, one full sort and noise for each token: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.sampling.noise import gumbel, row_key, token_hash


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


def noise_reference(seed: int, position: int, width: int) -> Tensor:
    """[width] float64: the noise of each token of a row."""
    key = row_key(seed, position)
    return torch.tensor([gumbel(token_hash(key, token)) for token in range(width)], dtype=torch.float64)


def sample_reference(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Tensor:
    """See `sample`, without its check: the largest sum of log-probability and noise, the lowest id among equals."""
    chosen = []
    for row in range(len(logits)):
        if not bool(logits[row].max().isfinite()):
            chosen.append(-1)
            continue
        if temperature[row] == 0:
            chosen.append(int(logits[row].argmax()))
            continue
        settings = float(temperature[row]), int(top_k[row]), float(top_p[row]), float(min_p[row])
        scores = probabilities_reference(logits[row], *settings).log()
        scores += noise_reference(int(seed[row]), int(position[row]), len(scores))
        chosen.append(int((scores == scores.max()).nonzero()[0]))
    return torch.tensor(chosen, dtype=torch.long)
