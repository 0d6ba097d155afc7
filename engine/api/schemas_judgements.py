"""Bodies of judgements."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from engine.api.schemas_chat import Body

_MAX_QUERY_CHARS = 4_000
MAX_GRADE = 10


class JudgementLine(Body):
    """One line of `PUT /v1/collections/{c}/judgements`."""

    query: Annotated[str, Field(max_length=_MAX_QUERY_CHARS, pattern=r"\S")]
    document: Annotated[str, Field(min_length=1, max_length=512)]
    grade: Annotated[int, Field(ge=0, le=MAX_GRADE, strict=True, description="0 is not relevant; more is better.")]


class JudgementOutcome(BaseModel):
    """What became of one line. `status: failed` comes with `error` and `code`."""

    query: str
    document: str
    status: Literal["created", "updated", "unchanged", "failed"]
    error: str | None = None
    code: str | None = None


class FitInfo(BaseModel):
    """The fitted weight of meaning, and nDCG@10 on the judged queries that it was not fitted on."""

    alpha: float = Field(ge=0, le=1, description="The fitted weight of meaning; the rest is the words'.")
    is_used: bool = Field(description="Whether searches use it: it did not do worse than the default fusion.")
    num_fitted: int = Field(description="Queries that it was fitted on.")
    num_held_out: int = Field(description="Queries that the figures are of.")
    default: float = Field(description="By the server's default fusion.")
    fitted: float = Field(description="By the fitted weight.")
    dense: float = Field(description="By meaning alone.")
    lexical: float = Field(description="By words alone.")
    gain: float = Field(description="Mean of fitted less default.")
    gain_low: float = Field(description="Lower end of its 95 % confidence interval, from a paired bootstrap.")
    gain_high: float
    fitted_at: float = Field(description="Unix time in seconds.")


class JudgementsInfo(BaseModel):
    """Response of `GET /v1/collections/{c}/judgements`."""

    judgements: int
    queries: int = Field(description="Judged queries with a relevant document that is in the collection.")
    unknown_documents: int = Field(description="Judgements of documents that are not in the collection.")
    missing: int = Field(description="Queries that are missing for a fit.")
    is_fitting: bool = Field(description="Whether a fit to the present judgements is still to come.")
    problem: str | None = Field(description="Why the last fit failed.")
    weight: float | None = Field(description="The fitted weight that searches use; null: the default fusion.")
    fit: FitInfo | None


class JudgementsResponse(JudgementsInfo):
    """Response of `PUT /v1/collections/{c}/judgements`: a result per line, in order, and what there is now."""

    results: list[JudgementOutcome]


class JudgementsRemoved(BaseModel):
    """Response of `DELETE /v1/collections/{c}/judgements`."""

    deleted: int
