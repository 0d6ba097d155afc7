"""Sampling by torch operations: no sort of the whole vocabulary unless the distribution is almost flat."""

from __future__ import annotations

import torch
from torch import Tensor

# Candidates sorted first; the whole vocabulary is sorted only where a row's draw lies beyond them.
NUM_CANDIDATES = 256


def sample_torch(
    logits: Tensor,
    best: Tensor,
    chosen: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniform: Tensor,
) -> Tensor:
    """See `sample`. `best` and `chosen` [N] are the best logit and token of each row."""
    if not bool(best.isfinite().all()):
        bad = int((~best.isfinite()).nonzero()[0])
        raise ValueError(f"sample: row {bad} of the logits has no finite maximum (NaN or infinity)")
    drawn = (temperature > 0).nonzero().flatten()
    if len(drawn) == 0:
        return chosen
    parameters = tuple(tensor[drawn] for tensor in (temperature, top_k, top_p, min_p, uniform))
    chosen = chosen.clone()
    chosen[drawn] = _draw(logits[drawn], parameters, NUM_CANDIDATES)
    return chosen


def _draw(logits: Tensor, parameters: tuple[Tensor, ...], num_candidates: int) -> Tensor:
    """[R] ids. Rows whose answer the candidates do not hold are drawn again from the whole vocabulary."""
    temperature, top_k, top_p, min_p, uniform = parameters
    vocabulary = logits.shape[1]
    num_candidates = min(num_candidates, vocabulary)
    scaled = logits.double() / temperature.double()[:, None]  # [R, V]
    if num_candidates == vocabulary:
        best, ids = torch.sort(scaled, dim=-1, descending=True, stable=True)
    else:
        best, ids = scaled.topk(num_candidates)
    limit = torch.where(top_k > 0, top_k, vocabulary)[:, None]
    rank = torch.arange(num_candidates, device=logits.device)[None]
    # Of all tokens, or of the k best where those are among the candidates.
    total = torch.where(
        limit[:, 0] <= num_candidates,
        best.masked_fill(rank >= limit, float("-inf")).logsumexp(-1),
        scaled.logsumexp(-1),
    )
    probabilities = (best - total[:, None]).exp()
    before = probabilities.cumsum(-1) - probabilities
    kept = (rank < limit) & (before < top_p.double()[:, None])
    kept &= probabilities >= min_p.double()[:, None] * probabilities[:, :1]
    kept[:, 0] = True
    # The candidates decide where something was cut off within them, or nothing is left outside.
    is_whole = (~kept).any(-1) | (num_candidates == vocabulary)
    weights = probabilities.masked_fill(~kept, 0.0).cumsum(-1)
    point = uniform.double() * torch.where(is_whole, weights[:, -1], torch.ones_like(uniform, dtype=torch.double))
    index = torch.searchsorted(weights, point[:, None], right=True).flatten()
    last = kept.sum(-1) - 1
    # Where something is cut off beyond the candidates, what is kept in all is not known here: drawn anew too.
    is_cut = (top_p < 1) | (min_p > 0) | (limit[:, 0] < vocabulary)
    beyond = (~is_whole & ((index > last) | is_cut)) | ((limit[:, 0] > num_candidates) & (limit[:, 0] < vocabulary))
    chosen = ids.gather(1, torch.minimum(index, last)[:, None]).flatten()
    if bool(beyond.any()):
        chosen[beyond] = _draw(logits[beyond], tuple(tensor[beyond] for tensor in parameters), vocabulary)
    return chosen
