"""A data folder with as many chunks as wanted, through the retriever's own write path but for the embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from engine.config import RetrieverSettings
from engine.errors import ConfigError
from engine.retrieval.encoding.protocol import EncoderIdentity, EncoderLike, Vectors
from engine.retrieval.service import Retriever
from engine.values import DocumentWrite
from loadtest.retrieval.corpus import endless_copies
from loadtest.retrieval.progress import progress_bar

COLLECTION = "bench"
_PAGES_PER_WRITE = 64
# Length of the noise beside a vector of length 1: a copy keeps a cosine of about 0.9 to what it is copied from.
_NOISE = 0.5


class Perturbing:
    """Gives each passage a perturbed copy of one of `vectors` [n, E], chosen by the passage's text; keeps what it gave.

    How long a search takes depends on number and spread of the rows, not on which text a row belongs to.
    """

    def __init__(self, encoder: EncoderLike, vectors: Vectors) -> None:
        self._encoder = encoder
        self._vectors = vectors
        self.given: list[Vectors] = []

    @property
    def dim(self) -> int:
        """Size E of a vector."""
        return self._encoder.dim

    @property
    def max_tokens(self) -> int:
        """As the encoder's."""
        return self._encoder.max_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The encoder's."""
        return self._encoder.tokenizer

    @property
    def identity(self) -> EncoderIdentity:
        """The encoder's, so that it may open the folder afterwards."""
        return self._encoder.identity

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        """[N, E] float32; queries are embedded in earnest."""
        if is_query:
            return self._encoder.encode(texts, is_query=True)
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts]
        chosen = self._vectors[[seed % len(self._vectors) for seed in seeds]]
        noise = np.random.default_rng(seeds).standard_normal(chosen.shape, np.float32) / np.sqrt(self.dim)
        moved = chosen + np.float32(_NOISE) * noise
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        given: Vectors = moved.astype(np.float32)
        self.given.append(given)
        return given


def fill(
    data: Path,
    items: Sequence[DocumentWrite],
    vectors: Vectors,
    num_chunks: int,
    *,
    encoder: EncoderLike,
    settings: RetrieverSettings,
    console: Console,
) -> Vectors:
    """Write perturbed copies of `items` into `data` until it holds `num_chunks`; `vectors` [n, E] are their texts'.

    Returns: as many rows [N, E] float32 as the folder holds chunks, N >= num_chunks, in another order.
    """
    perturbing = Perturbing(encoder, vectors)
    retriever = Retriever(data, perturbing, settings)
    try:
        copies = endless_copies(items)
        done = 0
        with progress_bar(console, f"writing {num_chunks:,} chunks", num_chunks) as advance:
            while done < num_chunks:
                write_all(retriever, list(islice(copies, _PAGES_PER_WRITE)))
                advance(retriever.status()["chunks"] - done)
                done = retriever.status()["chunks"]
    finally:
        retriever.close()
    rows = np.concatenate(perturbing.given)
    # Chunks with the same text share one embedding, and each has a row of its own.
    return np.concatenate([rows, np.resize(rows, (done - len(rows), encoder.dim))])


def write_all(retriever: Retriever, items: Sequence[DocumentWrite]) -> None:
    """Write documents that must all be accepted. Raises: ConfigError naming the first one that is not."""
    for result in retriever.write(COLLECTION, items):
        if result.error is not None:
            raise ConfigError(f"document {result.id!r}: {result.error}")
