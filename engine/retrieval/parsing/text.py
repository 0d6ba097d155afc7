"""The parsed document, and what its text goes through whatever the format."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import UnparsableDocument
from engine.retrieval.parsing.sections import Section, find_sections

# Tab, line feed, form feed, carriage return and escape occur in honest text (logs, man pages).
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
_MAX_CONTROL_SHARE = 0.01
_MAX_TITLE_CHARS = 1000
_MANY_BLANK_LINES = re.compile(r"\n{4,}")
# Databases refuse NUL; the others are leftovers of fonts and layouts.
_UNPRINTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """The text that is indexed; offsets of sections, chunks and passages count its characters.

    `is_markdown` says whether the text's structure is Markdown's (HTML is rendered to it) or that of plain text.
    """

    text: str
    title: str | None
    sections: tuple[Section, ...]
    is_markdown: bool


def decode(body: bytes) -> str:
    """UTF-8 (a byte order mark is dropped) to text with `\\n` line ends.

    Raises: UnparsableDocument when the bytes are not UTF-8 text, with the first bad one.
    """
    nul = body.find(b"\0")
    if nul >= 0:
        raise UnparsableDocument(
            f"byte {nul} is NUL ({_line_of(body, nul)}), so this is no text file. Send UTF-8 text; convert UTF-16 and "
            "binary formats first.",
            param="body",
        )
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if body.startswith(b"\xef\xbb\xbf") else 0)
        raise UnparsableDocument(
            f"byte {offset} (0x{body[offset]:02x}) is not UTF-8 ({_line_of(body, offset)}). Convert the file "
            "to UTF-8 and send it again.",
            param="body",
        ) from None
    num_controls = len(_CONTROL.findall(body))
    first = _CONTROL.search(body)
    if first is not None and num_controls > _MAX_CONTROL_SHARE * len(body):
        raise UnparsableDocument(
            f"{num_controls} of {len(body)} bytes are control characters, the first (0x{first[0].hex()}) at byte "
            f"{first.start()}, so this looks like a binary file. Send UTF-8 text.",
            param="body",
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def from_markdown(text: str, title: str | None) -> ParsedDocument:
    """The document of a Markdown text; without a title it takes its first heading for one."""
    text = tidy(text)
    sections = find_sections(text)
    first_heading = sections[0].path[-1] if sections else None
    return ParsedDocument(text, one_line(title or first_heading), sections, is_markdown=True)


def one_line(title: str | None) -> str | None:
    """A title without line breaks and of bearable length; None for one without characters."""
    return " ".join(title.split())[:_MAX_TITLE_CHARS] or None if title is not None else None


def tidy(text: str) -> str:
    """The text without long runs of blank lines and without blanks at its ends."""
    # The splitter takes minutes over long runs of blank lines (quadratic), and they mean nothing to a reader.
    lines = ("" if line.isspace() else line for line in text.split("\n"))
    return _MANY_BLANK_LINES.sub("\n\n\n", "\n".join(lines)).strip("\n")


def printable(text: str) -> str:
    """Text of a library that promises nothing: no control characters, no halves of surrogate pairs, `\\n` line ends."""
    if text.isprintable():
        return text
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _UNPRINTED.sub(" ", whole.replace("\r\n", "\n").replace("\r", "\n"))


def _line_of(body: bytes, offset: int) -> str:
    return f"line {body.count(10, 0, offset) + 1}"
