"""Bodies of `POST /v1/route`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine.api.schemas_chat import Body, Text
from engine.api.text_inputs import one_or_many, some_texts

MAX_QUESTIONS = 64


class RouteBody(Body):
    """Body of `POST /v1/route`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"input": ["How do I resize a volume?"], "embeddings": False}]}
    )

    input: Text | list[Text] = Field(description=f"A question, or a list of 1 to {MAX_QUESTIONS} questions.")
    model: str = Field("auto", description="As in a chat: `auto`, the base model or an adapter.")
    collection: str | None = Field(None, description="Collection to search; default: retriever.default_collection.")
    top_k: int | None = Field(None, ge=1, le=32, description="Passages to search for; default: as for an answer.")
    signals: bool = Field(True, description="Give what is known of each question.")
    embeddings: bool = Field(False, description="Give the embedding of each question.")

    _one_or_many = field_validator("input", mode="before")(one_or_many)

    @field_validator("input")
    @classmethod
    def _some_texts(cls, value: str | list[str]) -> str | list[str]:
        return some_texts(value, MAX_QUESTIONS, "questions")

    def texts(self) -> list[str]:
        """The input as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class RouteResult(BaseModel):
    """The decision for one question."""

    route: str
    adapter: str | None = Field(description="null: the base model answers.")
    confidence: float | None = Field(description="As in a chat's answer.")
    reasons: list[str]
    signals: dict[str, float | None] | None = Field(description="By name; null for what could not be known.")
    embedding: list[float] | None = Field(description="Of unit length.")


class RouteResponse(BaseModel):
    """Response of `POST /v1/route`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "results": [
                        {
                            "route": "rag",
                            "adapter": None,
                            "confidence": 0.83,
                            "reasons": ["expected quality: base+context 0.71, base 0.44"],
                            "signals": {"lexical.tokens": 6, "search.z_best": 5.1, "adapter.max_cosine": None},
                            "embedding": None,
                        }
                    ],
                    "keys": {
                        "model": "9c1e" * 16,
                        "index": "default/77ab03c4d5e6",
                        "encoder": "41d0" * 16,
                        "adapters": {},
                    },
                    "arms": ["base", "base+context"],
                    "router": "router-0f3a5c7e9b1d",
                    "timings_ms": {"embed": 4.1, "search": 1.9, "signals": 0.6, "route": 0.2},
                }
            ]
        }
    )

    results: list[RouteResult] = Field(description="One per question, in their order.")
    keys: dict[str, Any] = Field(description="Digests of what is served: outcomes measured with others do not compare.")
    arms: list[str] = Field(description="Those that can answer now.")
    router: str = Field(description="What decides for this collection: a rule, or an artefact.")
    timings_ms: dict[str, float] = Field(description="Of all questions together: embed, search, signals, route.")
