"""What the rest of retrieval needs of an encoder; importing this needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
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
