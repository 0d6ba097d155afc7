"""What is done with a request before it may join the batch: prompt, adapter, and all that its answer will need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from time import monotonic

from transformers import PreTrainedTokenizerBase

from engine.config import GeneratorSettings
from engine.errors import AdapterReplaced, InvalidRequest, PromptTooLong
from engine.generation.adapters.library import AdapterLibrary
from engine.generation.adapters.manifest import AdapterManifest
from engine.generation.answer import Answer
from engine.generation.drafts import Drafting, DraftRate, PromptLookup
from engine.generation.job import Job
from engine.generation.prompt import Prompt, PromptBuilder
from engine.generation.sampler import Sampler
from engine.generation.scoring.request import Preparation
from engine.generation.scoring.scorer import ScoreJob
from engine.generation.sequence import PrefixKey, Sequence
from engine.generation.stream import Mailbox
from engine.values import GenerationRequest, Grammar, PromptReport, SamplingParams, ScoreItem, ScoreRequest


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
        key, manifest = self._hold(request)
        try:
            return self._answer_job(request, key, manifest)
        except BaseException:
            self.release(key)
            raise

    async def score_job(self, request: ScoreRequest) -> ScoreJob:
        """The same for continuations to be scored. Tokens are made in a thread of their own: there may be thousands
        of texts.
        """
        key, manifest = self._hold(request)
        try:
            prepare = partial(self._preparation.prepare, request, system_prompt=manifest.instruction)
            prompts = await asyncio.to_thread(prepare)
        except BaseException:
            self.release(key)
            raise
        loop = asyncio.get_running_loop()
        return ScoreJob(request.id, prompts, key, loop, loop.create_future())

    def release(self, key: PrefixKey) -> None:
        """A job with that key is over."""
        if key.adapter:
            self._library.release(key.adapter)

    def _hold(self, request: GenerationRequest | ScoreRequest) -> tuple[PrefixKey, AdapterManifest]:
        """Take hold of the request's adapter; what its manifest says stays true as long as it is held."""
        if request.adapter is None:
            return PrefixKey(self._model_digest, "", request.cache_salt), AdapterManifest()
        info = self._library.acquire(request.adapter)
        wanted = request.adapter_digest if isinstance(request, ScoreRequest) else ""
        if wanted and wanted != info.digest:
            self._library.release(info.digest)
            raise AdapterReplaced(request.adapter)
        return PrefixKey(self._model_digest, info.digest, request.cache_salt), info.manifest

    def _answer_job(self, request: GenerationRequest, key: PrefixKey, manifest: AdapterManifest) -> Job:
        params = request.sampling
        mailbox = Mailbox()
        prompt = self._prompt(request, manifest.instruction)
        grammar = request.grammar
        if grammar is None and request.as_label and manifest.labels:
            grammar = Grammar("choice", json.dumps([label.text for label in manifest.labels]))
        if grammar is not None and params.ignore_eos:
            what = "a grammar, which says" if request.grammar else "the adapter's labels, which say"
            raise InvalidRequest(f"ignore_eos contradicts {what} where an answer ends.", param="ignore_eos")
        drafting = None
        if request.drafts and self._settings.max_draft_tokens and params.max_tokens > 1:
            passages = self._prompts.passage_tokens(prompt.report.passages)
            drafting = Drafting(PromptLookup(passages, prompt.token_ids), DraftRate())
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
        return Job(sequence, answer, Sampler(params, prompt.token_ids), mailbox, drafting, grammar)

    def _prompt(self, request: GenerationRequest, system_prompt: str) -> Prompt:
        if not request.prompt_token_ids:
            return self._prompts.build(request, system_prompt=system_prompt)
        ids = list(request.prompt_token_ids)
        if not all(0 <= token < self._vocab_size for token in ids):
            raise InvalidRequest(f"prompt_token_ids must be from 0 to {self._vocab_size - 1}.", param="prompt")
        if len(ids) + request.sampling.max_tokens > self._max_model_len:
            raise PromptTooLong(len(ids), request.sampling.max_tokens, self._max_model_len)
        return Prompt(ids, PromptReport(len(ids), ()))

    def _scored_prompt(self, item: ScoreItem, system_prompt: str) -> list[int]:
        asked = GenerationRequest("", item.messages, sampling=SamplingParams(max_tokens=1))
        return self._prompt(replace(asked, prompt_token_ids=item.prompt_token_ids), system_prompt).token_ids
