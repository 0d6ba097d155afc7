"""Sampling by torch operations, all rows at once: a CPU without a compiler, or a GPU without Triton.

Nothing is sorted. A row draws among all its tokens; if the one that won would not have been kept by top_k and top_p,
those that are kept all come before it in order of probability, and the row draws again among these. A draw among more
tokens that falls on one of fewer is the draw among the fewer, so the result is that of a sort.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.sampling.noise import gumbel_torch, row_keys_torch

# No token whose scaled logit is that far below the best one's can win.
NOISE_RANGE = 27.0


def sample_torch(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Tensor:
    """See `sample`, without its check."""
    best, chosen = logits.max(-1)
    is_finite = best.isfinite()
    chosen = chosen.masked_fill(~is_finite, -1)
    drawn = (is_finite & (temperature > 0)).nonzero().flatten()
    if len(drawn):
        parameters = (each[drawn] for each in (best, temperature, top_k, top_p, min_p, seed, position))
        chosen[drawn] = _draw(logits[drawn], *parameters)
    return chosen


def _draw(
    logits: Tensor,
    best: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
) -> Tensor:
    """[R] ids, of rows with a finite maximum and a temperature."""
    width = logits.shape[1]
    ids = torch.arange(width, device=logits.device)
    scaled = (logits.double() - best.double()[:, None]) / temperature.double()[:, None]  # [R, V], the best one's is 0
    limit = torch.where(top_k > 0, top_k, width).clamp(max=width)
    scores = _noisy(scaled, min_p, seed, position)
    weights = scaled.exp()
    reach = top_p.double() * _mass_of_best(weights, limit)
    while True:
        chosen = (scores == scores.amax(-1, keepdim=True)).int().argmax(-1)  # the first of equals
        value = scaled.gather(1, chosen[:, None])
        is_before = (scaled > value) | ((scaled == value) & (ids < chosen[:, None]))
        mass = weights.masked_fill(~is_before, 0.0).sum(-1)
        is_left_out = (is_before.sum(-1) >= limit) | ((top_p < 1) & (mass >= reach))
        is_left_out &= is_before.any(-1)  # the best token always stays
        if not bool(is_left_out.any()):
            return chosen
        scores.masked_fill_(is_left_out[:, None] & ~is_before, float("-inf"))


def _noisy(scaled: Tensor, min_p: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    """Scaled logits with noise, minus infinity for those that min_p leaves out or that cannot win."""
    may_win = (scaled > -NOISE_RANGE) & (scaled >= min_p.double().log()[:, None])
    rows, ids = may_win.nonzero(as_tuple=True)
    noise = gumbel_torch(row_keys_torch(seed, position)[rows], ids)
    return torch.full_like(scaled, float("-inf")).index_put_((rows, ids), scaled[rows, ids] + noise)


def _mass_of_best(weights: Tensor, limit: Tensor) -> Tensor:
    """[R]: the sum of each row's `limit` largest weights."""
    total, width = weights.sum(-1), weights.shape[1]
    is_cut = limit < width
    most = int(limit.masked_fill(~is_cut, 0).max())
    if most == 0:
        return total
    sums = weights.topk(most, sorted=True).values.cumsum(-1)
    return torch.where(is_cut, sums.gather(1, limit.clamp(max=most)[:, None] - 1)[:, 0], total)
