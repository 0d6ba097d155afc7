"""What the base model and the adapter are asked, once: answers are kept, and a run that goes on does not ask again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import numpy as np

from engine.tuning.calibration import calibrate
from engine.tuning.data.rows import LabelRow, Row
from engine.tuning.outcome import Answer, Calibration, Evaluation, Metrics
from engine.tuning.run.events import EvaluationDone, Listener, Working
from engine.tuning.run.job import TuneJob
from engine.tuning.run.judging import make_evaluation
from engine.tuning.run.kept_scores import pack_scores, unpack_scores
from engine.tuning.run.rows import sample_rows
from engine.tuning.run.work_folder import WorkFolder
from engine.tuning.tasks.classify import ClassifyTask
from engine.tuning.tasks.task import TuningTask
from engine.tuning.training.model import AdapterModel

# The untuned model is asked so many rows of an evaluation at least, and as many more as all labels of each allow.
MIN_UNTUNED, UNTUNED_SCORES = 50, 3_850
# Rows whose answers are kept together: a run that is killed asks no more than these again.
PART_ROWS = 512

EvaluationName = Literal["validation", "evaluation"]
# Called where an answer is not kept yet: to load a model takes a while too.
Model = Callable[[], AdapterModel]
R = TypeVar("R", bound=Row)


class Asking:
    """The rows of one run, put to models. `exceptions` are lines of the data."""

    def __init__(
        self, job: TuneJob, work: WorkFolder, task: TuningTask[Any], exceptions: frozenset[int], on_event: Listener
    ) -> None:
        self._job, self._work, self._task, self._on_event = job, work, task, on_event
        self._exceptions = exceptions
        self._seed = job.options.seed

    def asked(self, name: EvaluationName, rows: Sequence[Row]) -> list[Row]:
        """The rows that the adapter is asked at the end."""
        return sample_rows(rows, self._task.num_judged, seed=self._seed, exceptions=self._exceptions_of(name))

    def untuned(self, base: AdapterModel, name: EvaluationName, rows: Sequence[Row]) -> dict[int, Answer]:
        """The base model's answers by line, of rows that the adapter is asked too."""
        most = self._task.num_judged
        if isinstance(self._task, ClassifyTask):
            most = max(MIN_UNTUNED, UNTUNED_SCORES // len(self._task.labels))
        asked: list[Any] = sample_rows(rows, most, seed=self._seed, exceptions=self._exceptions_of(name))
        if not asked:
            return {}

        def ask() -> list[dict[str, object]]:
            self._on_event(Working(f"the base model answers {len(asked):,} {name} rows"))
            if isinstance(self._task, ClassifyTask):
                # A model that does not know the labels leaves none of them out.
                scores = self._task.scores(base, asked, floor=math.inf)
                return [asdict(answer) for answer in self._task.answers_of(asked, scores)]
            return [asdict(answer) for answer in self._task.answers(base, asked)]

        kept = self._work.once(f"before-{name}.json", ask)
        return {row.line: Answer(**answer) for row, answer in zip(asked, kept, strict=True)}

    def evaluate(
        self,
        model: Model,
        name: EvaluationName,
        rows: Sequence[Row],
        before: dict[int, Answer],
        temperature: float | None = None,
    ) -> tuple[Calibration | None, Evaluation]:
        """The evaluation, and the calibration where the task has one and no temperature is given yet."""
        asked = self.asked(name, rows)
        calibration = None
        if isinstance(self._task, ClassifyTask):
            labelled, task = [row for row in asked if isinstance(row, LabelRow)], self._task
            # Not the answers: the temperature is fitted to scores.
            parts = self._parts(name, labelled, lambda part: pack_scores(task.scores(model(), part)))
            scores = np.concatenate([unpack_scores(part) for part in parts])
            if temperature is None:
                calibration = calibrate(scores, task.places(labelled))
                temperature = calibration.temperature
            after = task.answers_of(labelled, scores, temperature)
        else:
            after = self._answers(model, name, asked)
        of = self._job.evaluation if name == "evaluation" and self._job.evaluation else self._job.examples
        made = make_evaluation(self._task, name, of.source, len(rows), asked, after, before, self._exceptions_of(name))
        self._on_event(EvaluationDone(made))
        return calibration, made

    def train_metrics(self, model: Model, train: Sequence[Row]) -> Metrics:
        """Of a sample of the rows trained on: what lies above the validation's is learned by heart."""
        rows = sample_rows(train, self._task.num_judged or self._task.num_watched, seed=self._seed)
        return self._task.metrics(rows, self._answers(model, "training", rows))

    def _answers(self, model: Model, name: str, rows: Sequence[Row]) -> list[Answer]:
        parts = self._parts(name, rows, lambda part: [asdict(each) for each in self._task.answers(model(), part)])
        return [Answer(**answer) for part in parts for answer in part]

    def _parts(self, name: str, rows: Sequence[R], ask: Callable[[Sequence[R]], Any]) -> list[Any]:
        """What `ask` gives of each PART_ROWS rows as JSON, or what it gave in an earlier session of the run."""
        parts = []
        for begin in range(0, len(rows), PART_ROWS):
            part = rows[begin : begin + PART_ROWS]

            def say_and_ask(part: Sequence[R] = part, begin: int = begin) -> Any:
                of_all = "" if len(part) == len(rows) else f"{begin + 1:,} to {begin + len(part):,} of "
                self._on_event(Working(f"the adapter answers {of_all}{len(rows):,} {name} rows"))
                return ask(part)

            parts.append(self._work.once(f"after-{name}/{begin}.json", say_and_ask))
        return parts

    def _exceptions_of(self, name: EvaluationName) -> frozenset[int]:
        """Lines of exceptions among the rows of an evaluation; the file of --eval has lines of its own."""
        return self._exceptions if name == "validation" else frozenset()
