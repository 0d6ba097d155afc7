"""One item of a write, checked, parsed and cut into chunks; nothing is embedded or stored yet."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass

from engine.errors import InvalidRequest
from engine.retrieval.parsing.chunking import Chunker
from engine.retrieval.parsing.formats import ParsedDocument, parse_document
from engine.retrieval.parsing.outline import outline_of
from engine.retrieval.store.write import NewChunk, NewDocument
from engine.values import DocumentWrite

_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MAX_ID_CHARS = 512
_MAX_TITLE_CHARS = 1000
# Part of every chunk's id, and never changed: an id is the same in each generation that cuts the same piece.
_ID_FORM = 1


@dataclass(frozen=True, slots=True)
class PreparedDocument:
    """A document to store, and the text to embed behind each hash that its chunks name."""

    document: NewDocument
    texts: dict[str, str]


def check_collection_name(name: str) -> None:
    """Raise InvalidRequest unless the name has the form that paths, logs and tables allow."""
    if not _COLLECTION.fullmatch(name):
        raise InvalidRequest(
            f"collection {_shown(name)} is no valid name; allowed: 1 to 64 of A-Z a-z 0-9 _ . - "
            "with a letter or digit first.",
            param="collection",
        )


def check_document_id(document_id: str) -> None:
    """Raise InvalidRequest for an empty or overlong id, or one with control characters or lone surrogates."""
    problem = None
    if not document_id.strip():
        problem = "is empty"
    elif len(document_id) > MAX_ID_CHARS:
        problem = f"has {len(document_id)} characters, allowed are {MAX_ID_CHARS}"
    elif any(unicodedata.category(character) in ("Cc", "Cs") for character in document_id):
        problem = "holds a control character or half a surrogate pair"
    if problem is not None:
        raise InvalidRequest(
            f"document id {_shown(document_id)} {problem}. Use source/relative path, such as docs/setup.md.", param="id"
        )


def content_hash(item: DocumentWrite) -> str:
    """SHA-256 (hex) of everything that decides what is stored for an item.

    Raises: InvalidRequest for a title or metadata that cannot be stored.
    """
    if item.title is not None and len(item.title) > _MAX_TITLE_CHARS:
        raise InvalidRequest(
            f"the title has {len(item.title)} characters, allowed are {_MAX_TITLE_CHARS}.", param="title"
        )
    parts = [body_hash(item), item.content_type, item.title, item.metadata]
    try:
        text = json.dumps(parts, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"title or metadata cannot be stored ({error}); allowed: what JSON can hold, in valid Unicode.",
            param="metadata",
        ) from None
    return hashlib.sha256(text).hexdigest()


def body_hash(item: DocumentWrite) -> str:
    """SHA-256 (hex) of the body as sent."""
    return hashlib.sha256(item.body).hexdigest()


def prepare_document(item: DocumentWrite, chunker: Chunker) -> PreparedDocument:
    """Parse and chunk. Raises: UnparsableDocument, UnsupportedMediaType."""
    return cut_document(item, parse_document(item.body, item.content_type, title=item.title), chunker)


def cut_document(item: DocumentWrite, parsed: ParsedDocument, chunker: Chunker) -> PreparedDocument:
    """Chunk what an item was parsed to. Thread-safe, and most of the time outside of Python's lock."""
    chunks, texts = cut(item.id, parsed, chunker)
    source, slash, _ = item.id.partition("/")
    document = NewDocument(
        id=item.id,
        source=source if slash else "",
        title=parsed.title,
        content_type=item.content_type,
        body_hash=body_hash(item),
        content_hash=content_hash(item),
        metadata=item.metadata,
        text=parsed.text,
        chunks=chunks,
        outline=outline_of(parsed),
    )
    return PreparedDocument(document, texts)


def cut(document_id: str, parsed: ParsedDocument, chunker: Chunker) -> tuple[tuple[NewChunk, ...], dict[str, str]]:
    """The chunks of a document, and the text to embed behind each hash that they name."""
    texts: dict[str, str] = {}
    chunks = []
    for ordinal, chunk in enumerate(chunker.chunks(parsed)):
        text_hash = hashlib.sha256(chunk.embedded.encode()).hexdigest()
        texts[text_hash] = chunk.embedded
        public_id = _chunk_id(document_id, ordinal, parsed.text[chunk.start : chunk.end])
        chunks.append(NewChunk(public_id, chunk.start, chunk.end, chunk.heading, text_hash))
    return tuple(chunks), texts


def _chunk_id(document_id: str, ordinal: int, text: str) -> str:
    """Stable over restarts and re-ingestion of the same text under the same id."""
    return hashlib.sha256(json.dumps([document_id, _ID_FORM, ordinal, text]).encode()).hexdigest()[:32]


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 60 else value[:60] + "...")
