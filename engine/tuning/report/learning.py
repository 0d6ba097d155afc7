"""What the evaluations of a run say about learning by heart."""

from __future__ import annotations

from dataclasses import dataclass

from engine.tuning.outcome import TrainingRun
from engine.tuning.training.events import HistoryPoint

# The validation loss wanders by a few hundredths of itself without anything being wrong.
_RISE_SHARE, _RISE_NATS = 0.05, 0.02


@dataclass(frozen=True, slots=True)
class Learning:
    """The evaluation that was kept, the one with the lowest validation loss and the last one.

    `is_overfit`: after the lowest the validation loss rose beyond noise while the training loss went on falling.
    """

    kept: HistoryPoint
    lowest: HistoryPoint
    last: HistoryPoint

    @property
    def kept_gap(self) -> float:
        """Validation less training loss at the kept step, in nats."""
        return self.kept.valid_loss - self.kept.train_loss

    @property
    def last_gap(self) -> float:
        """Validation less training loss at the last evaluation, in nats."""
        return self.last.valid_loss - self.last.train_loss

    @property
    def is_overfit(self) -> bool:
        """See the class."""
        rise = self.last.valid_loss - self.lowest.valid_loss
        beyond_noise = rise > max(_RISE_NATS, _RISE_SHARE * self.lowest.valid_loss)
        return beyond_noise and self.last.train_loss < self.lowest.train_loss


def learning_of(run: TrainingRun) -> Learning | None:
    """None for a run without evaluations."""
    if not run.history:
        return None
    return Learning(run.best, min(run.history, key=lambda point: point.valid_loss), run.history[-1])
