"""Bodies of jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class JobError(BaseModel):
    """One item that failed."""

    item: str = Field(description="The document's id; empty where the job as a whole failed.")
    error: str


class JobInfo(BaseModel):
    """A long task of the server. Times are Unix times in seconds.

    `done` means that every item was handled; `failed` says how many of them could not be.
    """

    id: str
    kind: str = Field(description="`ingest`: writes with wait=durable; `generation`: a generation that is built.")
    collection: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    total: int | None = Field(description="Items; null while they are still counted.")
    done: int = Field(description="Items that were applied, or replaced by a later write before it came to that.")
    failed: int
    errors: list[JobError] = Field(description="Of the items that failed, the first 100.")
    created_at: float
    started_at: float | None
    finished_at: float | None
    progress: float = Field(ge=0, le=1, description="Share of the items that are handled.")
    eta_s: float | None = Field(description="Seconds until the end at the rate so far; null where that is unknown.")
    version: int | None = Field(
        description="Version of the collection that holds what was applied last; for min_version of a search."
    )
    waiting_for: str | None = Field(description="What keeps the server from going on, such as a full disk.")


class JobList(BaseModel):
    """Response of `GET /v1/jobs`: the newest first."""

    jobs: list[JobInfo]
