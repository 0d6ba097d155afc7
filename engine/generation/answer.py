"""One answer in progress: from sampled token ids to deltas, and when it is complete. No torch and no threads."""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic

from transformers import PreTrainedTokenizerBase

from engine.generation.detokenizer import IncrementalDetokenizer, StopStrings
from engine.generation.prompt import Prompt
from engine.values import FinishReason, SamplingParams, TokenDelta


class Answer:
    """Text, length and timings of one answer, from submission on."""

    def __init__(
        self, prompt: Prompt, params: SamplingParams, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int]
    ) -> None:
        self.prompt = prompt
        self.num_tokens = 0
        self.last_token_id: int | None = None
        self._params = params
        self._end_ids = () if params.ignore_eos else eos_ids
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stops = StopStrings(params.stop)
        self._submitted_s = self._started_s = self._first_token_s = monotonic()

    @property
    def max_total_tokens(self) -> int:
        """Most tokens that this request can occupy, prompt and answer."""
        return len(self.prompt.token_ids) + self._params.max_tokens

    def start(self) -> None:
        """Note that prefill begins."""
        self._started_s = monotonic()

    def accept(self, token_id: int) -> TokenDelta:
        """Append a token; the delta has a `finish_reason` when the answer is complete."""
        if self.num_tokens == 0:
            self._first_token_s = monotonic()
        self.num_tokens += 1
        self.last_token_id = token_id
        is_end = token_id in self._end_ids
        text, is_stopped = self._stops.push("" if is_end else self._detokenizer.push(token_id))
        is_last = is_end or is_stopped or self.num_tokens >= self._params.max_tokens
        if is_last and not is_stopped:
            rest, is_stopped = self._stops.push(self._detokenizer.flush())
            text += rest if is_stopped else rest + self._stops.flush()
        reason: FinishReason = "stop" if is_end or is_stopped else "length"
        return TokenDelta(
            text=text,
            num_tokens=1,
            prompt=self.prompt.report if self.num_tokens == 1 else None,
            finish_reason=reason if is_last else None,
            timings_ms=self._timings_ms() if is_last else None,
        )

    def _timings_ms(self) -> dict[str, float]:
        return {
            "queue": (self._started_s - self._submitted_s) * 1000,
            "prefill": (self._first_token_s - self._started_s) * 1000,
            "decode": (monotonic() - self._first_token_s) * 1000,
        }
