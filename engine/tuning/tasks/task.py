"""What training asks of a task, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from engine.tuning.data.rows import Row, Task
from engine.tuning.outcome import Answer, Context, Metrics
from engine.tuning.tasks.encoding import PromptEncoder
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel

R = TypeVar("R", bound=Row)


class TuningTask(ABC, Generic[R]):
    """Rows of one task: how they are trained on, and how answers to them are judged. Calls leave no trace.

    `num_watched` rows are asked at each evaluation during training, `num_judged` at the end; None asks all.
    """

    name: ClassVar[Task]
    num_watched: ClassVar[int]
    context: Context = "none"
    num_judged: int | None = None
    encoder: PromptEncoder

    @abstractmethod
    def example(self, row: R) -> EncodedExample:
        """The row as it is trained on. Raises: TrainingError naming its line."""

    def held_out_example(self, row: R) -> EncodedExample:
        """The row as the validation loss sees it."""
        return self.example(row)

    @abstractmethod
    def targets(self, row: R) -> tuple[str, ...]:
        """Every right answer."""

    @abstractmethod
    def quality(self, model: AdapterModel, rows: Sequence[R]) -> float:
        """The main metric of answers to `rows`, as cheaply as it can be had."""

    @abstractmethod
    def answers(self, model: AdapterModel, rows: Sequence[R]) -> list[Answer]:
        """What the model says of each row."""

    @abstractmethod
    def known(self, model: AdapterModel, rows: Sequence[R]) -> list[bool]:
        """Whether the model, not tuned yet, can do each row."""

    @abstractmethod
    def metrics(self, rows: Sequence[R], answers: Sequence[Answer]) -> Metrics:
        """The metrics of the answers, by name."""
