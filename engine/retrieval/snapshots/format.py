"""What a snapshot file holds: a zip archive of JSON lines and raw vectors.

    manifest.json      a Manifest: what is inside, with the size and SHA-256 of every other part
    documents.jsonl    a SnapshotDocument per line, its chunks inside
    texts.jsonl        a JSON string per line: the hash of the embedded text behind each row of the vectors
    vectors.f32        [texts, E] little-endian float32

The archive's comment, its last bytes, is a seal: the SHA-256 of all before it, so that no flipped bit goes unseen.
"""

from __future__ import annotations

import hashlib
from typing import IO, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from engine.retrieval.encoding.protocol import EncoderIdentity

# Version 1 says nothing of `model` and `outline`, which are read as null.
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, FORMAT_VERSION)
MANIFEST = "manifest.json"
DOCUMENTS, TEXTS, VECTORS = PARTS = ("documents.jsonl", "texts.jsonl", "vectors.f32")
VECTOR = np.dtype("<f4")
SEAL_PREFIX = b"switchyard snapshot sha256="
DIGEST_BYTES = 64
_PIECE_BYTES = 1 << 20

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Part(_Strict):
    """A part's uncompressed size and SHA-256."""

    size_bytes: Count
    sha256: Sha256Hex


class Manifest(_Strict):
    """The collection `collection` as it was at its version `version`; the counts are of what the parts hold.

    `model` is where the encoder comes from, as `retriever.model` names it.
    """

    format_version: int
    collection: str
    version: Count
    created_at: float
    documents: Count
    chunks: Count
    texts: Count
    encoder: EncoderIdentity
    chunking: dict[str, Any]
    model: str | None = None
    parts: dict[str, Part]


class SnapshotChunk(_Strict):
    """A chunk: the slice [start, end) of its document's text."""

    id: Annotated[str, Field(min_length=1, max_length=32)]
    start: Count
    end: Count
    heading: str
    text_hash: Sha256Hex


class SnapshotDocument(_Strict):
    """A document as the store holds it, with the chunks of the generation that was in place."""

    tenant: Annotated[str, Field(max_length=64)]
    id: str
    source: Annotated[str, Field(max_length=512)]
    title: str | None
    content_type: Annotated[str, Field(max_length=255)]
    body_hash: Sha256Hex
    content_hash: Sha256Hex
    metadata: dict[str, Any]
    updated_at: float
    text: str
    outline: list[tuple[Count, list[str]]] | None = None
    chunks: list[SnapshotChunk]


def sealed_digest(file: IO[bytes]) -> bytes | None:
    """The SHA-256 (hex) that an open file's seal tells, None where the file does not end in a seal."""
    length = len(SEAL_PREFIX) + DIGEST_BYTES
    if file.seek(0, 2) < length:
        return None
    file.seek(-length, 2)
    seal = file.read(length)
    return seal.removeprefix(SEAL_PREFIX) if seal.startswith(SEAL_PREFIX) else None


def computed_digest(file: IO[bytes]) -> bytes:
    """SHA-256 (hex) of all bytes of an open file but the digest at its end."""
    digest = hashlib.sha256()
    remaining = file.seek(0, 2) - DIGEST_BYTES
    file.seek(0)
    while remaining > 0 and (piece := file.read(min(_PIECE_BYTES, remaining))):
        digest.update(piece)
        remaining -= len(piece)
    return digest.hexdigest().encode()
