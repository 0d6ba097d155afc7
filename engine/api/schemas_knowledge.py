"""Bodies of search, documents and collections."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from engine.api.schemas_chat import Body, PassageInfo, Text
from engine.values import SearchMode


class SearchRequest(Body):
    """Body of `POST /v1/search`: one `query` or up to 256 `queries`."""

    query: Text | None = None
    queries: list[Text] | None = Field(None, min_length=1, max_length=256)
    collection: str | None = Field(None, description="Default: retriever.default_collection.")
    mode: SearchMode | None = Field(
        None, description="By meaning (dense), by words (lexical) or both (hybrid). Default: retriever.mode."
    )
    k: int = Field(5, ge=1, le=100)
    filter: dict[str, Any] | None = Field(
        None,
        description="Only passages of documents whose metadata match: $and, $or, $not, and per field $eq, $ne, $in, "
        "$nin, $gt, $gte, $lt, $lte, $exists. Built-in fields: $id, $source, $title, $content_type.",
        examples=[{"product": "volumes", "updated": {"$gte": "2026-01-01"}}],
    )
    min_version: int = Field(0, ge=0, description="Answer from this index version or a later one.")

    @model_validator(mode="after")
    def _one_kind_of_query(self) -> SearchRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("send either query or queries")
        if not all(text.strip() for text in self.texts()):
            raise ValueError("query is empty; send some text to search for")
        return self

    def texts(self) -> list[str]:
        """The queries as a list."""
        return [self.query] if self.query is not None else self.queries or []


class SearchHit(PassageInfo):
    """One passage of a search."""

    text: str
    heading: str = Field("", description="Headings that it stands under, as a prompt shows them.")


class SearchResponse(BaseModel):
    """Response of `POST /v1/search`: a ranked list per query."""

    results: list[list[SearchHit]]
    version: int
    timings_ms: dict[str, float]


class DocumentBody(Body):
    """JSON body of `PUT /v1/collections/{c}/documents/{id}`; the raw file with its Content-Type does as well."""

    text: str
    title: str | None = Field(None, max_length=1000)
    metadata: dict[str, Any] = Field(default_factory=dict)
    content_type: str = Field("text/markdown", description="Extension: how `text` is parsed.")


class BatchItem(Body):
    """One line of `POST /v1/collections/{c}/documents:batch`."""

    id: str
    text: str | None = None
    delete: bool = False
    title: str | None = Field(None, max_length=1000)
    metadata: dict[str, Any] = Field(default_factory=dict)
    content_type: str = Field("text/markdown", description="Extension: how `text` is parsed.")

    @model_validator(mode="after")
    def _text_or_delete(self) -> BatchItem:
        if self.delete == (self.text is not None):
            raise ValueError('send either "text" or "delete": true')
        return self


class WriteOutcome(BaseModel):
    """What became of one document. `status: failed` comes with `error` and `code`, `accepted` with `job`."""

    id: str
    status: Literal["created", "updated", "unchanged", "deleted", "absent", "failed", "accepted"]
    version: int
    chunks: int
    embedded: int = Field(description="Chunks that had to be embedded; the rest were embedded before.")
    error: str | None = None
    code: str | None = None
    job: str | None = Field(None, description="`GET /v1/jobs/{job}` says how far a write with wait=durable is.")


class BatchResponse(BaseModel):
    """Response of `documents:batch`: a result per line, in order. With wait=durable `job` counts what was accepted."""

    results: list[WriteOutcome]
    version: int
    job: str | None = None


class DocumentSummary(BaseModel):
    """One row of `GET /v1/collections/{c}/documents`. `content_hash` is the SHA-256 of the body as sent."""

    id: str
    source: str
    title: str | None
    content_hash: str
    chunks: int
    version: int


class DocumentList(BaseModel):
    """A page of documents; ask again with `after` = `next` while `next` is not null."""

    documents: list[DocumentSummary]
    next: str | None


class Document(DocumentSummary):
    """A document as it is indexed: passages are slices of `text`."""

    text: str
    metadata: dict[str, Any]


class CollectionInfo(BaseModel):
    """One collection."""

    name: str
    documents: int
    chunks: int
    version: int
    sources: list[str]


class CollectionList(BaseModel):
    """Response of `GET /v1/collections`."""

    collections: list[CollectionInfo]
