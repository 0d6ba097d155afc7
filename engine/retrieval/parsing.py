"""Bytes of a document to its text, title and sections. Nothing here recurses over input or runs in worse than
near-linear time, so that no document can hang the writer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import UnparsableDocument, UnsupportedMediaType
from engine.retrieval.parsing_html import parse_html
from engine.retrieval.parsing_markdown import parse_markdown
from engine.retrieval.sections import Section, find_sections

_MARKDOWN, _HTML, _PLAIN = "text/markdown", "text/html", "text/plain"
_ALIASES = {"text/x-markdown": _MARKDOWN}
# By the ending of a file's name.
CONTENT_TYPES = {
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".markerb": _MARKDOWN,
    ".txt": _PLAIN,
    ".html": _HTML,
    ".htm": _HTML,
}
# Tab, line feed, form feed, carriage return and escape occur in honest text (logs, man pages).
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_MAX_CONTROL_SHARE = 0.01
_MAX_TITLE_CHARS = 1000
_MANY_BLANK_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """The text that is indexed; offsets of sections, chunks and passages count its characters.

    `is_markdown` says whether the text's structure is Markdown's (HTML is rendered to it) or that of plain text.
    """

    text: str
    title: str | None
    sections: tuple[Section, ...]
    is_markdown: bool


def parse_document(body: bytes, content_type: str, *, title: str | None) -> ParsedDocument:
    """Parse a document; its title is `title`, else the one it states itself, else its first heading, else None.

    Raises: UnparsableDocument when the bytes are not UTF-8 text; UnsupportedMediaType for a type not read here.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    media_type = _ALIASES.get(media_type, media_type)
    if media_type not in (_MARKDOWN, _HTML, _PLAIN):
        raise UnsupportedMediaType(content_type, [_MARKDOWN, _HTML, _PLAIN, *_ALIASES])
    raw = _decode(body)
    if media_type == _PLAIN:
        return ParsedDocument(_tidy(raw), _one_line(title), (), is_markdown=False)
    text, stated_title = parse_markdown(raw) if media_type == _MARKDOWN else parse_html(raw)
    text = _tidy(text)
    sections = find_sections(text)
    first_heading = sections[0].path[-1] if sections else None
    return ParsedDocument(text, _one_line(title or stated_title or first_heading), sections, is_markdown=True)


def _decode(body: bytes) -> str:
    """UTF-8 (a byte order mark is dropped) to text with `\\n` line ends."""
    nul = body.find(b"\0")
    if nul >= 0:
        raise UnparsableDocument(
            f"byte {nul} is NUL, so this is no text file. Send UTF-8 text; convert UTF-16 and binary formats first.",
            param="body",
        )
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if body.startswith(b"\xef\xbb\xbf") else 0)
        raise UnparsableDocument(
            f"byte {offset} (0x{body[offset]:02x}) is not UTF-8. Convert the file to UTF-8 and send it again.",
            param="body",
        ) from None
    controls = _CONTROL.findall(body)
    first = _CONTROL.search(body)
    if first is not None and len(controls) > _MAX_CONTROL_SHARE * len(body):
        raise UnparsableDocument(
            f"{len(controls)} of {len(body)} bytes are control characters, the first (0x{first[0].hex()}) at byte "
            f"{first.start()}, so this looks like a binary file. Send UTF-8 text.",
            param="body",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _one_line(title: str | None) -> str | None:
    return " ".join(title.split())[:_MAX_TITLE_CHARS] or None if title is not None else None


def _tidy(text: str) -> str:
    # The splitter takes minutes over long runs of blank lines (quadratic), and they mean nothing to a reader.
    lines = ("" if line.isspace() else line for line in text.split("\n"))
    return _MANY_BLANK_LINES.sub("\n\n\n", "\n".join(lines)).strip("\n")
