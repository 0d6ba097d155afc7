"""Any encoder that transformers knows, on its own forward over padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import AutoModel

from engine.errors import ModelSourceError


class PaddedModel:
    """A transformers model without a head, on any device and in any number format."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            path: folder with config.json and safetensors.
            device: where it runs.
            dtype: of the weights.
        Raises: OSError or ValueError when transformers cannot load it; ModelSourceError when weights are missing.
        """
        model, report = AutoModel.from_pretrained(
            path,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
        )
        # transformers fills missing weights with random numbers; BERT's own pooler is never used here.
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise ModelSourceError(f"{path}: the weights lack {', '.join(missing[:3])}. Fetch the model anew.")
        self._device = device
        self._model = model.eval().to(device)
        self._pad_id: int = model.config.pad_token_id or 0
        self.dim: int = model.config.hidden_size

    def states(self, encodings: Sequence[Encoding]) -> Tensor:
        """The last hidden state of every token: [T, M] float32, the encodings one after another."""
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.full((len(encodings), longest), self._pad_id, np.int64)  # [N, longest]
        mask = np.zeros((len(encodings), longest), np.int64)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        attention_mask = torch.from_numpy(mask).to(self._device)
        output = self._model(input_ids=torch.from_numpy(ids).to(self._device), attention_mask=attention_mask)
        hidden: Tensor = output.last_hidden_state[attention_mask.bool()].float()
        return hidden
