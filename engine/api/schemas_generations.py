"""Bodies of generations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class BuildGeneration(BaseModel):
    """Body of `POST /v1/collections/{c}/generations`: how the new one is made, and when it is put in place."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="Encoder: hf:REPO[@REV], pypi:PKG==VER or a folder of the server; default: retriever.model.",
        examples=["hf:BAAI/bge-small-en-v1.5"],
    )
    chunk_tokens: int | None = Field(
        None, ge=16, description="Most encoder tokens in a chunk; default: retriever.chunk_tokens."
    )
    chunk_overlap_tokens: int | None = Field(
        None, ge=0, description="Tokens that neighbouring chunks share; default: retriever.chunk_overlap_tokens."
    )
    switch: Literal["if-not-worse", "always", "never"] = Field(
        "if-not-worse",
        description="Whether it is put in place once it is built: unless it answers the judged queries worse, whatever "
        "they say, or not at all.",
    )


class ComparisonInfo(BaseModel):
    """Means of nDCG@10; `gain` is that of new over old per query, with its 95 % interval."""

    num_queries: int
    old: float
    new: float
    gain: float
    gain_low: float | None = Field(description="Null for fewer than 30 queries.")
    gain_high: float | None


class EvaluationInfo(BaseModel):
    """Both generations on the judged queries of every tenant."""

    default: ComparisonInfo = Field(description="By the default fusion; it decides.")
    fitted: ComparisonInfo | None = Field(
        description="By weights fitted for each on half of the queries, on the other half; null with fewer than 100."
    )


class GenerationReport(BaseModel):
    """What came of building a generation. `evaluated_at` is a Unix time in seconds."""

    switch: str
    is_switched: bool = Field(description="Whether building it put it in place.")
    why: str
    evaluation: EvaluationInfo | None = Field(description="Null where no query is judged.")
    evaluated_at: float


class GenerationInfo(BaseModel):
    """One generation of a collection. `encoder` and `digest` are null until its encoder was loaded first."""

    generation: int
    state: Literal["current", "building", "kept"]
    model: str | None = Field(description="Where its encoder comes from; null where nobody wrote it.")
    encoder: str | None
    digest: str | None = Field(description="SHA-256 of all that decides a vector.")
    chunk_tokens: int
    chunk_overlap_tokens: int
    created_at: float
    task: str | None = Field(description="What is under way with it: the policy of its build, or `use`.")
    job: str | None = Field(description="That of the last thing that was under way.")
    report: GenerationReport | None


class GenerationList(BaseModel):
    """Response of `GET /v1/collections/{c}/generations`, by number."""

    generations: list[GenerationInfo]


def generation_info(row: dict[str, Any]) -> GenerationInfo:
    """A generation as the retriever tells of it."""
    return GenerationInfo.model_validate(row)
