"""What a stored document needs beside its text, so that it can be cut anew without its original bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.retrieval.parsing.formats import is_markdown
from engine.retrieval.parsing.sections import Section, find_sections
from engine.retrieval.parsing.text import ParsedDocument

Outline = list[tuple[int, list[str]]]


def outline_of(parsed: ParsedDocument) -> Outline | None:
    """The sections to store; None where the text, being Markdown, shows them."""
    return None if parsed.is_markdown else [(section.start, list(section.path)) for section in parsed.sections]


def parsed_again(
    text: str,
    title: str | None,
    content_type: str,
    outline: Iterable[Sequence[object]] | None,
    headings: Iterable[tuple[int, str]] = (),
) -> ParsedDocument:
    """The document as it was parsed.

    Args:
        outline: what `outline_of` gave.
        headings: start and heading of each chunk that it has, in order. They stand in for an outline that was never
            stored; what it said between the chunks' starts is not known any more.
    """
    if is_markdown(content_type):
        return ParsedDocument(text, title, find_sections(text), is_markdown=True)
    if outline is not None:
        sections = [Section(int(str(start)), _path(path)) for start, path in outline]
    else:
        sections = []
        for start, heading in headings:
            path = tuple(heading.split(" > ")) if heading else ()
            if path != (sections[-1].path if sections else ()):
                sections.append(Section(start, path))
    return ParsedDocument(text, title, tuple(sections), is_markdown=False)


def _path(path: object) -> tuple[str, ...]:
    assert isinstance(path, list)
    return tuple(path)
