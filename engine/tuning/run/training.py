"""The trainings of a run: the main one, and those of the curve. Each is kept when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import load_file

from engine.generation.adapters.content import WEIGHTS_FILE
from engine.tuning.data.rows import Row
from engine.tuning.outcome import MAIN_METRIC, TrainingRun
from engine.tuning.run.events import Listener, TrainingStarted
from engine.tuning.run.job import TuneJob
from engine.tuning.run.rows import sample_rows
from engine.tuning.run.work_folder import WorkFolder
from engine.tuning.tasks.task import TuningTask
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel
from engine.tuning.training.settings import TrainingSettings, fitting_settings
from engine.tuning.training.trainer import ADAPTER, BaseModel

_DONE_FILE = "trained.json"
# A point of the curve needs the best adapter, not the look of its training.
CURVE_EVALUATIONS = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """A training that is done: its adapter's folder and digest, how it went, and the tokens of one epoch."""

    adapter: Path
    digest: str
    run: TrainingRun
    num_tokens: int
    base: Path
    device: str

    def model(self) -> AdapterModel:
        """The base model with this adapter as it was written, which is as it is served."""
        settings = TrainingSettings(**self.run.settings)
        model = AdapterModel(self.base, settings, device=self.device)
        model.load_weights(load_file(self.adapter / WEIGHTS_FILE))
        return model


class Trainer:
    """Trains on rows of one run, in folders of its work folder."""

    def __init__(
        self,
        job: TuneJob,
        work: WorkFolder,
        task: TuningTask[Any],
        exceptions: frozenset[int],
        num_parameters: int,
        on_event: Listener,
    ) -> None:
        self._job, self._work, self._task, self._exceptions = job, work, task, exceptions
        self._num_parameters, self._on_event = num_parameters, on_event
        self._encoded: dict[int, EncodedExample] = {}
        self._held_out: dict[int, EncodedExample] = {}

    def encode(self, rows: Sequence[Row], validation: Sequence[Row]) -> None:
        """Encode all rows that any training will read. Raises: TrainingError naming the line that does not fit."""
        self._encoded = {row.line: self._task.example(row) for row in rows}
        self._held_out = {row.line: self._task.held_out_example(row) for row in validation}

    def train(self, folder: str, rows: Sequence[Row], validation: Sequence[Row], *, is_main: bool) -> Trained:
        """Train on `rows`, exceptions among them repeated, and choose by `validation`; or go on, or find it done."""
        job, options = self._job, self._job.options
        examples = [
            self._encoded[row.line]
            for row in rows
            for _ in range(options.exceptions_factor if row.line in self._exceptions else 1)
        ]
        num_tokens = sum(len(example.tokens) for example in examples)
        fitting = fitting_settings(len(examples), num_tokens, model_parameters=self._num_parameters, seed=options.seed)
        settings = options.settings(fitting)
        if not is_main:
            settings = replace(settings, evaluations_per_epoch=min(settings.evaluations_per_epoch, CURVE_EVALUATIONS))
        # Few rows are trained on in less time than many are evaluated in.
        num_held_out = max(self._task.num_watched, len(examples) // 4)
        held_out = [self._held_out[row.line] for row in sample_rows(validation, num_held_out, seed=options.seed)]
        path = self._work.path / folder

        def run() -> dict[str, object]:
            # Not of self, which holds a connection that cannot travel to workers.
            task, watched = self._task, sample_rows(validation, self._task.num_watched, seed=options.seed)
            self._on_event(
                TrainingStarted(
                    len(examples),
                    len(held_out),
                    settings.rank,
                    settings.epochs,
                    settings.learning_rate,
                    MAIN_METRIC[self._task.name],
                    is_main,
                )
            )
            result = job.train(
                BaseModel(job.model.path, job.model.name, job.model.digest),
                examples,
                held_out,
                settings,
                path,
                metric=lambda model: task.quality(model, watched),
                device=job.device,
                on_event=self._on_event,
                max_minutes=options.max_minutes,
            )
            return {"digest": result.adapter_digest, "run": asdict(result.run)}

        kept = self._work.once(f"{folder}/{_DONE_FILE}", run)
        done = TypeAdapter(TrainingRun).validate_python(kept["run"])
        return Trained(path / ADAPTER, kept["digest"], done, num_tokens, job.model.path, job.device)
