"""Bodies of `POST /v1/classify`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine.api.schemas_chat import Body, Text
from engine.api.text_inputs import one_or_many, some_texts

MAX_INPUTS = 256


class ClassifyExtension(Body):
    """Extension: how Switchyard answers this request."""

    deadline_ms: int | None = Field(None, ge=1, description="The answer must be complete within this time.")


class ClassifyRequest(Body):
    """Body of `POST /v1/classify`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "intents", "input": ["My card has not come.", "What do you charge?"]}]
        }
    )

    model: str = Field(description="An adapter with labels; `auto` where exactly one such adapter is loaded.")
    input: Text | list[Text] = Field(description=f"A text, or a list of 1 to {MAX_INPUTS} texts.")
    switchyard: ClassifyExtension = ClassifyExtension()

    _one_or_many = field_validator("input", mode="before")(one_or_many)

    @field_validator("input")
    @classmethod
    def _some_texts(cls, value: str | list[str]) -> str | list[str]:
        return some_texts(value, MAX_INPUTS)

    def texts(self) -> list[str]:
        """The input as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class LabelScores(BaseModel):
    """The label of one text, and the probability of each."""

    label: str = Field(description="The most probable one.")
    scores: dict[str, float] = Field(description="Probability by label, in the adapter's order; they sum to 1.")


class Classification(BaseModel):
    """Response of `POST /v1/classify`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "intents",
                    "digest": "5f0c" * 16,
                    "results": [{"label": "card_arrival", "scores": {"card_arrival": 0.93, "card_fee": 0.07}}],
                    "timings_ms": {"total": 48.2},
                }
            ]
        }
    )

    model: str = Field(description="The adapter that answered.")
    digest: str = Field(description="Content digest of its files.")
    results: list[LabelScores] = Field(description="One per text, in their order.")
    timings_ms: dict[str, float]
