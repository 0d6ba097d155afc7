"""Bodies of `POST /v1/chat/completions` and `GET /v1/models`. A field that is accepted is a field that is honoured."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from engine.errors import InvalidRequest, UnsupportedField
from engine.values import Grammar

MAX_TEXT_CHARS = 200_000
MAX_MESSAGES = 256

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class Body(BaseModel):
    """Base of request bodies: unknown fields are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextPart(Body):
    """One part of a message's content; text is the only kind."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """One turn. `developer` is read as `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: None = Field(None, description="Not implemented, so refused rather than ignored.")

    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(Body):
    """OpenAI's stream_options."""

    include_usage: bool = Field(False, description="Send token counts in a last chunk without choices.")


class Extension(Body):
    """Extension: how Switchyard answers this request."""

    route: Literal["auto", "direct", "rag"] = Field("auto", description="auto lets the router choose; others pin it.")
    collection: str | None = Field(None, description="Collection to search; default: retriever.default_collection.")
    top_k: int | None = Field(None, ge=1, le=32, description="Passages to search for.")
    filter: dict[str, Any] | None = Field(None, description="Metadata filter.")
    cite: bool = Field(True, description="Map spans of the answer to passages.")
    deadline_ms: int | None = Field(None, ge=1, description="The answer must be complete within this time.")


class JsonSchema(Body):
    """OpenAI's json_schema. The schema is enforced, whatever `strict` says."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="A label; it changes nothing.")
    schema_: dict[str, Any] = Field(alias="schema", description="What the answer must match; see docs/http-api.md.")
    strict: bool | None = None
    description: None = Field(None, description="Not implemented, so refused: say it in the messages.")


class TextFormat(Body):
    """An answer in any form."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """An answer that matches a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


# Fields of OpenAI's API that ask for something this server does not do, with the values that ask for nothing.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "parallel_tool_calls": (None,),
    "functions": (None, []),
    "function_call": (None, "none"),
    "store": (None, False),
    "metadata": (None, {}),
    "user": (None,),
    "service_tier": (None, "auto", "default"),
    "reasoning_effort": (None,),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "prompt_cache_key": (None,),
    "safety_identifier": (None,),
    "verbosity": (None,),
}


class ChatCompletionRequest(Body):
    """Body of `POST /v1/chat/completions`.

    Other fields of OpenAI's API are accepted with the value that asks for nothing (`n: 1`, `tools: []`) and refused
    by name otherwise.
    """

    model: str = Field(description="`auto`, the base model or an adapter, as listed by `GET /v1/models`.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=32768, description="Most tokens to generate; default 256.")
    max_completion_tokens: int | None = Field(None, ge=1, le=32768, description="The newer name of max_tokens.")
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = Field(None, description="Up to 8 strings that end the answer.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logprobs: bool | None = Field(None, description="Log-probability of each token, before penalties and temperature.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="So many best tokens beside each; needs logprobs.")
    top_k: int | None = Field(None, ge=0, description="Extension: draw among the k best tokens only; 0 for all.")
    min_p: float | None = Field(
        None, ge=0, le=1, description="Extension: draw only tokens with this share of the best one's probability."
    )
    repetition_penalty: float | None = Field(
        None, gt=0, le=2, description="Extension: above 1, tokens of prompt and answer become less likely."
    )
    ignore_eos: bool | None = Field(None, description="Extension: go on to max_tokens, for measurements.")
    response_format: ResponseFormat | None = Field(None, description="Every answer that is complete has this form.")
    guided_regex: str | None = Field(None, description="Extension: the answer matches this regular expression.")
    guided_choice: list[str] | None = Field(None, description="Extension: the answer is one of these texts.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    switchyard: Extension = Extension()

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_implemented(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        known = dict(raw)
        for name, neutral in NEUTRAL_VALUES.items():
            if name in known and known.pop(name) not in neutral:
                allowed = ", ".join("null" if value is None else str(value) for value in neutral)
                raise UnsupportedField(f"{name} is not implemented; leave it out (allowed: {allowed}).", param=name)
        return known

    @field_validator("stop")
    @classmethod
    def _few_short_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > 8 or any(not 1 <= len(item) <= 64 for item in stops):
            raise ValueError("takes at most 8 strings of 1 to 64 characters")
        return stop

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        last = messages[-1]
        if last.role != "user":
            raise ValueError(f"must end with the user's turn, not with role {last.role!r}")
        if not last.text().strip():
            raise ValueError("the last user message is empty; ask a question")
        return messages

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise InvalidRequest("max_tokens and max_completion_tokens differ; send one of them.", param="max_tokens")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(f"top_logprobs={self.top_logprobs} needs logprobs: true.", param="top_logprobs")
        is_json = self.response_format is not None and self.response_format.type != "text"
        if is_json + (self.guided_regex is not None) + (self.guided_choice is not None) > 1:
            raise InvalidRequest(
                "response_format, guided_regex and guided_choice each fix the answer's form; send one of them.",
                param="response_format",
            )
        if self.stream_options and not self.stream:
            raise InvalidRequest("stream_options needs stream: true.", param="stream_options")
        return self

    def grammar(self) -> Grammar | None:
        """What the answer must match; None for any text."""
        if self.guided_regex is not None:
            return Grammar("regex", self.guided_regex)
        if self.guided_choice is not None:
            return Grammar("choice", json.dumps(self.guided_choice))
        if isinstance(self.response_format, JsonSchemaFormat):
            return Grammar("json_schema", json.dumps(self.response_format.json_schema.schema_, ensure_ascii=False))
        if isinstance(self.response_format, JsonObjectFormat):
            return Grammar("json_schema", '{"type": "object"}')
        return None


class PassageInfo(BaseModel):
    """A passage that the model was shown, or that a question back or a refusal names.

    Offsets are characters of `GET .../documents/{document}`'s text.
    """

    chunk: str
    document: str
    title: str
    start: int
    end: int
    score: float
    text: str | None = None


class CitationInfo(BaseModel):
    """Characters [start, end) of the answer are supported by `passages[passage]`."""

    start: int
    end: int
    passage: int
    score: float = Field(description="Share of the span's content words that the passage holds.")


class Versions(BaseModel):
    """What answered, so that an answer can be traced."""

    index: int | None
    adapter: str | None
    router: str
    weights: str | None = Field(
        None, description="int8 or int4 where the generator's weights were rounded to it by choice, else null."
    )


class Outcome(BaseModel):
    """Extension of responses: why this route, on what evidence, in what time."""

    route: str = Field(description="direct, rag, clarify (asked back) or abstain (not in the knowledge base).")
    adapter: str | None
    confidence: float | None = Field(description="0 to 1; null where the route was pinned or nothing was found.")
    reasons: list[str]
    passages: list[PassageInfo]
    citations: list[CitationInfo] | None = Field(description="null until the answer is complete, or with cite: false.")
    timings_ms: dict[str, float]
    versions: Versions
    degraded: bool = Field(description="true where passages were wanted and the retriever could not answer.")


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens, those computed before for another request."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(BaseModel):
    """A token that could have stood there. `bytes` are its UTF-8, which may be part of a character."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprobInfo(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """Of each token of the answer, or of one chunk of it."""

    content: list[TokenLogprobInfo]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one choice of a response."""

    index: int = 0
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Response of `POST /v1/chat/completions` without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    switchyard: Outcome


class ModelCard(BaseModel):
    """One entry of `GET /v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int
    parent: str | None = Field(None, description="Extension: the base model of an adapter.")
    digest: str | None = Field(None, description="Extension: content digest of the weights.")


class ModelList(BaseModel):
    """Response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
