"""Search, documents and collections."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from engine.api.backends import Backends
from engine.api.client_values import passage_info
from engine.api.error_table import describe_problem
from engine.api.schemas_knowledge import (
    BatchItem,
    BatchResponse,
    CollectionInfo,
    CollectionList,
    Document,
    DocumentBody,
    DocumentList,
    DocumentSummary,
    SearchHit,
    SearchRequest,
    SearchResponse,
    WriteOutcome,
)
from engine.api.search_turns import SearchTurns
from engine.api.strict_json import StrictRoute, parse_json
from engine.api.tenancy import Tenant
from engine.config import EngineConfig
from engine.errors import InvalidRequest, UnknownCollection, UnknownDocument, UnsupportedMediaType
from engine.retrieval.parsing.formats import BINARY_TYPES, MEDIA_TYPES
from engine.retrieval.preparing import MAX_ID_CHARS
from engine.values import DocumentWrite, Evidence, WriteResult
from engine.values import Query as RetrieverQuery

Wait = Annotated[
    Literal["durable", "searchable"],
    Query(
        description="What the answer means: the write is searchable (and durable), or it is durable (202), and a job "
        "says when it is searchable."
    ),
]
Job = Annotated[
    str | None,
    Query(description="Extension: with wait=durable, the job to add to, which an earlier write answered."),
]


def knowledge_router(backends: Backends, config: EngineConfig, turns: SearchTurns) -> APIRouter:
    """The routes of the knowledge base; `turns` are those of its searches."""
    router = APIRouter(route_class=StrictRoute, tags=["knowledge base"])

    @router.post("/v1/search")
    async def search(request: SearchRequest, tenant: Tenant) -> SearchResponse:
        """Passages for one or many queries, best first."""
        collection = request.collection or config.retriever.default_collection
        queries = [
            RetrieverQuery(
                text,
                collection,
                request.k,
                request.filter,
                tenant=tenant,
                min_version=request.min_version,
                mode=request.mode or config.retriever.mode,
                wants_similarities=False,
            )
            for text in request.texts()
        ]
        # What waits for a version uses no core meanwhile, and would hold up the others.
        turn = nullcontext() if request.min_version else turns.take(len(queries))
        async with turn:
            found = await asyncio.gather(*map(backends.evidence, queries))
        return _search_response(found)

    async def write(
        collection: str, items: list[DocumentWrite], tenant: str, wait: str, job: str | None, response: Response
    ) -> list[WriteResult]:
        if wait == "searchable":
            if job is not None:
                raise InvalidRequest("job goes with wait=durable only; leave it out, or add wait=durable.", param="job")
            return await backends.write(collection, items, tenant)
        results = await backends.enqueue(collection, items, tenant, job)
        if any(result.status == "accepted" for result in results):
            response.status_code = 202
        return results

    @router.put(
        "/v1/collections/{collection}/documents/{document:path}",
        openapi_extra=_PUT_BODY,
        responses={202: {"model": WriteOutcome, "description": "Accepted: wait=durable"}},
    )
    async def put_document(
        collection: str,
        document: str,
        request: Request,
        response: Response,
        tenant: Tenant,
        wait: Wait = "searchable",
        job: Job = None,
    ) -> WriteOutcome:
        """Add or replace one document; sending the same again changes nothing."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if media_type == "application/json":
            try:
                parsed = DocumentBody.model_validate(parse_json(body))
            except ValidationError as error:
                raise describe_problem(error.errors()[0]) from None
            item = DocumentWrite(document, parsed.text.encode(), parsed.content_type, parsed.title, parsed.metadata)
        elif media_type in MEDIA_TYPES:
            item = DocumentWrite(document, body, media_type)
        else:
            raise UnsupportedMediaType(media_type or "none", [*MEDIA_TYPES, "application/json"])
        (result,) = await write(collection, [item], tenant, wait, job, response)
        return _succeeded(result)

    @router.get("/v1/collections/{collection}/documents")
    async def list_documents(
        collection: str,
        tenant: Tenant,
        source: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 500,
    ) -> DocumentList:
        """Ids and content hashes, in the order of the ids; page with `after`."""
        rows = await backends.documents(collection, source, after, limit, tenant)
        documents = [DocumentSummary(**row) for row in rows]
        return DocumentList(documents=documents, next=documents[-1].id if len(documents) == limit else None)

    @router.get("/v1/collections/{collection}/documents/{document:path}")
    async def get_document(collection: str, document: str, tenant: Tenant) -> Document:
        """A document's text as it is indexed; offsets of passages count its characters."""
        return Document(**await backends.document(collection, document, tenant))

    @router.delete(
        "/v1/collections/{collection}/documents/{document:path}",
        responses={202: {"model": WriteOutcome, "description": "Accepted: wait=durable"}},
    )
    async def delete_document(
        collection: str,
        document: str,
        response: Response,
        tenant: Tenant,
        wait: Wait = "searchable",
        job: Job = None,
    ) -> WriteOutcome:
        """Delete one document; afterwards no search returns it."""
        item = DocumentWrite(document, delete=True)
        (result,) = await write(collection, [item], tenant, wait, job, response)
        if result.status == "absent":
            raise UnknownDocument(collection, document)
        return _succeeded(result)

    @router.post(
        "/v1/collections/{collection}/documents:batch",
        openapi_extra=_BATCH_BODY,
        responses={202: {"model": BatchResponse, "description": "Accepted: wait=durable"}},
    )
    async def write_batch(
        collection: str,
        request: Request,
        response: Response,
        tenant: Tenant,
        wait: Wait = "searchable",
        job: Job = None,
    ) -> BatchResponse:
        """Write many documents, one JSON object a line; a line that fails never stops the rest."""
        lines = [line for line in (await request.body()).split(b"\n") if line.strip()]
        if not lines:
            raise InvalidRequest('the batch is empty; send one JSON object a line, such as {"id": "a", "text": "b"}.')
        outcomes: list[WriteOutcome | None] = []
        items: list[DocumentWrite] = []
        for number, line in enumerate(lines, start=1):
            item = _batch_item(line, number)
            if isinstance(item, DocumentWrite):
                items.append(item)
                outcomes.append(None)
            else:
                outcomes.append(item)
        written = await write(collection, items, tenant, wait, job, response) if items else []
        results = iter(written)
        merged = [outcome or _outcome(next(results)) for outcome in outcomes]
        return BatchResponse(
            results=merged,
            version=max(outcome.version for outcome in merged),
            job=next((result.job for result in written if result.job is not None), None),
        )

    @router.get("/v1/collections")
    async def collections(tenant: Tenant) -> CollectionList:
        """Every collection with its size and version."""
        return CollectionList(collections=[CollectionInfo(**row) for row in await backends.collections(tenant)])

    @router.get("/v1/collections/{collection}")
    async def collection_info(collection: str, tenant: Tenant) -> CollectionInfo:
        """One collection."""
        rows = {row["name"]: row for row in await backends.collections(tenant)}
        if collection not in rows:
            raise UnknownCollection(collection, rows)
        return CollectionInfo(**rows[collection])

    return router


