"""Choosing the next token of each request from its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.values import SamplingParams

# Candidates sorted first for top_p; the whole vocabulary is sorted only where these do not hold enough mass.
NUM_CANDIDATES = 1024


class Sampler:
    """One request's source of randomness: an equal seed draws equally, whatever else is in the batch."""

    def __init__(self, params: SamplingParams) -> None:
        self.is_greedy = params.temperature == 0
        self._params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed & (2**64 - 1))

    def draw(self, logits: Tensor) -> int:
        """A token id from `logits` ([V] float32, CPU) after temperature, top_k and top_p, in this order."""
        # The inverse of the distribution takes one number per token, so a draw depends on nothing but its position.
        probabilities, token_ids = self._candidates(logits.double() / self._params.temperature)
        cumulative = probabilities.cumsum(0)
        point = torch.rand(1, generator=self._generator, dtype=torch.float64) * cumulative[-1]
        index = min(int(torch.searchsorted(cumulative, point, right=True)), len(cumulative) - 1)
        return index if token_ids is None else int(token_ids[index])

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities that may be drawn, and their token ids (None: all, in order)."""
        vocabulary = len(logits)
        top_k = min(self._params.top_k or vocabulary, vocabulary)
        if self._params.top_p >= 1:
            if top_k == vocabulary:
                return logits.softmax(0), None
            best, token_ids = logits.topk(top_k)
            return best.softmax(0), token_ids
        best, token_ids = logits.topk(min(top_k, NUM_CANDIDATES))
        total = logits.logsumexp(0) if top_k == vocabulary else logits.topk(top_k).values.logsumexp(0)
        probabilities = (best - total).exp()
        if len(best) < top_k and float(probabilities.sum()) < self._params.top_p:
            best, token_ids = logits.topk(top_k)
            probabilities = (best - total).exp()
        # The smallest set that reaches top_p: a token stays while those before it have not reached it.
        keep = probabilities.cumsum(0) - probabilities < self._params.top_p
        keep[0] = True
        return probabilities[keep], token_ids[keep]


def choose_tokens(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """Next token id of each row of `logits` ([N, V] float32, any device)."""
    chosen: list[int] = logits.argmax(-1).tolist()
    drawing = [row for row, sampler in enumerate(samplers) if not sampler.is_greedy]
    if drawing:
        for row, row_logits in zip(drawing, logits[drawing].cpu(), strict=True):
            chosen[row] = samplers[row].draw(row_logits)
    return chosen
