"""One answer in flight, from what was asked to the deltas that its reader gets."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from torch import Tensor

from engine.generation.answer import Answer
from engine.generation.drafts import Drafting
from engine.generation.graphs.draws import Draw
from engine.generation.sampler import Choice, Sampler, score
from engine.generation.sequence import Sequence
from engine.generation.stream import Mailbox
from engine.values import Grammar, TokenDelta


@dataclass(slots=True, eq=False)
class Job:
    """A request for an answer, which matches `grammar`.

    `is_done` is set by whoever ends it: the engine's thread, a cancel or a deadline.
    """

    sequence: Sequence
    answer: Answer
    sampler: Sampler
    mailbox: Mailbox
    drafting: Drafting | None = None
    grammar: Grammar | None = None
    is_done: bool = False
    has_started: bool = False
    prompt_scores: dict[int, Choice] = field(default_factory=dict)  # by position in the prompt

    @property
    def id(self) -> str:
        """The request's."""
        return self.sequence.id

    @property
    def needs_no_host(self) -> bool:
        """Whether the device can choose its next token, and go on with that, before anybody has seen it."""
        sampler = self.sampler
        is_free = self.grammar is None and sampler.matcher is None and sampler.seen is None
        return is_free and sampler.params.logprobs is None

    def draw(self, num_ahead: int) -> Draw:
        """How the token after the next `num_ahead` is drawn, as `sampler.choose` would."""
        sampler = self.sampler
        params, position = sampler.params, sampler.num_drawn + num_ahead
        return Draw(params.temperature, params.top_k, params.top_p, params.min_p, sampler.seed, position)

    def start(self) -> None:
        """It is part of a step; only the first counts."""
        if not self.has_started:
            self.has_started = True
            self.answer.start()

    def guess(self, max_tokens: int) -> list[int]:
        """At most so many tokens that may come next, as far as the grammar lets them."""
        if self.drafting is None:
            return []
        guess = self.drafting.lookup.draft(max_tokens)
        matcher = self.sampler.matcher
        return guess if matcher is None else guess[: matcher.num_allowed(guess)]

    def note_drafts(self, choices: SequenceOf[Choice]) -> None:
        """A step is over that chose these tokens; its drafts are still the sequence's."""
        if self.drafting is not None and choices:
            self.drafting.rate.observe(len(self.sequence.drafts), len(choices) - 1)
            self.drafting.lookup.extend(choice.token_id for choice in choices)

    def score_prompt(self, logits: Tensor) -> None:
        """Note the log-probabilities of the prompt's own tokens, as far as these rows of a step tell them.

        `logits` [N, V]: one row for each token that the step computes, from the first that was not computed.
        """
        start = self.sequence.num_computed + 1
        stop = min(start + len(logits), self.sequence.num_prompt_tokens)
        if stop <= start:
            return
        num_best = self.sampler.params.prompt_logprobs or 0
        scores = score(logits[: stop - start], self.sequence.tokens[start:stop], num_best)
        self.prompt_scores.update(zip(range(start, stop), scores, strict=True))

    def delta(self, choice: Choice, *, is_latest: bool) -> TokenDelta:
        """What the reader gets for a chosen token; `is_latest`: the step chose none behind it."""
        if self.answer.num_tokens == 0:
            scores = [self.prompt_scores.get(position) for position in range(self.sequence.num_prompt_tokens)]
            self.answer.report_prompt(self.sequence.num_cached_tokens, scores if self.prompt_scores else ())
        matcher = self.sampler.matcher
        # The matcher stands behind all tokens of the step.
        return self.answer.accept(choice, is_complete=is_latest and matcher is not None and matcher.is_complete)
