"""BERT's forward on our kernels: sequences lie one after another, so no token is padding and no mask is needed.

Reads the weights of BERT, RoBERTa and XLM-R; everything else stays with transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Encoding
from torch import Tensor

from engine.errors import ModelSourceError
from engine.retrieval.encoding.folder import read_json
from kernels.add_norm import add_norm
from kernels.float_linear import FloatWeight, float_linear, pack_float_linear
from kernels.self_attention import self_attention

_FAMILIES = ("bert", "roberta", "xlm-roberta")
_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps", "max_position_embeddings")


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: FloatWeight
    attention_output: FloatWeight
    attention_norm: tuple[Tensor, Tensor]
    up: FloatWeight
    down: FloatWeight
    norm: tuple[Tensor, Tensor]


def runs_bert(path: Path) -> bool:
    """Whether config.json in `path` describes a model that `Bert` computes exactly as transformers does."""
    config = read_json(path / "config.json")
    return (
        config.get("model_type") in _FAMILIES
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and all(config.get(field) for field in _FIELDS)
    )


def scores_bert(path: Path) -> bool:
    """Whether config.json in `path` describes a cross-encoder that `BertScorer` computes as transformers does."""
    config = read_json(path / "config.json")
    is_scorer = config.get("architectures") == ["BertForSequenceClassification"]
    return is_scorer and len(config.get("id2label") or "two") == 1 and runs_bert(path)


class Bert:
    """An encoder's layers in float32 on the CPU, without a head."""

    def __init__(self, path: Path, *, is_exact: bool = True) -> None:
        """
        Args:
            path: folder with config.json, for which `runs_bert`, and safetensors in any number format.
            is_exact: False lets the linear layers round to 16 bits where that is faster: `pack_float_linear`.
        Raises: ModelSourceError when weights cannot be read or are missing.
        """
        config = read_json(path / "config.json")
        self.dim: int = config["hidden_size"]
        self._heads: int = config["num_attention_heads"]
        self._eps: float = config["layer_norm_eps"]
        # RoBERTa counts positions from behind the padding's id, and leaves out tokens that have this id.
        self._padding: int | None = None if config["model_type"] == "bert" else config.get("pad_token_id", 1)
        weights = _Weights(path, is_exact)
        self._words, self._positions, self._types = (
            weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        self._norm = weights.norm("embeddings.LayerNorm")
        self._layers = [_layer(weights, f"encoder.layer.{index}.") for index in range(config["num_hidden_layers"])]

    def states(self, encodings: Sequence[Encoding], *, has_types: bool = False) -> Tensor:
        """The last hidden state of every token: [T, M] float32, the encodings one after another.

        `has_types` tells the second text of a pair from the first.
        """
        ids = torch.tensor([token for encoding in encodings for token in encoding.ids])  # [T]
        starts = torch.from_numpy(np.cumsum([0, *(len(encoding.ids) for encoding in encodings)]))
        positions = torch.from_numpy(np.concatenate([self._places(encoding) for encoding in encodings]))
        words = self._words[ids]
        places = self._positions[positions]
        if has_types and len(self._types) > 1:
            places += self._types[torch.tensor([kind for encoding in encodings for kind in encoding.type_ids])]
        else:
            places += self._types[0]
        hidden = add_norm(words, places, *self._norm, self._eps)
        for layer in self._layers:
            mixed = self_attention(float_linear(hidden, layer.qkv), starts, self._heads)
            hidden = add_norm(float_linear(mixed, layer.attention_output), hidden, *layer.attention_norm, self._eps)
            wide = float_linear(hidden, layer.up, gelu=True)
            hidden = add_norm(float_linear(wide, layer.down), hidden, *layer.norm, self._eps)
        return hidden

    def _places(self, encoding: Encoding) -> np.ndarray[Any, np.dtype[np.int64]]:
        if self._padding is None:
            return np.arange(len(encoding.ids))
        is_real = np.asarray(encoding.ids) != self._padding
        places: np.ndarray[Any, np.dtype[np.int64]] = np.cumsum(is_real) * is_real + self._padding
        return places


class BertScorer:
    """A cross-encoder's layers and the one score on top, in float32 on the CPU."""

    def __init__(self, path: Path, *, is_exact: bool = True) -> None:
        """
        Args:
            path: folder with config.json, for which `scores_bert`, and safetensors in any number format.
            is_exact: as for `Bert`; pooler and classifier are exact in any case.
        Raises: ModelSourceError when weights cannot be read or are missing.
        """
        weights = _Weights(path, is_exact=True)
        self._bert = Bert(path, is_exact=is_exact)
        self._pooler, self._classifier = weights.linear("pooler.dense"), weights.linear("classifier")

    def scores(self, encodings: Sequence[Encoding]) -> Tensor:
        """The score of each: [N] float32."""
        lengths = torch.tensor([len(encoding.ids) for encoding in encodings])
        firsts = self._bert.states(encodings, has_types=True)[lengths.cumsum(0) - lengths]
        return float_linear(torch.tanh(float_linear(firsts, self._pooler)), self._classifier)[:, 0]


class _Weights:
    """The tensors of a folder by the name within the model, in float32."""

    def __init__(self, path: Path, is_exact: bool) -> None:
        self._path, self._is_exact = path, is_exact
        self._files: dict[str, Any] = {}
        single = path / "model.safetensors"
        try:
            for file in [single] if single.is_file() else sorted(path.glob("*.safetensors")):
                opened: Any = safe_open(file, framework="pt")
                self._files |= {_inner(name): (opened, name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelSourceError(f"{path}: the weights cannot be read ({error}).") from None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise ModelSourceError(f"{self._path}: the weights lack {name}. Fetch the model anew.")
        opened, full_name = self._files[name]
        tensor: Tensor = opened.get_tensor(full_name).float()
        return tensor

    def norm(self, name: str) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        return self[f"{name}.weight"], self[f"{name}.bias"]

    def linear(self, *names: str) -> FloatWeight:
        """One weight of the outputs of all the named layers."""
        weights = [self[f"{name}.weight"] for name in names]
        biases = [self[f"{name}.bias"] for name in names]
        return pack_float_linear(torch.cat(weights), torch.cat(biases), is_exact=self._is_exact)


def _inner(name: str) -> str:
    """A model with a head on top puts its own name first, and checkpoints of old say gamma and beta."""
    family, _, rest = name.partition(".")
    inner = rest if family in ("bert", "roberta") else name
    return inner.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _layer(weights: _Weights, prefix: str) -> _Layer:
    inputs = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
    return _Layer(
        qkv=weights.linear(*inputs),
        attention_output=weights.linear(f"{prefix}attention.output.dense"),
        attention_norm=weights.norm(f"{prefix}attention.output.LayerNorm"),
        up=weights.linear(f"{prefix}intermediate.dense"),
        down=weights.linear(f"{prefix}output.dense"),
        norm=weights.norm(f"{prefix}output.LayerNorm"),
    )
