"""What a checkpoint's config.json says, as the numbers that the decoder is built from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from engine.errors import ModelSourceError
from engine.models import GENERATOR_ARCHITECTURES

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding. `scaling` holds the numbers that `kind` (of ROPE_TYPES) needs."""

    theta: float
    kind: str
    scaling: dict[str, float]

    def frequencies(self, head_dim: int) -> Tensor:
        """[head_dim / 2] float32: radians per position of each pair of dimensions.

        Source: RoFormer, arXiv:2104.09864; llama3: the frequency bands of Llama 3.1's reference code.
        """
        base = 1.0 / self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        if self.kind == "linear":
            return base / self.scaling["factor"]
        if self.kind == "llama3":
            return self._by_band(base)
        return base

    def _by_band(self, base: Tensor) -> Tensor:
        """High frequencies as they are, low ones divided by the factor, a ramp between the two."""
        factor, low, high = (self.scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
        turns = self.scaling["original_max_position_embeddings"] * base / (2 * torch.pi)
        ramp = ((turns - low) / (high - low)).clamp(0, 1)
        return base * (ramp + (1 - ramp) / factor)


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Sizes and switches of one checkpoint. `windows[i]` is layer i's sliding window in tokens, 0 for none."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int, ...]
    norm_eps: float
    rope: RopeSpec
    max_positions: int
    is_tied: bool
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.windows)

    def kv_token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one token's keys and values, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def read_spec(path: Path) -> DecoderSpec:
    """The spec of the checkpoint in folder `path`.

    Raises: ModelSourceError naming what is missing, unreadable or not supported, and what is.
    """
    _check_architecture(path)
    try:
        config: Any = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelSourceError(f"{path}: config.json cannot be read ({' '.join(str(error).split())}).") from None
    kind = config.model_type
    _refuse(path, "hidden_act", config.hidden_act, ("silu",))
    _refuse(path, "quantization_config", getattr(config, "quantization_config", None), (None,))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    has_bias = bool(getattr(config, "attention_bias", False))
    if config.num_attention_heads % config.num_key_value_heads or head_dim % 2:
        raise ModelSourceError(
            f"{path}: num_attention_heads={config.num_attention_heads} must be a multiple of "
            f"num_key_value_heads={config.num_key_value_heads}, and head_dim={head_dim} even."
        )
    return DecoderSpec(
        architecture=kind,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        windows=_windows(config),
        norm_eps=config.rms_norm_eps,
        rope=_rope(path, config),
        max_positions=config.max_position_embeddings,
        is_tied=bool(config.tie_word_embeddings),
        has_qkv_bias=has_bias or kind == "qwen2",
        has_output_bias=has_bias,
        has_mlp_bias=bool(getattr(config, "mlp_bias", False)),
        has_qk_norm=kind == "qwen3",
    )


def _check_architecture(path: Path) -> None:
    try:
        architecture = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelSourceError(f"{path}: config.json cannot be read ({' '.join(str(error).split())}).") from None
    if architecture not in GENERATOR_ARCHITECTURES:
        raise ModelSourceError(
            f"{path}: architecture {architecture!r} is not supported; supported: {', '.join(GENERATOR_ARCHITECTURES)}. "
            "Name another model with generator.model."
        )


def _windows(config: Any) -> tuple[int, ...]:
    """Mistral slides in every layer, Qwen in those of `layer_types`, Llama in none."""
    layers = range(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None) or 0
    if config.model_type == "mistral":
        return tuple(window for _ in layers)
    types = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
    return tuple(window if types[layer] == "sliding_attention" else 0 for layer in layers)


def _rope(path: Path, config: Any) -> RopeSpec:
    raw = dict(config.rope_parameters)
    kind = raw.get("rope_type", "default")
    _refuse(path, "rope_type", kind, ROPE_TYPES)
    _refuse(path, "partial_rotary_factor", raw.get("partial_rotary_factor", 1.0), (1.0,))
    scaling = {name: float(value) for name, value in raw.items() if isinstance(value, int | float)}
    return RopeSpec(theta=scaling.pop("rope_theta"), kind=kind, scaling=scaling)


def _refuse(path: Path, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        words = ", ".join("none" if item is None else str(item) for item in allowed)
        raise ModelSourceError(
            f"{path}: {name} {value!r} is not supported; supported: {words}. Name another model with generator.model."
        )
