"""From logits to each request's next token: penalties, its grammar, its own randomness, log-probabilities."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from engine.generation.grammar.matcher import MaskFiller, Matcher
from engine.values import SamplingParams
from kernels.sampling import sample

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A token; where asked for, its log-probability and the best ones as (id, log-probability), in descending order."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """What one request has asked for, and what it has been given so far."""

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self.params = params
        self.matcher: Matcher | None = None  # set before the first token of an answer that has a grammar
        self.has_penalty = (
            params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1
        )
        self._seed = secrets.randbits(64) if params.seed is None else params.seed & _MASK
        self._num_drawn = 0
        self._prompt = frozenset(prompt_token_ids) if self.has_penalty else frozenset()
        self._counts: Counter[int] = Counter()

    @classmethod
    def greedy(cls) -> Self:
        """For a row that nobody reads."""
        return cls(SamplingParams(), ())

    def uniform(self) -> float:
        """A number in [0, 1) for the next token, by seed and position: batch mates and retries change no draw."""
        return _splitmix(self._seed ^ _splitmix(self._num_drawn + 1)) / 2**64

    def note(self, token_id: int) -> None:
        """The next token was chosen."""
        self._num_drawn += 1
        if self.has_penalty:
            self._counts[token_id] += 1
        if self.matcher is not None:
            self.matcher.accept(token_id)

    def penalise(self, logits: Tensor) -> None:
        """Apply the penalties to one row [V] float32, in place."""
        if self.params.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._prompt | self._counts.keys()), device=logits.device)
            values, penalty = logits[seen], self.params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if self._counts:
            ids = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(list(self._counts.values()), device=logits.device, dtype=torch.float32)
            logits[ids] -= self.params.presence_penalty + self.params.frequency_penalty * counts


def choose(logits: Tensor, samplers: Sequence[Sampler], masks: MaskFiller | None = None) -> list[Choice]:
    """The next token of each row of `logits` ([N, V], any float dtype and device). Each sampler notes its token.

    A batch that is greedy and asks for nothing else costs one pass over the logits. `masks` is needed where a sampler
    has a matcher.
    Raises: ValueError when a row holds NaN or infinity, in which case no sampler has noted anything.
    """
    scores = _with_penalties(logits, samplers)
    bound = [row for row, sampler in enumerate(samplers) if sampler.matcher is not None]
    drawn = [row for row in bound if samplers[row].params.temperature > 0]
    if drawn:
        scores = scores.clone() if scores is logits else scores
        scores[drawn] = _masked(scores, samplers, drawn, masks)
    token_ids = _sample(scores, samplers)
    # The best token is mostly one that may follow, and asking for one costs far less than a mask of all.
    refused = [row for row in bound if row not in drawn and not _is_allowed(samplers[row], token_ids[row])]
    if refused:
        again = _sample(_masked(scores, samplers, refused, masks), [samplers[row] for row in refused])
        for row, token_id in zip(refused, again, strict=True):
            token_ids[row] = token_id
    for sampler, token_id in zip(samplers, token_ids, strict=True):
        sampler.note(token_id)
    choices = [Choice(token_id) for token_id in token_ids]
    for row, sampler in enumerate(samplers):
        if sampler.params.logprobs is not None:
            choices[row] = score(logits[row : row + 1], [token_ids[row]], sampler.params.logprobs)[0]
    return choices


def _with_penalties(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """`logits` itself where nobody has a penalty."""
    penalised = [row for row, sampler in enumerate(samplers) if sampler.has_penalty]
    if not penalised:
        return logits
    scores = logits.float()
    if scores is logits:
        scores = logits.clone()
    for row in penalised:
        samplers[row].penalise(scores[row])
    return scores


def _masked(scores: Tensor, samplers: Sequence[Sampler], rows: list[int], masks: MaskFiller | None) -> Tensor:
    """[len(rows), V]: a copy of these rows, minus infinity where a token may not follow."""
    assert masks is not None
    matchers = [matcher for row in rows if (matcher := samplers[row].matcher) is not None]
    return scores[rows].masked_fill_(masks.forbidden(matchers).to(scores.device), float("-inf"))


def _is_allowed(sampler: Sampler, token_id: int) -> bool:
    return sampler.matcher is None or sampler.matcher.num_allowed([token_id]) == 1


def _sample(scores: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    params, device = [sampler.params for sampler in samplers], scores.device
    token_ids: list[int] = sample(
        scores,
        torch.tensor([each.temperature for each in params], device=device),
        torch.tensor([each.top_k for each in params], device=device),
        torch.tensor([each.top_p for each in params], device=device),
        torch.tensor([each.min_p for each in params], device=device),
        torch.tensor([sampler.uniform() for sampler in samplers], dtype=torch.float64, device=device),
    ).tolist()
    return token_ids


def score(logits: Tensor, token_ids: Sequence[int], num_best: int) -> list[Choice]:
    """Log-probability of token i after row i of `logits` [N, V], and of the `num_best` best tokens there."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(list(token_ids), device=logits.device)[:, None])[:, 0].tolist()
    if num_best == 0:
        return [Choice(token_id, logprob) for token_id, logprob in zip(token_ids, own, strict=True)]
    best = logprobs.topk(min(num_best, logits.shape[1]))
    return [
        Choice(token_id, logprob, tuple(zip(ids, values, strict=True)))
        for token_id, logprob, ids, values in zip(
            token_ids, own, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def _splitmix(x: int) -> int:
    """SplitMix64's mixing of a 64-bit number (Steele et al., OOPSLA 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
