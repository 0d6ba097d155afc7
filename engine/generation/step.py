"""One forward step, as the scheduler chooses it and the runner executes it, and how large it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.generation.sequence import BLOCK_TOKENS, Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """What the runner executes: `num_tokens[i]` new tokens of `sequences[i]`, whose block table has room for them.

    `is_ahead`: it follows a step that is not finished, so each sequence will stand one token further than it says.
    """

    sequences: tuple[Sequence, ...]
    num_tokens: tuple[int, ...]
    is_ahead: bool = False

    @property
    def num_total_tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(self.num_tokens)

    def completes(self, index: int) -> bool:
        """Whether it computes all tokens of sequence `index`, so that the next one can be chosen."""
        sequence = self.sequences[index]
        return sequence.num_computed + self.num_tokens[index] == len(sequence.tokens) + len(sequence.drafts)


class TokenBudget(Protocol):
    """How large a step may be."""

    def prefill_tokens(self, num_decode_tokens: int) -> int:
        """Prompt tokens that may join a step with that many decode tokens; at least BLOCK_TOKENS."""


@dataclass(frozen=True, slots=True)
class FixedBudget:
    """A TokenBudget of so many tokens in all."""

    max_batched_tokens: int

    def prefill_tokens(self, num_decode_tokens: int) -> int:
        """See TokenBudget."""
        return max(self.max_batched_tokens - num_decode_tokens, BLOCK_TOKENS)
