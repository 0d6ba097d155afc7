"""How the chunks of a collection are made: by which encoder, cut into which sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import RetrieverSettings
from engine.retrieval.encoding.protocol import EncoderLike
from engine.retrieval.parsing.chunking import Chunker


@dataclass(frozen=True, slots=True)
class Recipe:
    """That of one generation of a collection; `model` is where its encoder comes from, None where nobody wrote it."""

    generation: int
    encoder: EncoderLike
    chunking: dict[str, Any]
    model: str | None
    chunker: Chunker


def new_recipe(generation: int, encoder: EncoderLike, chunking: Mapping[str, Any], model: str | None) -> Recipe:
    """Raises: ConfigError when chunks of this size do not fit into the encoder."""
    chunker = Chunker(
        encoder.tokenizer,
        chunk_tokens=chunking["chunk_tokens"],
        overlap_tokens=chunking["chunk_overlap_tokens"],
        max_tokens=encoder.max_tokens,
    )
    return Recipe(generation, encoder, dict(chunking), model, chunker)


def chunking_of(settings: RetrieverSettings) -> dict[str, Any]:
    """What is recorded of how documents are cut."""
    return {"chunk_tokens": settings.chunk_tokens, "chunk_overlap_tokens": settings.chunk_overlap_tokens}
