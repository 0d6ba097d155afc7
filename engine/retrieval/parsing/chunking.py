"""A parsed document to chunks: spans of its text that the encoder can read whole, each with its heading path."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer

from engine.errors import ConfigError
from engine.retrieval.parsing.formats import ParsedDocument
from engine.retrieval.parsing.sections import Section

# The splitter's time is quadratic in nested lists and quotes; over pieces of this size that stays bearable.
_PIECE_CHARS = 16_384
# A run without word boundaries (base64, minified code) is one token to some tokenizers, however long it is.
_MAX_CHARS_PER_TOKEN = 16
_FENCE = re.compile(r"[ \t>]*(`{3}|~{3})")
_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Chunk:
    """`text[start:end]` of its document, in characters.

    `heading` is the path of sections at `start`, joined by " > "; `embedded` is what the encoder is given.
    """

    start: int
    end: int
    heading: str
    embedded: str


class Chunker:
    """Cuts along headings, blocks, sentences and words, by the encoder's own tokens."""

    def __init__(self, tokenizer: Tokenizer, *, chunk_tokens: int, overlap_tokens: int, max_tokens: int) -> None:
        """
        Args:
            tokenizer: the encoder's, without truncation or padding.
            chunk_tokens: most tokens of a chunk; special tokens and heading line not counted.
            overlap_tokens: tokens that neighbouring chunks share.
            max_tokens: most tokens that the encoder reads, special tokens counted.
        Raises: ConfigError when a chunk would not fit into the encoder.
        """
        self._room = max_tokens - tokenizer.num_special_tokens_to_add(is_pair=False)
        if chunk_tokens > self._room:
            raise ConfigError(
                f"retriever.chunk_tokens={chunk_tokens} does not fit into this encoder, which reads {self._room} "
                f"tokens of text at once. Set it to {self._room} or less, or choose another retriever.model."
            )
        self._tokenizer = tokenizer
        self._max_chars = chunk_tokens * _MAX_CHARS_PER_TOKEN
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer(tokenizer, chunk_tokens, overlap=overlap_tokens)
        self._plain = TextSplitter.from_huggingface_tokenizer(tokenizer, chunk_tokens, overlap=overlap_tokens)

    def chunks(self, document: ParsedDocument) -> list[Chunk]:
        """The chunks in order of their start; none for a document without text.

        A heading or the opening of a code fence that the splitter leaves alone is no chunk: the chunks behind it
        carry the heading, and by its heading alone it would outrank them.
        """
        starts = [section.start for section in document.sections]
        chunks = self._all_chunks(document, starts)
        return [chunk for chunk in chunks if _has_content(document.text, chunk, starts)] or chunks

    def _all_chunks(self, document: ParsedDocument, starts: list[int]) -> list[Chunk]:
        splitter = self._markdown if document.is_markdown else self._plain
        chunks = []
        for piece_start, piece_end in _pieces(document.text, document.sections):
            for offset, chunk in splitter.chunk_indices(document.text[piece_start:piece_end]):
                for start in range(piece_start + offset, piece_start + offset + len(chunk), self._max_chars):
                    end = min(start + self._max_chars, piece_start + offset + len(chunk))
                    path = _path_of(start, end, document.sections, starts)
                    embedded = self._with_heading(document.title, path, document.text[start:end])
                    chunks.append(Chunk(start, end, " > ".join(path), embedded))
        return chunks

    def _with_heading(self, title: str | None, path: tuple[str, ...], chunk: str) -> str:
        """Title and path, then the chunk; the first line is shortened until both fit the encoder."""
        names = path if title is None or path[:1] == (title,) else (title, *path)
        # No heading needs more characters, and tokenizing a title takes time in proportion to its length.
        line = " > ".join(names)[: self._room * _MAX_CHARS_PER_TOKEN]
        while line:
            embedded = f"{line}\n{chunk}"
            excess = self._num_tokens(embedded) - self._room
            if excess <= 0:
                return embedded
            offsets = self._tokenizer.encode(line, add_special_tokens=False).offsets
            line = line[: offsets[-excess][0]].rstrip() if excess < len(offsets) else ""
        return chunk

    def _num_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _path_of(start: int, end: int, sections: tuple[Section, ...], section_starts: list[int]) -> tuple[str, ...]:
    """The path where the chunk begins; a chunk that begins with the rest of a section takes the next one's instead
    where that fills more than half of it."""
    section = bisect_right(section_starts, start) - 1
    begins_inside = section < 0 or section_starts[section] < start
    if begins_inside and section + 1 < len(sections) and section_starts[section + 1] < (start + end) // 2:
        section += 1
    return sections[section].path if section >= 0 else ()


def _has_content(text: str, chunk: Chunk, section_starts: list[int]) -> bool:
    lines = text[chunk.start : chunk.end].split("\n")
    num_lines = sum(bool(_WORD.search(line)) and not _FENCE.match(line) for line in lines)
    return num_lines > bisect_left(section_starts, chunk.end) - bisect_left(section_starts, chunk.start)


def _pieces(text: str, sections: tuple[Section, ...]) -> Iterator[tuple[int, int]]:
    """Cut a long text before a heading, else behind a paragraph or line, else anywhere; (start, end) in characters."""
    starts = [section.start for section in sections]
    start = 0
    while len(text) - start > _PIECE_CHARS:
        earliest, latest = start + _PIECE_CHARS // 2, start + _PIECE_CHARS
        heading = bisect_right(starts, latest) - 1
        if heading >= 0 and starts[heading] >= earliest:
            end = starts[heading]
        else:
            breaks = (text.rfind(boundary, earliest, latest) for boundary in ("\n\n", "\n", " "))
            end = next((found + 1 for found in breaks if found >= 0), latest)
        yield start, end
        start = end
    yield start, len(text)
