"""Which label of an adapter's set fits a text, by how likely the model is to write each of them and nothing more."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from engine.api.asked_model import AUTO
from engine.api.backends import Backends
from engine.api.schemas_classify import Classification, ClassifyRequest, LabelScores
from engine.config import EngineConfig
from engine.errors import AdapterReplaced, DeadlineExceeded, InvalidRequest, ScoredTextTooLong, UnknownModel
from engine.generation.adapters.manifest import AdapterManifest
from engine.generation.adapters.status import ServedAdapter
from engine.values import Message, ScoreItem, ScoreRequest


class Classifier:
    """Composes the generator's scores for the classify route."""

    def __init__(self, backends: Backends, config: EngineConfig) -> None:
        self._backends = backends
        self._gateway = config.gateway
        # So many prompts fill a batch; more at once would only keep others from the generator's queue.
        self._texts_at_once = config.generator.max_num_seqs
        self._manifests: dict[str, AdapterManifest] = {}  # by digest, which covers them: they never change

    async def classify(self, request: ClassifyRequest, request_id: str, *, tenant: str = "") -> Classification:
        """Raises: UnknownModel, InvalidRequest (a model without labels, a text that is too long), DeadlineExceeded,
        AdapterReplaced.
        """
        started = time.perf_counter()
        limits = self._gateway
        deadline_ms = min(request.switchyard.deadline_ms or limits.default_deadline_ms, limits.max_deadline_ms)
        deadline = time.monotonic() + deadline_ms / 1000
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                adapter = await self._adapter(request.model)
                results = await self._results(adapter, request.texts(), request_id, tenant, deadline)
        except (TimeoutError, DeadlineExceeded):
            raise DeadlineExceeded(deadline_ms) from None
        total_ms = (time.perf_counter() - started) * 1000
        return Classification(
            model=adapter.name,
            digest=adapter.digest,
            results=results,
            timings_ms={"total": round(total_ms, 2)},
        )

    async def _adapter(self, asked: str) -> ServedAdapter:
        base = (await self._backends.model()).name
        served = {adapter.name: adapter for adapter in await self._backends.served_adapters()}
        labelled = [name for name, adapter in served.items() if adapter.task == "classify"]
        if asked not in (AUTO, base, *served):
            raise UnknownModel(asked, [AUTO, *labelled])
        known = ", ".join(labelled) or "none; tune one: switchyard tune DATA.jsonl --name NAME --task classify"
        if asked == AUTO:
            if len(labelled) != 1:
                raise InvalidRequest(
                    f"model 'auto' classifies where exactly one adapter with labels is loaded, and there are "
                    f"{len(labelled)}: {known}. Name one.",
                    param="model",
                )
            return served[labelled[0]]
        if asked not in labelled:
            raise InvalidRequest(f"model {asked!r} has no labels; loaded adapters with labels: {known}.", param="model")
        return served[asked]

    async def _manifest(self, adapter: ServedAdapter) -> AdapterManifest:
        if adapter.digest not in self._manifests:
            statuses = await self._backends.adapters()
            self._manifests = {
                status.digest: status.manifest for status in statuses if status.digest and status.manifest
            }
        if adapter.digest not in self._manifests:
            raise AdapterReplaced(adapter.name)
        return self._manifests[adapter.digest]

    async def _results(
        self, adapter: ServedAdapter, texts: Sequence[str], request_id: str, tenant: str, deadline: float
    ) -> list[LabelScores]:
        manifest = await self._manifest(adapter)
        labels = tuple(label.text for label in manifest.labels)
        results: list[LabelScores] = []
        while rest := texts[len(results) : len(results) + self._texts_at_once]:
            request = ScoreRequest(
                id=f"{request_id}-{len(results)}",
                # The system message is the adapter's instruction, which the generator puts in front.
                items=tuple(ScoreItem(labels, (Message("user", text),)) for text in rest),
                with_end=True,
                adapter=adapter.name,
                adapter_digest=adapter.digest,
                deadline_s=max(deadline - time.monotonic(), 0.0),
                cache_salt=tenant,
            )
            try:
                scores = await self._backends.score(request)
            except ScoredTextTooLong as error:
                index = len(results) + error.index
                sizes = (error.num_prompt_tokens, error.num_scored_tokens, error.max_model_len)
                raise ScoredTextTooLong(index, *sizes) from None
            results += [label_scores(manifest, [score.logprob for score in text]) for text in scores]
        return results


def label_scores(manifest: AdapterManifest, logprobs: Sequence[float]) -> LabelScores:
    """The label and the probabilities of one text: the softmax of each label's `logprobs` over the temperature.

    Of labels that are equally likely, the first in the manifest's order is taken.
    """
    best = max(logprobs)
    weights = [math.exp((logprob - best) / manifest.temperature) for logprob in logprobs]
    total = math.fsum(weights)
    names = [label.name for label in manifest.labels]
    scores = {name: weight / total for name, weight in zip(names, weights, strict=True)}
    return LabelScores(label=max(names, key=scores.__getitem__), scores=scores)
