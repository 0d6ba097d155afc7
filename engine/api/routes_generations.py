"""Generations of a collection: another encoder or other chunks, built beside what is searched and put in its place."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BeforeValidator

from engine.api.backends import Backends
from engine.api.schemas_generations import BuildGeneration, GenerationInfo, GenerationList, generation_info
from engine.api.schemas_jobs import JobInfo
from engine.api.strict_json import StrictRoute
from engine.api.tenancy import no_tenant

_PATH = "/v1/collections/{collection}/generations"


def _number(text: str) -> str:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text[:80]!a} is not a generation's number, such as 1. Use one of GET {_PATH}.")
    return text


Number = Annotated[int, Path(), BeforeValidator(_number)]


def generations_router(backends: Backends) -> APIRouter:
    """The routes of generations. They concern all tenants of a collection, so no tenant's key may use them."""
    allowed = [no_tenant("a generation of a collection")]
    router = APIRouter(route_class=StrictRoute, tags=["generations"], dependencies=allowed)

    @router.get(_PATH)
    async def generations(collection: str) -> GenerationList:
        """Those that are kept, the one that is searched among them."""
        rows = await backends.generations(collection)
        return GenerationList(generations=[generation_info(row) for row in rows])

    @router.post(_PATH, status_code=202)
    async def build(collection: str, request: BuildGeneration) -> JobInfo:
        """Begin another one; the job counts its documents, and ends once it is put in place or its report says why not.

        Searches and writes go on.
        """
        return JobInfo(**await backends.build_generation(collection, request.model_dump()))

    @router.post(f"{_PATH}/{{generation}}/use", status_code=202)
    async def use(collection: str, generation: Number) -> JobInfo:
        """Put one that is kept in place, with all that was written since; the job counts what that has to catch up."""
        return JobInfo(**await backends.use_generation(collection, generation))

    @router.delete(f"{_PATH}/{{generation}}")
    async def drop(collection: str, generation: Number) -> GenerationInfo:
        """Remove one that is not searched, with its chunks and vectors."""
        return generation_info(await backends.drop_generation(collection, generation))

    return router
