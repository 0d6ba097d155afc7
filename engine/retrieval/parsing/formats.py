"""Bytes of a document to its text, title and sections, so that no document can hang the writer: text and Markdown are
parsed here, where nothing recurses over input or runs in worse than near-linear time; every other format is parsed in a
process of its own, under limits."""

from __future__ import annotations

from dataclasses import replace

from engine.errors import UnsupportedMediaType
from engine.retrieval.parsing.markdown import parse_markdown
from engine.retrieval.parsing.process import POOL
from engine.retrieval.parsing.text import ParsedDocument, decode, from_markdown, one_line, tidy

__all__ = ["BINARY_TYPES", "CONTENT_TYPES", "MEDIA_TYPES", "ParsedDocument", "is_markdown", "parse_document"]

_MARKDOWN, _HTML, _PLAIN = "text/markdown", "text/html", "text/plain"
_CSV, _TSV, _JSONL = "text/csv", "text/tab-separated-values", "application/jsonl"
_PDF = "application/pdf"
_OFFICE = "application/vnd.openxmlformats-officedocument."
_DOCX = f"{_OFFICE}wordprocessingml.document"
_PPTX = f"{_OFFICE}presentationml.presentation"
_XLSX = f"{_OFFICE}spreadsheetml.sheet"
_ALIASES = {"text/x-markdown": _MARKDOWN, "application/x-ndjson": _JSONL}
# The parser of each type that is not parsed in this process.
_PARSERS = {
    _HTML: "html",
    _CSV: "csv",
    _TSV: "tsv",
    _JSONL: "jsonl",
    _PDF: "pdf",
    _DOCX: "docx",
    _PPTX: "pptx",
    _XLSX: "xlsx",
}
# What is Markdown, or is rendered to it.
_RENDERED = frozenset({_MARKDOWN, _HTML, _DOCX, _PPTX, _XLSX})
# Every type that is read, and those of them that are no text.
MEDIA_TYPES = (_MARKDOWN, _PLAIN, *_PARSERS, *_ALIASES)
BINARY_TYPES = frozenset({_PDF, _DOCX, _PPTX, _XLSX})
# By the ending of a file's name.
CONTENT_TYPES = {
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".markerb": _MARKDOWN,
    ".txt": _PLAIN,
    ".html": _HTML,
    ".htm": _HTML,
    ".csv": _CSV,
    ".tsv": _TSV,
    ".jsonl": _JSONL,
    ".ndjson": _JSONL,
    ".pdf": _PDF,
    ".docx": _DOCX,
    ".pptx": _PPTX,
    ".xlsx": _XLSX,
}


def is_markdown(content_type: str) -> bool:
    """Whether the text of such a document, once parsed, has Markdown's structure."""
    return _media_type(content_type) in _RENDERED


def parse_document(body: bytes, content_type: str, *, title: str | None) -> ParsedDocument:
    """Parse a document; its title is `title`, else the one it states itself, else its first heading, else None.

    Raises: UnparsableDocument when the bytes are not what the type says, or over a limit; UnsupportedMediaType for a
        type not read here; ComponentUnavailable when no process is free for a type that needs one.
    """
    media_type = _media_type(content_type)
    if media_type in _PARSERS:
        parsed = POOL.parse(_PARSERS[media_type], body)
        return replace(parsed, title=one_line(title) or parsed.title)
    if media_type == _PLAIN:
        return ParsedDocument(tidy(decode(body)), one_line(title), (), is_markdown=False)
    if media_type == _MARKDOWN:
        text, stated_title = parse_markdown(decode(body))
        return from_markdown(text, title or stated_title)
    raise UnsupportedMediaType(content_type, MEDIA_TYPES)


def _media_type(content_type: str) -> str:
    media_type = content_type.partition(";")[0].strip().lower()
    return _ALIASES.get(media_type, media_type)
