"""What a run tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One evaluation, after `step` optimizer steps.

    Losses are nats per completion token: `train_loss` the mean since the evaluation before, `valid_loss` on the
    validation examples. `metric` is the task's, larger is better; None where a run has none.
    """

    step: int
    epoch: float
    train_loss: float
    valid_loss: float
    metric: float | None

    def beats(self, other: HistoryPoint | None) -> bool:
        """Whether this adapter is the one to keep: by metric, then by loss. A tie keeps the earlier one."""
        if other is None:
            return True
        mine, theirs = (self.metric or 0.0, -self.valid_loss), (other.metric or 0.0, -other.valid_loss)
        return mine > theirs


@dataclass(frozen=True, slots=True)
class Resumed:
    """A stopped run goes on after `step` of `num_steps` steps."""

    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimizer step is done. `tokens_per_s` counts the examples' tokens while training, evaluations left out."""

    step: int
    num_steps: int
    epoch: float
    loss: float
    learning_rate: float
    tokens_per_s: float
    eta_s: float


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation, and whether its adapter is the best so far."""

    point: HistoryPoint
    is_best: bool


Event = Resumed | Stepped | Evaluated
Listener = Callable[[Event], None]
