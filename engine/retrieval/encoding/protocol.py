"""What the rest of retrieval needs of an encoder; importing this needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EncoderIdentity:
    """What must be equal for two vectors to be comparable; stored with every generation of a collection.

    `digest` is the SHA-256 (hex) of everything that decides a vector: weights, tokenizer and settings files.
    """

    name: str
    digest: str
    dim: int
    pooling: str
    normalise: bool
    max_tokens: int


class EncoderLike(Protocol):
    """Turns texts into vectors. Thread-safe."""

    @property
    def dim(self) -> int:
        """Size E of a vector."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most tokens of a passage, special tokens counted; what is longer would be cut off."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer, without truncation or padding."""
        ...

    @property
    def identity(self) -> EncoderIdentity: ...

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        """[N, E] float32, in the order of `texts`."""
        ...


class RerankerLike(Protocol):
    """Judges passages for a question. Thread-safe."""

    def scores(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """[N] log-odds that each of the texts answers the query."""
        ...


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Positions of the texts, longest first, in batches whose padded size stays within the budget."""
    batch: list[int] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        longest = longest if batch else lengths[position]
        batch.append(position)
    if batch:
        yield batch
