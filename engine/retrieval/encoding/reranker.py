"""A cross-encoder that reads question and passage together: slower than the search, and the better judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import AutoModelForSequenceClassification

from engine.errors import ModelSourceError
from engine.retrieval.encoding.encoder import choose_dtype
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
            dtype: "auto", "float32", "bfloat16" or "float16" of the weights.
            batch_tokens: most padded tokens of one forward.
        Raises: ModelSourceError when the folder is incomplete or its model gives more than one score.
        """
        self._device = torch.device(device)
        self._batch_tokens = batch_tokens
        self._turns = Turns()
        try:
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=choose_dtype(dtype, self._device),
            )
        except Exception as error:  # tokenizers raises bare Exception for a file that is no tokenizer
            why = " ".join(str(error).split())
            raise ModelSourceError(f"{path}: cannot be loaded as a reranker ({why}).") from None
        if model.config.num_labels != 1 or report["missing_keys"]:
            found = ", ".join(sorted(report["missing_keys"])[:3])
            why = f"lacks the weights {found}" if found else f"gives {model.config.num_labels} scores"
            raise ModelSourceError(
                f"{path}: is no reranker, it {why}. Set retriever.reranker to a cross-encoder with one output."
            )
        longest = getattr(model.config, "max_position_embeddings", None) or _MAX_TOKENS
        # The longer of the two gives way, which is the passage.
        self._tokenizer.enable_truncation(min(longest, _MAX_TOKENS), strategy="longest_first")
        self._tokenizer.no_padding()
        self._model: Any = model.eval().to(self._device)
        self._pad_id: int = model.config.pad_token_id or 0

    def scores(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """How well each of the [N] texts answers the query: [N] float32, higher is better, on the model's own scale."""
        encodings = self._tokenizer.encode_batch([(query, text) for text in texts])
        scores = np.empty(len(texts), np.float32)
        for batch in token_batches([len(encoding.ids) for encoding in encodings], self._batch_tokens):
            with self._turns.take(), torch.inference_mode():
                scores[batch] = self._forward([encodings[position] for position in batch])
        return scores

    def _forward(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.full((len(encodings), longest), self._pad_id, np.int64)  # [N, T]
        types, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            ids[row, :length], types[row, :length], mask[row, :length] = encoding.ids, encoding.type_ids, 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if getattr(self._model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = types
        output = self._model(**{name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()})
        scores: NDArray[np.float32] = output.logits[:, 0].float().cpu().numpy()
        return scores
