"""What the lexical index keeps of a chunk. A change of what a field holds needs a new `TERMS_VERSION`."""

from __future__ import annotations

from dataclasses import dataclass

from tantivy import Document, Schema, SchemaBuilder

from engine.retrieval.index.terms import TERMS_VERSION, terms_of

# Part of the schema, so that an index of other terms does not open.
TOKENIZER = f"terms-{TERMS_VERSION}"

# Each field's share of the score. `text` holds title and heading too, so that a word of the title counts in both. Mean
# nDCG@10 over Cranfield, StackFAQ and SQuAD is 0.699 so; 0.693 with title and text apart; 0.677 without `title`; 0.697
# without `exact`.
WEIGHTS = {"text": 1.0, "title": 0.5, "exact": 0.2}


@dataclass(frozen=True, slots=True)
class LexicalChunk:
    """A chunk to index. `key` is its row number in the store, `document` that of its document."""

    key: int
    document: int
    tenant: str
    title: str
    heading: str
    text: str


def new_schema() -> Schema:
    """Fields of chunks and of the marker."""
    builder = SchemaBuilder()
    builder.add_text_field("tenant", tokenizer_name="raw", index_option="basic")
    for field in WEIGHTS:
        builder.add_text_field(field, tokenizer_name=TOKENIZER, index_option="freq")
    builder.add_integer_field("key", indexed=True, fast=True)
    builder.add_integer_field("document", indexed=True)
    builder.add_integer_field("version", fast=True)
    builder.add_integer_field("is_marker", indexed=True)
    return builder.build()


def new_document(chunk: LexicalChunk, version: int) -> Document:
    """A chunk as the write of `version` adds it."""
    document = Document()
    document.add_text("tenant", tenant_term(chunk.tenant))
    title = terms_of(f"{chunk.title}\n{chunk.heading}")
    text = terms_of(chunk.text)
    document.add_text("text", " ".join(title.stems + text.stems))
    document.add_text("title", " ".join(title.stems))
    document.add_text("exact", " ".join(title.exact + text.exact))
    document.add_integer("key", chunk.key)
    document.add_integer("document", chunk.document)
    document.add_integer("version", version)
    return document


def new_marker(version: int) -> Document:
    """Carries the version of a write that adds no chunk; without a tenant, no search finds it."""
    marker = Document()
    marker.add_integer("version", version)
    marker.add_integer("is_marker", 1)
    return marker


def tenant_term(tenant: str) -> str:
    """The empty tenant needs a term too."""
    return f"={tenant}"
