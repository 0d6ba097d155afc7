"""One answer in progress: from sampled token ids to deltas, and when it is complete. No torch and no threads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from time import monotonic

from transformers import PreTrainedTokenizerBase

from engine.generation.detokenizer import IncrementalDetokenizer, StopStrings, token_data
from engine.generation.prompt import Prompt
from engine.generation.sampler import Choice
from engine.values import FinishReason, PromptReport, SamplingParams, TokenDelta, TokenLogprob


class Answer:
    """Text, length and timings of one answer, from submission on."""

    def __init__(
        self, prompt: Prompt, params: SamplingParams, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int]
    ) -> None:
        self.num_tokens = 0
        self.submitted_s = self._started_s = self._first_token_s = monotonic()
        self._report: PromptReport = prompt.report
        self._params = params
        self._tokenizer = tokenizer
        self._end_ids = () if params.ignore_eos else eos_ids
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stops = StopStrings(params.stop)

    def start(self) -> None:
        """Note that prefill begins."""
        self._started_s = monotonic()

    def report_prompt(self, num_cached_tokens: int, scores: Sequence[Choice | None]) -> None:
        """What the first delta says of the prompt; `scores` per token, or empty where nobody asked."""
        logprobs = tuple(None if choice is None else self._logprob(choice) for choice in scores)
        self._report = replace(self._report, num_cached_tokens=num_cached_tokens, logprobs=logprobs)

    def accept(self, choice: Choice, *, is_complete: bool = False) -> TokenDelta:
        """Append a token; the delta has a `finish_reason` when the answer is complete.

        `is_complete` says that it is with this token, though that is not an end token: nothing more fits its grammar.
        """
        token_id = choice.token_id
        if self.num_tokens == 0:
            self._first_token_s = monotonic()
        self.num_tokens += 1
        is_end = token_id in self._end_ids
        text, is_stopped = self._stops.push("" if is_end else self._detokenizer.push(token_id))
        is_last = is_end or is_stopped or is_complete or self.num_tokens >= self._params.max_tokens
        if is_last and not is_stopped:
            rest, is_stopped = self._stops.push(self._detokenizer.flush())
            text += rest if is_stopped else rest + self._stops.flush()
        reason: FinishReason = "stop" if is_end or is_stopped or is_complete else "length"
        return TokenDelta(
            text=text,
            num_tokens=1,
            prompt=self._report if self.num_tokens == 1 else None,
            finish_reason=reason if is_last else None,
            timings_ms=self._timings_ms() if is_last else None,
            logprobs=() if choice.logprob is None else (self._logprob(choice),),
        )

    def _logprob(self, choice: Choice) -> TokenLogprob:
        assert choice.logprob is not None
        top = tuple(self._named(token_id, logprob) for token_id, logprob in choice.top)
        return replace(self._named(choice.token_id, choice.logprob), top=top)

    def _named(self, token_id: int, logprob: float) -> TokenLogprob:
        data = token_data(self._tokenizer, token_id)
        return TokenLogprob(token_id, data.decode(errors="replace"), data, logprob)

    def _timings_ms(self) -> dict[str, float]:
        return {
            "queue": (self._started_s - self.submitted_s) * 1000,
            "prefill": (self._first_token_s - self._started_s) * 1000,
            "decode": (monotonic() - self._first_token_s) * 1000,
        }
