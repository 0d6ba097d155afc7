"""The encoder: any sentence-transformers folder, on our own forward where it has one and on transformers elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer

from engine.errors import ConfigError, ModelSourceError
from engine.retrieval.encoding.bert import Bert, runs_bert
from engine.retrieval.encoding.folder import read_encoder_folder
from engine.retrieval.encoding.padded import PaddedEncoder
from engine.retrieval.encoding.protocol import EncoderIdentity, Vectors, token_batches
from engine.retrieval.encoding.turns import Turns

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder:
    """Texts to vectors. Thread-safe; calls take turns batch by batch, and queries go ahead of passages."""

    def __init__(
        self, path: Path, *, threads: int, device: str = "cpu", dtype: str = "auto", batch_tokens: int
    ) -> None:
        """
        Args:
            path: folder in the layout of sentence-transformers.
            threads: of a forward on the CPU; a setting of the whole process.
            device: a torch device.
            dtype: "auto", "float32", "bfloat16" or "float16" of the weights; pooling is always in float32. Where "auto"
                comes to float32, linear layers may be rounded as `pack_float_linear` says.
            batch_tokens: most padded tokens of one forward.
        Raises: ModelSourceError when the folder is incomplete or of a kind not supported.
        """
        self._folder = read_encoder_folder(path)
        self._device = torch.device(device)
        self._batch_tokens = batch_tokens
        self._turns = Turns()
        torch.set_num_threads(threads)
        weights_dtype = choose_dtype(dtype, self._device)
        try:
            self.tokenizer = _tokenizer(path)
            self._cutting_tokenizer = _tokenizer(path)
            has_own = self._device.type == "cpu" and weights_dtype == torch.float32 and runs_bert(path)
            self._model = (
                Bert(path, is_exact=dtype != "auto") if has_own else PaddedEncoder(path, self._device, weights_dtype)
            )
        except (OSError, ValueError) as error:
            raise ModelSourceError(f"{path}: cannot be loaded as an encoder ({error}).") from None
        self._cutting_tokenizer.enable_truncation(self._folder.max_tokens)
        self.max_tokens = self._folder.max_tokens - self._num_prompt_tokens()
        self.dim = self._model.dim
        self.identity = EncoderIdentity(
            name=self._folder.name,
            digest=_digest(self._folder.files),
            dim=self.dim,
            pooling=self._folder.pooling,
            normalise=self._folder.normalise,
            max_tokens=self._folder.max_tokens,
        )

    def encode(self, texts: Sequence[str], *, is_query: bool = False) -> Vectors:
        """Embed `texts`, cut to the encoder's length.

        Returns: [N, E] float32, L2-normalised where the model says so.
        """
        prompt = self._folder.query_prompt if is_query else self._folder.passage_prompt
        encodings = self._cutting_tokenizer.encode_batch([prompt + text for text in texts])
        vectors = np.empty((len(texts), self.dim), np.float32)
        for batch in token_batches([len(encoding.ids) for encoding in encodings], self._batch_tokens):
            with self._turns.take(is_urgent=is_query), torch.inference_mode():
                vectors[batch] = self._forward([encodings[position] for position in batch])
        return vectors

    def _forward(self, encodings: Sequence[Encoding]) -> Vectors:
        hidden = self._model.states(encodings)  # [T, M]
        lengths = torch.tensor([len(encoding.ids) for encoding in encodings], device=hidden.device)
        if self._folder.pooling == "cls":
            pooled = hidden[lengths.cumsum(0) - lengths]
        else:
            pooled = torch.segment_reduce(hidden, "mean", lengths=lengths)
        if self._folder.normalise:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        vectors: Vectors = pooled.cpu().numpy()
        return vectors

    def _num_prompt_tokens(self) -> int:
        return len(self.tokenizer.encode(self._folder.passage_prompt, add_special_tokens=False).ids)


def _tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Of the weights. `auto`: float16 on a GPU; on a CPU bfloat16 where it computes in it, else float32.

    Measured on MiniLM and documentation pages (2 cores with AMX): bfloat16 weights embed 3 times as fast as float32
    and keep a cosine of at least 0.9999 to it; autocast is slower (2 times) and keeps 0.99997.
    """
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype {dtype!r} is not supported for an encoder; allowed: auto, {', '.join(_DTYPES)}.")
        return _DTYPES[dtype]
    if device.type != "cpu":
        return torch.float16
    capabilities = torch.cpu.get_capabilities()
    has_bfloat16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
