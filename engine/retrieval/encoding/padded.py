"""Any encoder and cross-encoder that transformers knows, on its own forward over padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from engine.errors import ModelSourceError


class PaddedEncoder:
    """A model without a head, on any device and in any number format."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            path: folder with config.json and safetensors.
            device: where it runs.
            dtype: of the weights.
        Raises: OSError or ValueError when transformers cannot load it; ModelSourceError when weights are missing.
        """
        self._model, missing = _load(AutoModel, path, device, dtype)
        # BERT's own pooler is never used here.
        missing = [key for key in missing if not key.startswith("pooler.")]
        if missing:
            raise ModelSourceError(f"{path}: the weights lack {', '.join(missing[:3])}. Fetch the model anew.")
        self.dim: int = self._model.config.hidden_size

    def states(self, encodings: Sequence[Encoding]) -> Tensor:
        """The last hidden state of every token: [T, M] float32, the encodings one after another."""
        inputs = _inputs(self._model, encodings)
        del inputs["token_type_ids"]
        hidden: Tensor = self._model(**inputs).last_hidden_state
        return hidden[inputs["attention_mask"].bool()].float()


class PaddedScorer:
    """A model with one score on top, on any device and in any number format."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            path: folder with config.json and safetensors.
            device: where it runs.
            dtype: of the weights.
        Raises: OSError or ValueError when transformers cannot load it; ModelSourceError when weights are missing or
            there is not one score.
        """
        self._model, missing = _load(AutoModelForSequenceClassification, path, device, dtype)
        if missing or self._model.config.num_labels != 1:
            found = ", ".join(missing[:3])
            why = f"lacks the weights {found}" if found else f"gives {self._model.config.num_labels} scores"
            raise ModelSourceError(
                f"{path}: is no reranker, it {why}. Set retriever.reranker to a cross-encoder with one output."
            )

    def scores(self, encodings: Sequence[Encoding]) -> Tensor:
        """The score of each: [N] float32."""
        inputs = _inputs(self._model, encodings)
        if getattr(self._model.config, "type_vocab_size", 0) <= 1:
            del inputs["token_type_ids"]
        scores: Tensor = self._model(**inputs).logits[:, 0].float()
        return scores


def _load(kind: Any, path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """The model, and the names of missing weights: transformers fills those with random numbers."""
    model, report = kind.from_pretrained(
        path,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=dtype,
    )
    return model.eval().to(device), sorted(report["missing_keys"])


def _inputs(model: Any, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = np.full((len(encodings), longest), model.config.pad_token_id or 0, np.int64)  # [N, longest]
    types, mask = np.zeros_like(ids), np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        length = len(encoding.ids)
        ids[row, :length], types[row, :length], mask[row, :length] = encoding.ids, encoding.type_ids, 1
    arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    return {name: torch.from_numpy(array).to(model.device) for name, array in arrays.items()}
