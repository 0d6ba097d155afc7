"""From logits to each request's next token: penalties, its grammar, its own randomness, log-probabilities."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from engine.generation.grammar.matcher import MaskFiller, Matcher
from engine.generation.seen_tokens import SeenTokens
from engine.generation.verification import num_right, verify
from engine.values import SamplingParams
from kernels.penalise import penalise
from kernels.sampling import sample


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
        seed = secrets.randbits(64) if params.seed is None else params.seed
        # With the place of a token it makes its noise: batch mates, drafts and retries change no draw. As int64.
        self.seed = (seed + 2**63) % 2**64 - 2**63
        self.num_drawn = 0
        self.seen: SeenTokens | None = None  # by requests with penalties alone
        if params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1:
            self.seen = SeenTokens(prompt_token_ids if params.repetition_penalty != 1 else ())

    @classmethod
    def greedy(cls) -> Self:
        """For a row that nobody reads."""
        return cls(SamplingParams(), ())

    def note(self, token_id: int) -> None:
        """The next token was chosen."""
        self.num_drawn += 1
        if self.seen is not None:
            self.seen.add(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)


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

    Every row is drawn as if the drafts before it were chosen, with the noise of its position; the first that differs
    from its draft ends the request's tokens. So drafts change no answer, greedy or sampled. Each sampler notes
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
    ids = best if best is not None and is_greedy else _sample(scores, rows)
    right: list[int] | None = None
    if ids.device.type == "cpu" or bound or not any(drafts):
        # The ids are here, or a grammar may still change them: comparing lists costs less than any operation does.
        token_ids = ids.tolist()
    else:
        token_ids, right = verify(ids, drafts)
    _check(token_ids)
    # The best token is mostly one that may follow, and asking for one costs far less than a mask of all.
    greedy = [row for row in bound if row not in drawn]
    refused = {
        sampler for row in greedy for sampler, ahead in [rows[row]] if not _may_follow(sampler, ahead, token_ids[row])
    }
    if refused:
        again = [row for row in greedy if rows[row][0] in refused]
        allowed = _sample(_masked(scores, rows, again, masks), [rows[row] for row in again]).tolist()
        _check(allowed)
        for row, token_id in zip(again, allowed, strict=True):
            token_ids[row] = token_id
    choices: list[list[Choice]] = []
    first = 0
    for request, (sampler, draft) in enumerate(zip(samplers, drafts, strict=True)):
        mine = token_ids[first : first + len(draft) + 1]
        kept = mine[: 1 + (num_right(mine, draft) if right is None else right[request])]
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
    penalised = [(row, sampler, ahead) for row, (sampler, ahead) in enumerate(rows) if sampler.seen is not None]
    if not penalised:
        return logits
    scores = logits.float()
    if scores is logits:
        scores = logits.clone()
    tables = []
    strengths = np.zeros((3, len(rows)), np.float32)
    strengths[0] = 1
    for row, sampler, ahead in penalised:
        assert sampler.seen is not None
        table, params = sampler.seen.table(ahead), sampler.params
        tables.append(np.concatenate([np.full((1, table.shape[1]), row, np.int32), table]))
        strengths[:, row] = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
    seen = torch.from_numpy(np.concatenate(tables, axis=1))
    penalise(scores, seen.to(scores.device), torch.from_numpy(strengths).to(scores.device))
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


def _sample(scores: Tensor, rows: Sequence[_Row]) -> Tensor:
    """[R] int64 on the device, -1 where a row has no answer. Settings go there by one copy; nothing waits for it."""
    reals = [(sampler.params.temperature, sampler.params.top_p, sampler.params.min_p) for sampler, _ in rows]
    wholes = [
        (min(sampler.params.top_k, scores.shape[1]), sampler.seed, sampler.num_drawn + len(ahead))
        for sampler, ahead in rows
    ]
    whole, real = np.array(wholes, np.int64), np.array(reals, np.float32)
    packed = np.concatenate([np.ascontiguousarray(each.T).view(np.uint8).ravel() for each in (whole, real)])
    numbers = torch.from_numpy(packed).to(scores.device)
    top_k, seed, position = numbers[: whole.nbytes].view(torch.int64).view(3, -1)
    temperature, top_p, min_p = numbers[whole.nbytes :].view(torch.float32).view(3, -1)
    return sample(scores, temperature, top_k, top_p, min_p, seed, position, is_checked=False)


def _check(token_ids: Sequence[int]) -> None:
    if -1 in token_ids:
        raise ValueError(f"choose: row {token_ids.index(-1)} of the logits has no finite maximum (NaN or infinity)")


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
