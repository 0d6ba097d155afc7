"""Prompt-lookup drafts: what an answer is likely to copy next, guessed without a model. No torch.

An answer from passages repeats their words. Where its last tokens stand in a passage (or earlier in the conversation),
the tokens after that place are put into the next step beside the token that is due, and kept as far as the model would
have chosen them itself. (Saxena 2023, prompt lookup decoding; arXiv:2304.04487 for copying from retrieved text.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat

# Tokens that must agree before a place counts as one that is being copied, the longer first.
NGRAMS = (3, 2)
# What a step forgets of earlier outcomes, so that a request's rate follows the part of the text it is in.
_MEMORY = 0.9
# Where two or three tokens agree the next one usually does too; two wrong drafts tell an answer that does not copy.
_PRIOR_HITS, _PRIOR_TRIES = 1.5, 2.0
# A draft must bring this much more than its time is worth elsewhere: tables of step times are not exact.
_MARGIN = 1.2
# Beside more requests than this nobody drafts to find out whether copying has begun again.
_MAX_PROBING_REQUESTS = 4
_PROBE_EVERY = 16


_Places = dict[tuple[int, ...], tuple[int, int]]  # the tokens before a place, to its text and position


class PromptLookup:
    """Places where one answer's last tokens were seen: in its passages first, then in prompt and answer."""

    def __init__(self, passages: Iterable[Sequence[int]], prompt: Sequence[int]) -> None:
        """Token ids of each passage, and of the whole prompt."""
        self._texts: list[list[int]] = [*(list(passage) for passage in passages), list(prompt)]
        self._history = self._texts[-1]
        last = len(self._texts) - 1
        self._passage_places: _Places = {}
        for text in reversed(range(last)):  # the best passage is noted last, and stands
            self._passage_places |= _places(self._texts[text], text)
        self._history_places = _places(self._history, last)
        self._next: tuple[int, int] | None = None  # text and position that the answer is copying from

    def extend(self, tokens: Iterable[int]) -> None:
        """The answer has gone on by these tokens."""
        for token in tokens:
            if self._next is not None:
                text, position = self._next
                is_copied = position < len(self._texts[text]) and self._texts[text][position] == token
                self._next = (text, position + 1) if is_copied else None
            # Only now: the end of the history is no place to copy from before something follows it.
            place = (len(self._texts) - 1, len(self._history))
            for length in NGRAMS:
                if len(self._history) >= length:
                    self._history_places[tuple(self._history[-length:])] = place
            self._history.append(token)

    def draft(self, max_tokens: int) -> list[int]:
        """At most so many tokens that may come next; empty where the last ones were not seen before."""
        if max_tokens < 1:
            return []
        place = self._next or self._find()
        if place is None:
            return []
        self._next = place
        text, position = place
        return self._texts[text][position : position + max_tokens]

    def _find(self) -> tuple[int, int] | None:
        last = tuple(self._history[-NGRAMS[0] :])
        for length in NGRAMS:
            if len(last) < length:
                continue
            for places in (self._passage_places, self._history_places):
                place = places.get(last[-length:])
                if place is not None:
                    return place
        return None


def _places(tokens: Sequence[int], text: int) -> _Places:
    """The latest place behind every run of NGRAMS tokens. In C's loops: a prompt has thousands."""
    places: _Places = {}
    for length in NGRAMS:
        runs = zip(*(tokens[first:] for first in range(length)), strict=False)
        places.update(zip(runs, zip(repeat(text), range(length, len(tokens)), strict=False), strict=False))
    return places


class DraftRate:
    """How often one request's drafts were right lately."""

    def __init__(self) -> None:
        self._hits = _PRIOR_HITS
        self._tries = _PRIOR_TRIES
        self._steps_without = 0

    @property
    def acceptance(self) -> float:
        """Probability that the next drafted token is right, in (0, 1)."""
        return self._hits / self._tries

    @property
    def may_probe(self) -> bool:
        """Whether it is time to find out anew."""
        return self._steps_without >= _PROBE_EVERY

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """A step is over: of the drafted tokens so many were kept; what follows a wrong one was not tried."""
        if num_drafted == 0:
            self._steps_without += 1
            return
        self._steps_without = 0
        tried = min(num_accepted + 1, num_drafted)
        # The prior stays, so that no rate becomes 0 or 1.
        self._hits = _PRIOR_HITS + _MEMORY * (self._hits - _PRIOR_HITS) + num_accepted
        self._tries = _PRIOR_TRIES + _MEMORY * (self._tries - _PRIOR_TRIES) + tried


@dataclass(slots=True)
class Drafting:
    """What one request drafts with."""

    lookup: PromptLookup
    rate: DraftRate


def may_pay(rates: Sequence[DraftRate], step_s: Sequence[float]) -> bool:
    """Whether any draft of requests with these rates can be granted by `share_drafts`: before guesses are made.

    Args:
        step_s: seconds of a step of len(rates) and len(rates) + 1 tokens.
    """
    if len(rates) <= _MAX_PROBING_REQUESTS:
        return True
    return max(rate.acceptance for rate in rates) >= _least_chance(len(rates), step_s, 0)


def share_drafts(offers: Sequence[tuple[DraftRate, int]], step_s: Sequence[float]) -> list[int]:
    """How many drafted tokens each request may put into the next step.

    A token is worth its time when the step's extra seconds buy more expected tokens than the step as it is: the
    n-th draft of a request is right with its rate to the n-th power.

    Args:
        offers: per decoding request its rate, and how many tokens it can draft (0 for none).
        step_s: seconds of a step of len(offers), len(offers) + 1, ... tokens; its length bounds the drafts of all.
    """
    granted = [0] * len(offers)
    if not offers:
        return granted
    total = 0
    candidates = sorted(
        ((rate.acceptance**n, index) for index, (rate, most) in enumerate(offers) for n in range(1, most + 1)),
        reverse=True,
    )
    for chance, index in candidates:
        if total + 1 >= len(step_s) or chance < _least_chance(len(offers), step_s, total):
            break
        granted[index] += 1
        total += 1
    if len(offers) <= _MAX_PROBING_REQUESTS and total + 1 < len(step_s):
        probing = next((i for i, (rate, most) in enumerate(offers) if most and not granted[i] and rate.may_probe), None)
        if probing is not None:
            granted[probing] = 1
    return granted


def _least_chance(num_requests: int, step_s: Sequence[float], total: int) -> float:
    """What one more draft beside `total` others must have: its time would bring so many tokens without drafts."""
    return _MARGIN * num_requests / step_s[0] * (step_s[total + 1] - step_s[total])
