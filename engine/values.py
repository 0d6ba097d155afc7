"""The plain values that pass between components, one per hop. No torch, Ray, FastAPI or I/O.

ChatRequest -> Query -> Evidence -> RouteRequest -> Decision -> GenerationRequest -> TokenDelta
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError

Route = Literal["direct", "rag", "clarify", "abstain"]
Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
SearchMode = Literal["hybrid", "dense", "lexical"]
# No adapter has an empty name.
BASE_MODEL = ""


@dataclass(frozen=True, slots=True)
class Query:
    """What the retriever is asked: embed `text` once, then search `collection` for `k` passages.

    `filter` is the caller's, in the grammar of `engine.retrieval.index.filters`; `tenant` is the credential's.
    With `wants_clues` the evidence has `clues`, in which the texts with each of `words` are counted.
    """

    text: str
    collection: str
    k: int
    filter: dict[str, Any] | None = None
    tenant: str = ""
    min_version: int = 0
    mode: SearchMode = "hybrid"
    wants_similarities: bool = True
    wants_clues: bool = False
    words: tuple[str, ...] = ()

    @property
    def is_embedded(self) -> bool:
        """Whether its vector is needed: not for words alone, unless more than a ranking is wanted."""
        return self.mode != "lexical" or self.wants_similarities or self.wants_clues


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk returned for a query. `text == document_text[start:end]`, offsets in characters.

    `score` is a cosine (dense), BM25 (lexical), or in (0, 1] the share of the best possible fused rank (hybrid).
    """

    chunk: str
    document: str
    title: str
    heading: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class ScoreBackground:
    """Best scores that unrelated questions reach in the same index: what "no match" looks like there."""

    mean: float
    std: float
    num_questions: int


@dataclass(frozen=True, slots=True)
class Clues:
    """What a learned router reads of a search beside its evidence; None is what could not be known.

    embedding: [E] float32 of unit length, of the query's text. agreement: share of the best chunks by meaning that are
    among the best by words. coherence: mean cosine between the best chunks by meaning. texts_with: how many of the
    `num_texts` chunks that the query may find hold each of its `words`, by their stems. encoder: digest of the one that
    embedded the text.
    """

    embedding: NDArray[np.float32]
    agreement: float | None = None
    coherence: float | None = None
    num_texts: int = 0
    texts_with: tuple[int, ...] = ()
    encoder: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the retriever found. `passages` are ranked by descending score; `version` is the index version seen.

    `similarities` are the cosines of the best chunks by meaning alone, descending, whatever the mode ranked by; ten of
    them where clues are wanted, so that the signals do not depend on how many passages are.
    """

    passages: tuple[Passage, ...]
    background: ScoreBackground | None
    version: int
    timings_ms: dict[str, float] = field(default_factory=dict)
    similarities: tuple[float, ...] = ()
    clues: Clues | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What makes similarities comparable, as digests (SHA-256, hex): the encoder, and how documents are cut.

    `others` are collections of which that is otherwise.
    """

    encoder: str
    chunking: str
    others: Mapping[str, IndexInfo] = field(default_factory=dict)

    def of(self, collection: str) -> IndexInfo:
        """What holds for a collection, whether it exists or not."""
        return self.others.get(collection, self)


