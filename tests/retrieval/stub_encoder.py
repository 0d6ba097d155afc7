"""An encoder that behaves like a real one (same words, near vectors) and needs no model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.config import RetrieverSettings
from engine.retrieval.encoding.protocol import EncoderIdentity, Vectors

DIM = 64
SETTINGS = RetrieverSettings(chunk_tokens=30, chunk_overlap_tokens=5)


class StubEncoder:
    """The mean of one fixed random direction per word; counts what it embeds."""

    def __init__(self, name: str = "words", max_tokens: int = 64) -> None:
        self.dim = DIM
        self.max_tokens = max_tokens
        self.tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        digest = hashlib.sha256(name.encode()).hexdigest()
        self.identity = EncoderIdentity(name, digest, DIM, "mean", True, max_tokens)
        self.num_passages = 0
        self.query_batches: list[list[str]] = []

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        if is_query:
            self.query_batches.append(list(texts))
        else:
            self.num_passages += len(texts)
        vectors = np.zeros((len(texts), DIM), np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row] += self._direction(word)
            vectors[row] /= np.linalg.norm(vectors[row]) or 1.0
        return vectors

    def _direction(self, word: str) -> Vectors:
        seed = int.from_bytes(hashlib.sha256(f"{self.identity.name} {word}".encode()).digest()[:8], "little")
        return np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
