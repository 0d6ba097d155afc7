"""How many prompt tokens may join a step without making the answers in progress wait too long for their next token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from engine.generation.sequence import BLOCK_TOKENS

# Share of a new observation in the running averages.
_LEARNING_RATE = 0.1
# How much sooner drafts are blamed for a step that took long than the answers beside them, whose cost is known from
# every other step.
_DRAFT_DOUBT = 16


class StepBudget:
    """A TokenBudget from measured step times: as many prompt tokens as keep a step within `max_stretch` decodes.

    What a prompt token costs grows with the context it attends to, so the start-up table is corrected by what steps
    take while serving: upwards at once, because one slow step is one late token for everybody, downwards slowly.
    Source: the stall-free batching of Sarathi-Serve, arXiv:2403.02310, with the chunk size measured, not configured.
    """

    def __init__(
        self, step_s: Mapping[int, float], *, max_batched_tokens: int, max_stretch: float, least_chunk_s: float = 0.0
    ) -> None:
        """`step_s` holds seconds of a step by its number of tokens, for at least one number.

        `least_chunk_s`: no step with prompt tokens takes less, however few they are. Where answers alone are much
        quicker, as recorded steps are on a GPU, that is what a chunk may stretch, and the table alone says how far: a
        step that waits for its launches takes more for adapters or a first shape, and none of that for its tokens.
        """
        self._sizes = sorted(step_s)
        self._seconds: list[float] = []
        for size in self._sizes:  # more tokens never cost less; a measurement that says so was disturbed
            self._seconds.append(max(step_s[size], self._seconds[-1] if self._seconds else 0.0))
        self._max_batched_tokens = max_batched_tokens
        self._max_stretch = max_stretch
        self._least_chunk_s = least_chunk_s
        # What the table's seconds are multiplied by: of the answers' own tokens, and of what drafts add to them.
        self._decode_factor = self._draft_factor = 1.0
        self._prompt_token_s: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Prompt tokens a second in the largest step that was measured."""
        return self._sizes[-1] / max(self._seconds[-1], 1e-7)

    def prefill_tokens(self, num_decode_tokens: int) -> int:
        """Prompt tokens that may join a step with that many decode tokens; at least one block, so prompts advance."""
        room = max(self._max_batched_tokens - num_decode_tokens, BLOCK_TOKENS)
        if num_decode_tokens == 0 or self._max_stretch <= 0:
            return room
        token_s = self._prompt_token_s or self._table_token_s(num_decode_tokens)
        base_s = self._least_chunk_s or self._decode_s(num_decode_tokens)
        num_tokens = int((self._max_stretch - 1) * base_s / token_s)
        return min(room, max(num_tokens // BLOCK_TOKENS, 1) * BLOCK_TOKENS)

    def draft_step_s(self, num_decode_tokens: int, most: int) -> list[float]:
        """Seconds of a step of that many decode tokens with 0 to `most` drafted ones beside them."""
        now_s = self._decode_s(num_decode_tokens)
        return [now_s + self._draft_factor * self._added_s(num_decode_tokens, n) for n in range(most + 1)]

    def observe(self, num_decode_tokens: int, num_draft_tokens: int, num_prompt_tokens: int, step_s: float) -> None:
        """Learn from a step that took `step_s` seconds."""
        if num_decode_tokens == 0:
            return
        decode_s, added_s = self.table_s(num_decode_tokens), self._added_s(num_decode_tokens, num_draft_tokens)
        unexpected_s = step_s - self._decode_factor * decode_s - self._draft_factor * added_s
        if num_prompt_tokens == 0:
            # Normalised least mean squares: both factors answer for what was not expected, by the time that each
            # stands for, so a step without drafts teaches nothing about them.
            doubted_s = _DRAFT_DOUBT * added_s
            share = _LEARNING_RATE * unexpected_s / (decode_s**2 + doubted_s * added_s)
            self._decode_factor = max(self._decode_factor + share * decode_s, 0.0)
            self._draft_factor = max(self._draft_factor + share * doubted_s, 0.0)
            return
        if self._least_chunk_s > 0:
            return
        token_s = max(unexpected_s, 0.0) / num_prompt_tokens
        known_s = self._prompt_token_s or self._table_token_s(num_decode_tokens)
        self._prompt_token_s = max(token_s, known_s + _LEARNING_RATE * (token_s - known_s))

    def table_s(self, num_tokens: int) -> float:
        """Seconds of a step with that many tokens at start-up, linear between and beyond what was measured."""
        sizes, seconds = self._sizes, self._seconds
        right = min(bisect_left(sizes, num_tokens), len(sizes) - 1)
        if sizes[right] == num_tokens or len(sizes) == 1:
            return seconds[right]
        left = max(right - 1, 0)
        if left == right:
            return seconds[0]
        slope = (seconds[right] - seconds[left]) / (sizes[right] - sizes[left])
        return seconds[left] + slope * (num_tokens - sizes[left])

    def _decode_s(self, num_decode_tokens: int) -> float:
        return self.table_s(num_decode_tokens) * self._decode_factor

    def _added_s(self, num_decode_tokens: int, num_draft_tokens: int) -> float:
        """What the table says that drafts add."""
        return self.table_s(num_decode_tokens + num_draft_tokens) - self.table_s(num_decode_tokens)

    def _table_token_s(self, num_decode_tokens: int) -> float:
        """Seconds that one more token adds to a full step; never 0."""
        most = max(self._sizes[-1], num_decode_tokens + 1)
        added = self.table_s(most) - max(self.table_s(num_decode_tokens), self._least_chunk_s)
        return max(added / (most - num_decode_tokens), 1e-7)
