"""Train on two Ray workers and print each step and each validation loss: MODEL FOLDER [--nan-metric]."""

from __future__ import annotations

import sys
from pathlib import Path

from tuning.training.run_training import SETTINGS, TRAINING, VALIDATION

from engine.errors import TrainingError
from engine.serving.training import RayTrainer
from engine.tuning.training.events import Event, Stepped
from engine.tuning.training.trainer import BaseModel


def say(event: Event) -> None:
    if isinstance(event, Stepped):
        print(f"step {event.step}")


if __name__ == "__main__":
    model, folder, *options = sys.argv[1:]
    metric = (lambda _: float("nan")) if options else None
    base = BaseModel(Path(model), "tiny", "0" * 64)
    try:
        result = RayTrainer(2, threads=2).train(
            base, TRAINING, VALIDATION, SETTINGS, Path(folder), metric=metric, on_event=say
        )
    except TrainingError as error:
        print(error)
        sys.exit(1)
    for point in result.run.history:
        print(point.valid_loss)