@dataclass(frozen=True, slots=True)
class Decision:
    """An arm (adapter or base) x (context or not), with the evidence for it.

    On the routes `clarify` and `abstain` no generator is asked.
    `confidence` is in [0, 1], or None where the caller pinned the route; `router` names the rule or artefact. `signals`
    by name, None for what could not be known, are there where the router read them or they were asked for.
    """

    route: Route
    adapter: str | None
    confidence: float | None
    reasons: tuple[str, ...]
    router: str
    signals: dict[str, float | None] | None = None


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """A question whose arm is to be chosen; `text` is what was searched, or would be.

    `model` is an adapter's name, BASE_MODEL, or None for any; `pinned` the route that the caller asked for. `missing`
    says why passages are of no use or not to be had; with `can_search` they were not looked for yet. `embedding` [E] is
    the text's, where nothing was searched.
    """

    text: str
    collection: str
    model: str | None = None
    pinned: Route | None = None
    evidence: Evidence | None = None
    missing: str | None = None
    can_search: bool = False
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Routing:
    """What became of some RouteRequests, in their order, and what they were decided with.

    `router` decides for the collection of the first. `arms` can answer now. `keys` are the digests of what is served,
    as `engine.routing.keys` reads them; None while they are not known. `timings_ms`: signals, route.
    """

    decisions: tuple[Decision, ...]
    router: str
    arms: tuple[str, ...]
    keys: dict[str, Any] | None
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. `temperature == 0` is greedy; `seed` None draws a fresh one; `top_k` 0 is no limit.

    Presence and frequency penalties count the answer's tokens and are subtracted from logits (OpenAI); the repetition
    penalty divides positive and multiplies negative logits of tokens in prompt or answer (CTRL, arXiv:1909.05858).
    `logprobs` n: the chosen token's log-probability and the n best's, at each token; `prompt_logprobs` likewise for
    the prompt's. Both are the model's own, before penalties and temperature; None gives none.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like from its first to its last character.

    `source` is the text of a JSON schema, a regular expression, or a JSON list of strings of which one is the answer.
    """

    kind: Literal["json_schema", "regex", "choice"]
    source: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to generate. With `passages`, the prompt numbers them from 1 in this order.

    `prompt_token_ids` are read as they are, in place of `messages` and `passages`. `cache_salt` keeps tenants'
    cached prompts apart: equal text under another salt is computed anew. An adapter's instruction stands for the
    generator's system prompt. `drafts` False computes one token at a time;
    the answer is the same.
    `as_label`: where the adapter has labels and the request no grammar, the answer is the text of one of them.
    `deadline_s` is the time left at submission in seconds; the engine stops work when it has passed.
    """

    id: str
    messages: tuple[Message, ...]
    passages: tuple[Passage, ...] = ()
    sampling: SamplingParams = SamplingParams()
    adapter: str | None = None
    deadline_s: float | None = None
    prompt_token_ids: tuple[int, ...] = ()
    cache_salt: str = ""
    drafts: bool = True
    grammar: Grammar | None = None
    as_label: bool = False


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A prompt and what may follow it: texts, or token ids as they are. The prompt is that of a GenerationRequest."""

    continuations: tuple[str | tuple[int, ...], ...]
    messages: tuple[Message, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely is each continuation? The other fields are as in GenerationRequest.

    `with_end` scores the model's end token after each continuation too: the probability that this is all of the answer.
    With `adapter_digest` it is refused where the adapter's name stands for other files by then.
    """

    id: str
    items: tuple[ScoreItem, ...]
    with_end: bool = False
    adapter: str | None = None
    adapter_digest: str = ""
    deadline_s: float | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class ContinuationScore:
    """Natural log-probability of a continuation, summed over its `num_tokens` tokens."""

    logprob: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural log-probability, and the best tokens in its place. `text` of half a character is U+FFFD;
    `data` are the token's own bytes.
    """

    token_id: int
    text: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptReport:
    """What became of a request's prompt. `passages` are those that fitted the token budget, as shown to the model.

    `num_cached_tokens` were computed before, for another request. `logprobs`, where asked for, has an entry per token;
    the first token has none. `adapter` is the content digest of the adapter that answers, empty for none.
    """

    num_tokens: int
    passages: tuple[Passage, ...]
    num_cached_tokens: int = 0
    logprobs: tuple[TokenLogprob | None, ...] = ()
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New text of one answer. The first delta carries `prompt`; the last one `finish_reason` and the totals.

    `num_tokens` counts the tokens behind `text` (which may be empty while a UTF-8 character is incomplete).
    `timings_ms` of the last delta: queue, prefill, decode.
    """

    text: str
    num_tokens: int
    prompt: PromptReport | None = None
    finish_reason: FinishReason | None = None
    timings_ms: dict[str, float] | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """One item of a write: the raw body of a document, or `delete=True`.

    `source` and `path` are implied by `id` = `source/relative path`.
    """

    id: str
    body: bytes = b""
    content_type: str = "text/markdown"
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    delete: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """How relevant a document is to a query: 0 is not at all, a higher grade is more."""

    query: str
    document: str
    grade: int


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of one write. `status` is failed exactly where `error` is set.

    `embedded` of the `chunks` were embedded anew; the rest had been embedded before. A write that is `accepted` is
    durable and not yet applied; `job` says how far it is.
    """

    id: str
    status: Literal["created", "updated", "unchanged", "deleted", "absent", "failed", "accepted"]
    version: int
    chunks: int = 0
    embedded: int = 0
    error: RequestError | None = None
    job: str | None = None

    @property
    def is_transient(self) -> bool:
        """Whether it failed for a reason that passes."""
        return self.error is not None and self.error.retry_after_s is not None