def _search_response(found: list[Evidence]) -> SearchResponse:
    timings = {name: max(one.timings_ms.get(name, 0.0) for one in found) for name in found[0].timings_ms}
    results = [
        [
            SearchHit.model_validate(passage_info(passage).model_dump() | {"heading": passage.heading})
            for passage in one.passages
        ]
        for one in found
    ]
    return SearchResponse(
        results=results,
        version=min(one.version for one in found),
        timings_ms={name: round(value, 2) for name, value in timings.items()},
    )


def _batch_item(line: bytes, number: int) -> DocumentWrite | WriteOutcome:
    """One line as a write, or as the outcome that says why it cannot be one."""
    try:
        raw = parse_json(line)
        item = BatchItem.model_validate(raw)
    except (InvalidRequest, ValidationError) as error:
        problem = describe_problem(error.errors()[0]) if isinstance(error, ValidationError) else error
        known = raw.get("id") if isinstance(error, ValidationError) and isinstance(raw, dict) else None
        name = _short(known) if isinstance(known, str) else f"line {number}"
        return WriteOutcome(
            id=name,
            status="failed",
            version=0,
            chunks=0,
            embedded=0,
            error=f"line {number}: {problem}",
            code=problem.code,
        )
    return DocumentWrite(item.id, (item.text or "").encode(), item.content_type, item.title, item.metadata, item.delete)


def _outcome(result: WriteResult) -> WriteOutcome:
    return WriteOutcome(
        id=_short(result.id),
        status=result.status,
        version=result.version,
        chunks=result.chunks,
        embedded=result.embedded,
        error=str(result.error) if result.error else None,
        code=result.error.code if result.error else None,
        job=result.job,
    )


def _short(id: str) -> str:
    """An id as it is, or the beginning of what is too long for one."""
    return id if len(id) <= MAX_ID_CHARS else f"{id[:60]}..."


def _succeeded(result: WriteResult) -> WriteOutcome:
    """The outcome of a single write; a failure is an error response rather than a body that says so."""
    if result.error is not None:
        raise result.error
    return _outcome(result)


_PUT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": DocumentBody.model_json_schema()},
            **{
                media_type: {
                    "schema": {"type": "string"} | ({"format": "binary"} if media_type in BINARY_TYPES else {})
                }
                for media_type in MEDIA_TYPES
            },
        },
    }
}
_BATCH_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/x-ndjson": {"schema": {"type": "string"}, "example": '{"id": "a", "text": "b"}\n'}},
    }
}
