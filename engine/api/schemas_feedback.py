"""Bodies of `/v1/feedback`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.api.schemas_chat import Body
from engine.errors import InvalidRequest

_MAX_TEXT_CHARS = 20_000


class FeedbackBody(Body):
    """Body of `POST /v1/feedback`: a score or a label, the right answer, or both."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": "chatcmpl-5f0c", "label": "bad", "text": "Volumes can only grow."}]}
    )

    id: str = Field(min_length=1, max_length=64, description="Id of a chat's response.")
    score: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="How good the answer was, 0 to 1.")
    label: Literal["good", "bad"] | None = Field(None, description="good is a score of 1, bad of 0.")
    text: Annotated[str, Field(max_length=_MAX_TEXT_CHARS, pattern=r"\S")] | None = Field(
        None, description="What the answer should have been."
    )

    @model_validator(mode="after")
    def _says_something_once(self) -> FeedbackBody:
        if self.score is not None and self.label is not None:
            raise InvalidRequest("score and label both say how good the answer was; send one of them.", param="score")
        if self.score is None and self.label is None and self.text is None:
            raise InvalidRequest("send a score from 0 to 1, a label (good or bad), or text.", param="score")
        return self

    def quality(self) -> float | None:
        """The score, or what the label stands for."""
        if self.label is not None:
            return 1.0 if self.label == "good" else 0.0
        return self.score


class FeedbackOutcome(BaseModel):
    """Response of `POST /v1/feedback`."""

    id: str
    status: Literal["created", "updated"] = Field(description="updated: in place of what was said before.")


class FeedbackList(BaseModel):
    """Response of `GET /v1/feedback`."""

    feedback: list[dict[str, Any]] = Field(description="What was said, with what was decided; the oldest first.")
    next: int | None = Field(description="`after` of the next page; null where this is the last.")
