"""What a run tells besides the events of its trainings. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.tuning.guard.report import GuardReport
from engine.tuning.outcome import Evaluation
from engine.tuning.training import events as training


@dataclass(frozen=True, slots=True)
class Judged:
    """The guard has looked at the data."""

    report: GuardReport


@dataclass(frozen=True, slots=True)
class Working:
    """Something that takes a while begins; a sentence."""

    what: str


@dataclass(frozen=True, slots=True)
class TrainingStarted:
    """A training begins, or goes on. `is_main` is False for one of the curve."""

    num_examples: int
    num_validation: int
    rank: int
    epochs: int
    learning_rate: float
    metric: str
    is_main: bool


@dataclass(frozen=True, slots=True)
class EvaluationDone:
    """The adapter was judged."""

    evaluation: Evaluation


Event = training.Event | Judged | Working | TrainingStarted | EvaluationDone
Listener = Callable[[Event], None]
