"""Jobs: how far the server is with what it does in the background."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from engine.api.backends import Backends
from engine.api.schemas_jobs import JobInfo, JobList
from engine.api.tenancy import Tenant


def jobs_router(backends: Backends) -> APIRouter:
    """The routes of jobs; each key sees its own tenant's only."""
    router = APIRouter(tags=["jobs"])

    @router.get("/v1/jobs")
    async def jobs(tenant: Tenant, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> JobList:
        """The newest jobs, the newest first."""
        return JobList(jobs=[JobInfo(**row) for row in await backends.jobs(limit, tenant)])

    @router.get("/v1/jobs/{id}")
    async def job(id: str, tenant: Tenant) -> JobInfo:
        """One job."""
        return JobInfo(**await backends.job(id, tenant))

    @router.delete("/v1/jobs/{id}")
    async def cancel_job(id: str, tenant: Tenant) -> JobInfo:
        """Cancel what still waits; what is applied stays, and a job that has ended stays as it is."""
        return JobInfo(**await backends.cancel_job(id, tenant))

    return router
