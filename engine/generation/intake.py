"""What is done with a request before it may join the batch: prompt, adapter, and all that its answer will need."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from time import monotonic

from transformers import PreTrainedTokenizerBase

from engine.config import GeneratorSettings
from engine.errors import InvalidRequest, PromptTooLong
from engine.generation.adapters.library import AdapterLibrary
from engine.generation.answer import Answer
from engine.generation.drafts import Drafting, DraftRate, PromptLookup
from engine.generation.job import Job
from engine.generation.prompt import Prompt, PromptBuilder
from engine.generation.sampler import Sampler
from engine.generation.scoring.request import Preparation
from engine.generation.scoring.scorer import ScoreJob
from engine.generation.sequence import PrefixKey, Sequence
from engine.generation.stream import Mailbox
from engine.values import GenerationRequest, PromptReport, SamplingParams, ScoreItem, ScoreRequest


class Intake:
    """Makes jobs of requests, in the caller's thread. A job holds its adapter until `release`."""

    def __init__(
        self,
        prompts: PromptBuilder,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Collection[int],
        library: AdapterLibrary,
        settings: GeneratorSettings,
        *,
        vocab_size: int,
        max_model_len: int,
        model_digest: str,
    ) -> None:
        """`vocab_size` is the width of the logits; `max_model_len` counts prompt and answer, in tokens."""
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._library = library
        self._settings = settings
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._model_digest = model_digest
        self._preparation = Preparation(
            self._scored_prompt,
            prompts.text_tokens,
            end_token=tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(eos_ids),
            vocab_size=vocab_size,
            max_model_len=max_model_len,
        )

    def answer_job(self, request: GenerationRequest) -> Job:
        """Build the prompt and take hold of the adapter that the request's name stands for now.

        Raises: InvalidRequest (PromptTooLong included), UnknownModel; nothing is held then.
        """
        params = request.sampling
        mailbox = Mailbox()
        prompt = self._prompt(request)
        if request.grammar is not None and params.ignore_eos:
            raise InvalidRequest(
                "ignore_eos contradicts a grammar, which says where an answer ends.", param="ignore_eos"
            )
        drafting = None
        if request.drafts and self._settings.max_draft_tokens and params.max_tokens > 1:
            passages = self._prompts.passage_tokens(prompt.report.passages)
            drafting = Drafting(PromptLookup(passages, prompt.token_ids), DraftRate())
        key = self._key(request)
        if key.adapter:
            prompt = replace(prompt, report=replace(prompt.report, adapter=key.adapter))
        sequence = Sequence(
            id=request.id,
            tokens=list(prompt.token_ids),
            num_prompt_tokens=len(prompt.token_ids),
            max_total_tokens=len(prompt.token_ids) + params.max_tokens,
            key=key,
            deadline_s=None if request.deadline_s is None else monotonic() + request.deadline_s,
            needs_prompt_logits=params.prompt_logprobs is not None,
        )
        answer = Answer(prompt, params, self._tokenizer, self._eos_ids)
        return Job(sequence, answer, Sampler(params, prompt.token_ids), mailbox, drafting)

    async def score_job(self, request: ScoreRequest) -> ScoreJob:
        """The same for continuations to be scored. Tokens are made in a thread of their own: there may be thousands
        of texts.
        """
        prompts = await asyncio.to_thread(self._preparation.prepare, request)
        loop = asyncio.get_running_loop()
        return ScoreJob(request.id, prompts, self._key(request), loop, loop.create_future())

    def release(self, key: PrefixKey) -> None:
        """A job with that key is over."""
        if key.adapter:
            self._library.release(key.adapter)

    def _key(self, request: GenerationRequest | ScoreRequest) -> PrefixKey:
        adapter = "" if request.adapter is None else self._library.acquire(request.adapter).digest
        return PrefixKey(self._model_digest, adapter, request.cache_salt)

    def _prompt(self, request: GenerationRequest) -> Prompt:
        if not request.prompt_token_ids:
            return self._prompts.build(request)
        ids = list(request.prompt_token_ids)
        if not all(0 <= token < self._vocab_size for token in ids):
            raise InvalidRequest(f"prompt_token_ids must be from 0 to {self._vocab_size - 1}.", param="prompt")
        if len(ids) + request.sampling.max_tokens > self._max_model_len:
            raise PromptTooLong(len(ids), request.sampling.max_tokens, self._max_model_len)
        return Prompt(ids, PromptReport(len(ids), ()))

    def _scored_prompt(self, item: ScoreItem) -> list[int]:
        asked = GenerationRequest("", item.messages, sampling=SamplingParams(max_tokens=1))
        return self._prompt(replace(asked, prompt_token_ids=item.prompt_token_ids)).token_ids
