"""Where the sections of a Markdown text begin; a `#` line inside a code fence is no heading."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Bounds what a hostile document of nothing but headings can cost in memory; no real one comes near.
_MAX_SECTIONS = 10_000
_MAX_HEADING_CHARS = 200
_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})([^\n]*)")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+")
_UNDERLINE = re.compile(r" {0,3}(={3,}|-{3,})[ \t]*")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")
# What may not be the line above an underline: other blocks, for which `---` is a rule or part of a table.
_NOT_A_PARAGRAPH = re.compile(r"\s*([#>|*+-]|\d+[.)]|$)|    ")


@dataclass(frozen=True, slots=True)
class Section:
    """A heading at `start` (characters) and the path down to it, such as ("Volumes", "Snapshots")."""

    start: int
    path: tuple[str, ...]


def split_fences(text: str) -> Iterator[tuple[int, int, bool]]:
    """Cut a Markdown text into runs of whole lines: (start, end, is_code) in characters, covering it all.

    The fence lines belong to the code. A fence that is never closed runs to the end, as in CommonMark.
    """
    run_start, opening = 0, ""
    for start, line in _lines(text):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        mark, rest = fence[1], fence[2]
        if not opening and not (mark[0] == "`" and "`" in rest):
            if start > run_start:
                yield run_start, start, False
            run_start, opening = start, mark
        elif opening and mark[0] == opening[0] and len(mark) >= len(opening) and not rest.strip():
            end = start + len(line)
            yield run_start, end, True
            run_start, opening = end, ""
    if run_start < len(text):
        yield run_start, len(text), bool(opening)


def find_sections(text: str) -> tuple[Section, ...]:
    """Every heading outside code, in order of its start."""
    sections: list[Section] = []
    path: list[tuple[int, str]] = []
    for start, level, title in _headings(text):
        path = [(above, name) for above, name in path if above < level]
        path.append((level, title))
        sections.append(Section(start, tuple(name for _, name in path)))
        if len(sections) == _MAX_SECTIONS:
            break
    return tuple(sections)


def _headings(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, level, title) of each heading that has a title."""
    for run_start, run_end, is_code in split_fences(text):
        if is_code:
            continue
        previous_start, previous = run_start, ""
        for offset, line in _lines(text[run_start:run_end]):
            start = run_start + offset
            hashes = _HEADING.match(line)
            underline = _UNDERLINE.fullmatch(line.rstrip("\n"))
            if hashes is not None:
                title = _plain(line[hashes.end() :].rstrip().rstrip("#"))
                if title:
                    yield start, len(hashes[1]), title
                line = ""
            elif underline is not None and not _NOT_A_PARAGRAPH.match(previous):
                yield previous_start, 1 if underline[1][0] == "=" else 2, _plain(previous)
                line = ""
            previous_start, previous = start, line


def _plain(heading: str) -> str:
    """A heading's words without links, emphasis and code marks."""
    cut = heading[: 2 * _MAX_HEADING_CHARS]
    return _LINK.sub(r"\1", cut).replace("`", "").replace("*", "").strip()[:_MAX_HEADING_CHARS]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(start, line with its line feed) of each line; only `\\n` ends a line."""
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield start, text[start:end]
        start = end
