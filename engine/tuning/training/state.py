"""A run between two steps: everything that the next step depends on, in and out of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from engine.tuning.training.checkpoint import Checkpoint
from engine.tuning.training.events import HistoryPoint
from engine.tuning.training.model import AdapterModel
from engine.tuning.training.random_state import put_random_state, take_random_state
from engine.tuning.training.settings import TrainingSettings


@dataclass(slots=True)
class RunState:
    """Counts, history and best adapter of a run.

    `epoch` and `position` are the place of the next batch, `losses` those of every step so far. Seconds are of all
    sessions; `tokens` are those that `train_s` was spent on.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[HistoryPoint] = field(default_factory=list)
    best: HistoryPoint | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    train_s: float = 0.0
    evaluate_s: float = 0.0

    def tokens_per_s(self) -> float:
        """Of the examples, while training."""
        return self.tokens / self.train_s if self.train_s > 0 else 0.0


def new_optimizer(model: AdapterModel, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over the adapter; each step sets its rate."""
    return torch.optim.AdamW(
        list(model.parameters.values()), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


def to_checkpoint(
    state: RunState, model: AdapterModel, optimizer: torch.optim.AdamW, identity: Mapping[str, Any]
) -> Checkpoint:
    """A copy of everything."""
    random_plain, random_tensors = take_random_state(model.device)
    tensors = {f"adapter.{name}": tensor for name, tensor in model.weights().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best_weights.items()}
    tensors |= {f"random.{name}": tensor for name, tensor in random_tensors.items()}
    for name, parameter in model.parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].to("cpu", copy=True)
    plain = {
        **{name: getattr(state, name) for name in ("epoch", "position", "losses", "tokens", "train_s", "evaluate_s")},
        "history": [asdict(point) for point in state.history],
        "best": None if state.best is None else asdict(state.best),
        "random": random_plain,
    }
    return Checkpoint(state.step, identity, plain, tensors)


def from_checkpoint(checkpoint: Checkpoint, model: AdapterModel, optimizer: torch.optim.AdamW) -> RunState:
    """Put adapter, moments and random states back, and return the rest."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.tensors.items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = tensor
    model.load_weights(groups["adapter"])
    for name, parameter in model.parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(checkpoint.step)),
            **{moment: groups[moment][name].to(parameter.device) for moment in ("exp_avg", "exp_avg_sq")},
        }
    plain = dict(checkpoint.state)
    put_random_state(plain.pop("random"), groups["random"], model.device)
    best = plain.pop("best")
    return RunState(
        step=checkpoint.step,
        history=[HistoryPoint(**point) for point in plain.pop("history")],
        best=None if best is None else HistoryPoint(**best),
        best_weights=groups.get("best", {}),
        **plain,
    )
