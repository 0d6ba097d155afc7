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

    def uniform(self, num_ahead: int = 0) -> float:
        """A number in [0, 1) for the token after the next `num_ahead`, by seed and position: batch mates, drafts and
        retries change no draw.
        """
        return _splitmix(self._seed ^ _splitmix(self._num_drawn + num_ahead + 1)) / 2**64

    def note(self, token_id: int) -> None:
        """The next token was chosen."""
        self._num_drawn += 1
        if self.has_penalty:
            self._counts[token_id] += 1
        if self.matcher is not None:
            self.matcher.accept(token_id)

    def penalise(self, logits: Tensor, ahead: Sequence[int] = ()) -> None:
        """Apply the penalties to one row [V] float32, in place, as if the tokens `ahead` had been chosen too."""
        chosen = self._counts + Counter(ahead)
        if self.params.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._prompt | chosen.keys()), device=logits.device)
            values, penalty = logits[seen], self.params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if chosen:
            ids = torch.tensor(list(chosen), device=logits.device)
            counts = torch.tensor(list(chosen.values()), device=logits.device, dtype=torch.float32)
            logits[ids] -= self.params.presence_penalty + self.params.frequency_penalty * counts


# One row of logits: whose it is, and the drafts before it.
_Row = tuple[Sampler, Sequence[int]]


def choose(
    logits: Tensor,
    samplers: Sequence[Sampler],
    drafts: Sequence[Sequence[int]] | None = None,
    masks: MaskFiller | None = None,
    best: Tensor | None = None,
) -> list[list[Choice]]:
    """The next tokens of each request: one, and with drafts those that it would have chosen anyway and one more.

    Every row is drawn as if the drafts before it were chosen, with the random number of its position; the first that
    differs from its draft ends the request's tokens. So drafts change no answer, greedy or sampled. Each sampler notes
    its tokens. A batch that is greedy and asks for nothing else costs one pass over the logits.

    Args:
        logits: [R, V], any float dtype and device; 1 + len(drafts[i]) rows of request i, one request after another.
        drafts: per request the tokens that were computed ahead; None for none. With a matcher they may follow.
        masks: needed where a sampler has a matcher.
        best: [R] int64, the best token of each row where that is known, -1 where it is no finite number.
    Raises: ValueError when a row holds NaN or infinity, in which case no sampler has noted anything.
    """
    drafts = drafts or [()] * len(samplers)
    rows = [
        (sampler, draft[:n]) for sampler, draft in zip(samplers, drafts, strict=True) for n in range(len(draft) + 1)
    ]
    scores = _with_penalties(logits, rows)
    bound = [row for row, (sampler, _) in enumerate(rows) if sampler.matcher is not None]
    drawn = [row for row in bound if rows[row][0].params.temperature > 0]
    if drawn:
        scores = scores.clone() if scores is logits else scores
        scores[drawn] = _masked(scores, rows, drawn, masks)
    is_greedy = scores is logits and all(sampler.params.temperature == 0 for sampler, _ in rows)
    token_ids = _read(best) if best is not None and is_greedy else _sample(scores, rows)
    # The best token is mostly one that may follow, and asking for one costs far less than a mask of all.
    greedy = [row for row in bound if row not in drawn]
    refused = {
        sampler for row in greedy for sampler, ahead in [rows[row]] if not _may_follow(sampler, ahead, token_ids[row])
    }
    if refused:
        again = [row for row in greedy if rows[row][0] in refused]
        allowed = _sample(_masked(scores, rows, again, masks), [rows[row] for row in again])
        for row, token_id in zip(again, allowed, strict=True):
            token_ids[row] = token_id
    choices: list[list[Choice]] = []
    first = 0
    for sampler, draft in zip(samplers, drafts, strict=True):
        mine = token_ids[first : first + len(draft) + 1]
        num_right = next((n for n, token in enumerate(draft) if mine[n] != token), len(draft))
        kept = mine[: num_right + 1]
        for number, token_id in enumerate(kept, start=1):
            sampler.note(token_id)
            if sampler.matcher is not None and sampler.matcher.is_complete:  # nor would an end token be asked for
                kept = kept[:number]
                break
        if sampler.params.logprobs is None:
            choices.append([Choice(token_id) for token_id in kept])
        else:
            choices.append(score(logits[first : first + len(kept)], kept, sampler.params.logprobs))
        first += len(draft) + 1
    return choices


def _with_penalties(logits: Tensor, rows: Sequence[_Row]) -> Tensor:
    """`logits` itself where nobody has a penalty."""
    penalised = [row for row, (sampler, _) in enumerate(rows) if sampler.has_penalty]
    if not penalised:
        return logits
    scores = logits.float()
    if scores is logits:
        scores = logits.clone()
    for row in penalised:
        sampler, ahead = rows[row]
        sampler.penalise(scores[row], ahead)
    return scores


def _masked(scores: Tensor, rows: Sequence[_Row], chosen: list[int], masks: MaskFiller | None) -> Tensor:
    """[len(chosen), V]: a copy of these rows, all of some requests, minus infinity where a token may not follow."""
    assert masks is not None
    matchers: list[Matcher] = []
    drafts: list[Sequence[int]] = []
    for sampler, ahead in (rows[row] for row in chosen):
        assert sampler.matcher is not None
        if not ahead:
            matchers.append(sampler.matcher)
            drafts.append(())
        drafts[-1] = ahead  # its last row has the whole draft before it
    return scores[chosen].masked_fill_(masks.forbidden(matchers, drafts).to(scores.device), float("-inf"))


def _may_follow(sampler: Sampler, ahead: Sequence[int], token_id: int) -> bool:
    matcher = sampler.matcher
    return matcher is None or matcher.num_allowed([*ahead, token_id]) > len(ahead)


def _sample(scores: Tensor, rows: Sequence[_Row]) -> list[int]:
    params, device = [sampler.params for sampler, _ in rows], scores.device
    token_ids: list[int] = sample(
        scores,
        torch.tensor([each.temperature for each in params], device=device),
        torch.tensor([each.top_k for each in params], device=device),
        torch.tensor([each.top_p for each in params], device=device),
        torch.tensor([each.min_p for each in params], device=device),
        torch.tensor([sampler.uniform(len(ahead)) for sampler, ahead in rows], dtype=torch.float64, device=device),
    ).tolist()
    return token_ids


def _read(best: Tensor) -> list[int]:
    token_ids: list[int] = best.tolist()
    if -1 in token_ids:
        raise ValueError(f"choose: row {token_ids.index(-1)} of the logits has no finite maximum (NaN or infinity)")
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
