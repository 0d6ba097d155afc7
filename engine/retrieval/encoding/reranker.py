"""A cross-encoder that reads question and passage together: slower than the search, and the better judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.errors import ModelSourceError
from engine.retrieval.encoding.bert import BertScorer, scores_bert
from engine.retrieval.encoding.encoder import choose_dtype
from engine.retrieval.encoding.folder import read_json
from engine.retrieval.encoding.padded import PaddedScorer
from engine.retrieval.encoding.protocol import token_batches
from engine.retrieval.encoding.turns import Turns

_MAX_TOKENS = 512


class Reranker:
    """Any sequence-classification model with one output, such as those of the MS MARCO family. Thread-safe."""

    def __init__(self, path: Path, *, device: str = "cpu", dtype: str = "auto", batch_tokens: int) -> None:
        """
        Args:
            path: folder with config.json, tokenizer.json and safetensors.
            device: a torch device.
            dtype: "auto", "float32", "bfloat16" or "float16" of the weights; "auto" as for `Encoder`.
            batch_tokens: most padded tokens of one forward.
        Raises: ModelSourceError when the folder is incomplete or its model gives more than one score.
        """
        self._device = torch.device(device)
        self._batch_tokens = batch_tokens
        self._turns = Turns()
        try:
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            weights_dtype = choose_dtype(dtype, self._device)
            has_own = self._device.type == "cpu" and weights_dtype == torch.float32 and scores_bert(path)
            self._model = (
                BertScorer(path, is_exact=dtype != "auto")
                if has_own
                else PaddedScorer(path, self._device, weights_dtype)
            )
        except ModelSourceError:
            raise
        except Exception as error:  # tokenizers raises bare Exception for a file that is no tokenizer
            why = " ".join(str(error).split())
            raise ModelSourceError(f"{path}: cannot be loaded as a reranker ({why}).") from None
        longest = read_json(path / "config.json").get("max_position_embeddings") or _MAX_TOKENS
        # The longer of the two gives way, which is the passage.
        self._tokenizer.enable_truncation(min(longest, _MAX_TOKENS), strategy="longest_first")
        self._tokenizer.no_padding()

    def scores(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each of the [N] texts answers the query: [N] float32, higher is better, on the model's own scale."""
        encodings = self._tokenizer.encode_batch([(query, text) for text in texts])
        scores = np.empty(len(texts), np.float32)
        for batch in token_batches([len(encoding.ids) for encoding in encodings], self._batch_tokens):
            with self._turns.take(), torch.inference_mode():
                scores[batch] = self._model.scores([encodings[position] for position in batch]).cpu().numpy()
        return scores
