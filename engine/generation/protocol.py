"""What the rest of Switchyard may expect of a generation engine, whichever one is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.generation.adapters.host import AdapterHost
from engine.values import ContinuationScore, GenerationRequest, ScoreRequest, TokenDelta


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. `kv_tokens` of `max_kv_tokens` token slots are taken by requests in progress; the rest hold
    beginnings of earlier prompts, which give way when room is needed.

    Since the start: `output_tokens` generated; `cached_tokens` of `prompt_tokens` found computed; `num_preemptions`
    requests set back for lack of room; `adapter_swaps` adapters put into a slot. `step_ms` is the median of recent
    steps. `waiting_tokens` of prompts are not computed yet.
    """

    running: int
    waiting: int
    kv_tokens: int
    max_kv_tokens: int
    output_tokens: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    num_preemptions: int = 0
    step_ms: float = 0.0
    adapter_swaps: int = 0
    waiting_tokens: int = 0


class TokenStream(Protocol):
    """The deltas of one answer. Closing it, dropping it or cancelling a task that waits on it frees its place.

    Iteration raises DeadlineExceeded or ComponentUnavailable where the answer cannot be completed. After
    `GenerationEngine.cancel` it ends without a last delta (one with `finish_reason`).
    """

    def __aiter__(self) -> TokenStream: ...

    async def __anext__(self) -> TokenDelta: ...

    async def aclose(self) -> None: ...


class GenerationEngine(AdapterHost, Protocol):
    """Answers requests, many at once. Every method may be called from any thread; `submit` needs an event loop."""

    max_model_len: int

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request; its deltas arrive on the caller's event loop, the first as soon as there is a token.

        Raises, before anything is queued: Overloaded, InvalidRequest (PromptTooLong included), UnknownModel,
        ComponentUnavailable.
        """

    def cancel(self, request_id: str) -> None:
        """Stop work on a request and free its place at the next step; unknown ids are ignored."""

    async def score(self, request: ScoreRequest) -> tuple[tuple[ContinuationScore, ...], ...]:
        """How likely each continuation of each prompt is, in their order. Cancelling the waiting task stops the work.

        Raises: as `submit`, and DeadlineExceeded.
        """

    def stats(self) -> EngineStats: ...

    def check_health(self) -> None:
        """Raises: ComponentUnavailable when the engine died or makes no progress."""

    def close(self) -> None:
        """Fail what is pending, stop and free the device; calling it again does nothing."""
