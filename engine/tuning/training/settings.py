"""How an adapter is trained, and what fits a set of its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from engine.errors import ConfigError

# Fewer examples than this allow more epochs, since the best evaluation is kept anyway.
SMALL_SET = 500
LARGE_SET = 3000


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """LoRA on all linear layers, alpha = 2 * rank, no dropout; AdamW in float32. Raises: ConfigError.

    `batch_tokens` is the aim of one optimizer step, `forward_tokens` the most that one forward pass holds; the second
    bounds memory and changes no result but by rounding. `warm_up` is a share of the steps. `patience` evaluations in
    a row that improve neither the metric nor the loss end the run.
    """

    rank: int = 16
    learning_rate: float = 1e-3
    epochs: int = 2
    batch_tokens: int = 1024
    forward_tokens: int = 2048
    warm_up: float = 0.05
    decay: Literal["cosine", "linear"] = "cosine"
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    evaluations_per_epoch: int = 4
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            *(("rank", 1), ("epochs", 1), ("batch_tokens", 1), ("forward_tokens", 1)),
            *(("evaluations_per_epoch", 1), ("patience", 1), ("seed", 0), ("weight_decay", 0)),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)!r} is too small for training; it starts at {least}.")
        for name in ("learning_rate", "max_gradient_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a positive number.")
        if not 0 <= self.warm_up < 1:
            raise ConfigError(f"warm_up={self.warm_up!r} is a share of the steps, from 0 to below 1.")
        if self.decay not in ("cosine", "linear"):
            raise ConfigError(f"decay={self.decay!r} is unknown; allowed: cosine, linear.")

    @property
    def alpha(self) -> int:
        """LoRA's alpha: the update is scaled by alpha / rank = 2 at every rank."""
        return 2 * self.rank


def fitting_settings(num_examples: int, num_tokens: int, *, model_parameters: int, seed: int = 0) -> TrainingSettings:
    """Defaults for a set of `num_examples` with `num_tokens` tokens in all, prompts included.

    Rank 16, rate 1e-3 and 2 epochs learned 3,000 sentences with a model of 135 million parameters; larger models take
    lower rates (2e-4 is the usual one from 7 billion on), small sets more epochs and smaller steps. Eight examples a
    step are the least, whatever their length.
    Raises: ValueError when a count is not positive.
    """
    if min(num_examples, num_tokens, model_parameters) < 1:
        raise ValueError(f"counts start at 1, got {num_examples} examples, {num_tokens} tokens, {model_parameters}")
    epochs = 10 if num_examples < SMALL_SET else 3 if num_examples < LARGE_SET else 2
    # A few hundred steps are needed to get anywhere, so small sets take smaller ones.
    batch_tokens = min(1024, max(512, num_tokens * epochs // 250))
    rate = 1e-3 if model_parameters < 500_000_000 else 5e-4 if model_parameters < 3_000_000_000 else 2e-4
    return TrainingSettings(
        rank=8 if num_examples < SMALL_SET else 16,
        learning_rate=rate,
        epochs=epochs,
        batch_tokens=max(batch_tokens, 8 * num_tokens // num_examples),
        seed=seed,
    )
