"""Chunks: spans of the text, along headings, that the encoder can read whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tokenizers import Tokenizer

from engine.errors import ConfigError
from engine.retrieval.parsing.chunking import Chunker
from engine.retrieval.parsing.formats import ParsedDocument, parse_document


@pytest.fixture
def chunker(encoder) -> Chunker:
    return Chunker(encoder.tokenizer, chunk_tokens=30, overlap_tokens=5, max_tokens=64)


def markdown(text: str, title: str | None = None) -> ParsedDocument:
    return parse_document(text.encode(), "text/markdown", title=title)


def texts_of(document: ParsedDocument, chunker: Chunker) -> list[str]:
    return [document.text[chunk.start : chunk.end] for chunk in chunker.chunks(document)]


def test_offsets_count_characters_in_text_of_many_bytes(chunker):
    document = markdown("# Straße 日本語\n\n" + "Größe 😀 wörd. " * 50 + "\n\n## Zwei 😀\n\n" + "é " * 25)
    chunks = chunker.chunks(document)
    assert len(chunks) > 5
    for chunk in chunks:
        assert chunk.embedded.endswith("\n" + document.text[chunk.start : chunk.end])
    assert chunks[-1].heading == "Straße 日本語 > Zwei 😀"
    assert document.text[chunks[-1].start : chunks[-1].end].endswith("é é")


@pytest.mark.parametrize("content_type", ["text/plain", "text/markdown"])
def test_every_word_of_a_long_text_is_in_some_chunk(chunker, content_type):
    words = [f"word{i}" for i in range(20_000)]
    document = parse_document(" ".join(words).encode(), content_type, title=None)
    found = {word for text in texts_of(document, chunker) for word in text.split()}
    assert found == set(words)


def test_no_chunk_is_longer_than_the_setting_and_neighbours_overlap(chunker, encoder):
    document = markdown("one two three four five six. " * 40)
    chunks = chunker.chunks(document)
    assert max(len(encoder.tokenizer.encode(text).ids) for text in texts_of(document, chunker)) <= 30
    assert all(before.start < after.start < before.end for before, after in pairwise(chunks))


def test_chunk_carries_the_headings_above_its_start(chunker):
    document = markdown("intro text\n\n# Volumes\n\n" + "a b c " * 10 + "\n\n## Snapshots\n\n" + "d e f " * 10)
    assert [chunk.heading for chunk in chunker.chunks(document)] == ["", "Volumes", "Volumes > Snapshots"]


def test_chunk_that_begins_with_the_end_of_a_section_takes_the_heading_that_fills_it(encoder):
    chunker = Chunker(encoder.tokenizer, chunk_tokens=30, overlap_tokens=0, max_tokens=64)
    document = markdown("# First\n\n" + "a. " * 16 + "\n\n# Second\n\n" + "b. " * 8)
    last = chunker.chunks(document)[-1]
    assert document.text[last.start] == "a"
    assert last.heading == "Second"


def test_title_and_headings_are_embedded_with_the_chunk_and_repeated_title_only_once(chunker):
    document = markdown("# Guide\n\nHello.\n\n## Setup\n\n" + "text " * 28, title="Guide")
    assert chunker.chunks(document)[-1].embedded == "Guide > Setup\n## Setup\n\n" + ("text " * 28).strip()
    other = markdown("## Setup\n\n" + "text " * 28, title="Other")
    assert chunker.chunks(other)[-1].embedded.startswith("Other > Setup\n")


def test_heading_line_is_shortened_so_that_the_whole_chunk_fits_the_encoder(encoder):
    chunker = Chunker(encoder.tokenizer, chunk_tokens=30, overlap_tokens=0, max_tokens=34)
    document = markdown("text " * 60, title="a very long title of more words than the encoder has room for")
    chunks = chunker.chunks(document)
    assert chunks[0].embedded == "a very long title\n" + ("text " * 30).strip()
    assert all(len(encoder.tokenizer.encode(chunk.embedded).ids) <= 34 for chunk in chunks)


def test_heading_line_goes_where_the_chunk_fills_the_encoder(encoder):
    chunker = Chunker(encoder.tokenizer, chunk_tokens=30, overlap_tokens=0, max_tokens=30)
    document = markdown("text " * 30, title="Title")
    assert chunker.chunks(document)[0].embedded == ("text " * 30).strip()


def test_special_tokens_are_counted_with_a_real_tokenizer(default_encoder_path):
    tokenizer = Tokenizer.from_file(str(default_encoder_path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    chunker = Chunker(tokenizer, chunk_tokens=254, overlap_tokens=0, max_tokens=256)
    document = markdown("# Unwahrscheinlichkeiten\n\n" + "naïve überraschend xyzzy. " * 300)
    assert max(len(tokenizer.encode(chunk.embedded).ids) for chunk in chunker.chunks(document)) == 256
    with pytest.raises(ConfigError, match=r"chunk_tokens=255 .* reads 254 tokens"):
        Chunker(tokenizer, chunk_tokens=255, overlap_tokens=0, max_tokens=256)


@pytest.mark.parametrize("text", ["", " \n\t\n ", "\u00a0\n\u2003"])
def test_document_without_text_has_no_chunks(chunker, text):
    assert chunker.chunks(markdown(text, title="Title")) == []


def test_heading_or_fence_alone_is_no_chunk(chunker):
    document = markdown("# Config\n\n```toml\n" + "key = value\n" * 40 + "```\n")
    assert all("key" in text for text in texts_of(document, chunker))
    assert {chunk.heading for chunk in chunker.chunks(document)} == {"Config"}


def test_document_of_nothing_but_headings_can_still_be_found(chunker):
    document = markdown("# Contact us at the desk\n\n## Opening hours nine to five\n")
    assert texts_of(document, chunker) == [document.text]


def test_endless_word_is_cut_into_bounded_chunks(chunker):
    document = markdown("x" * 10_000)
    assert [len(text) for text in texts_of(document, chunker)] == [480] * 20 + [400]


@pytest.mark.parametrize(
    "hostile",
    [
        "".join(" " * depth + "- a\n" for depth in range(400)),
        "> " * 8_000 + "a",
        "- " * 8_000 + "a",
        "".join(">" * min(depth, 40) + " a\n" for depth in range(800)),
        "[" * 20_000,
        "*a " * 10_000,
        "a" + " " * 50_000 + "b",
        "# a\n" * 20_000,
        "| a " * 20_000,
    ],
    ids=["lists", "quotes", "inline lists", "quote lines", "brackets", "stars", "spaces", "headings", "cells"],
)
def test_document_made_to_be_slow_is_chunked_in_the_end(chunker, hostile):
    document = markdown(hostile)
    assert all(0 <= chunk.start < chunk.end <= len(document.text) for chunk in chunker.chunks(document))
