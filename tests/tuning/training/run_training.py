"""A training run in a process of its own, which tests kill: MODEL FOLDER CHECKPOINT_EVERY_S."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from tuning.training.made_examples import random_examples

from engine.tuning.training.events import Stepped
from engine.tuning.training.examples import EncodedExample
from engine.tuning.training.model import AdapterModel
from engine.tuning.training.result import TrainingResult
from engine.tuning.training.settings import TrainingSettings
from engine.tuning.training.trainer import BaseModel, train

SETTINGS = TrainingSettings(rank=4, epochs=3, batch_tokens=200, forward_tokens=120, evaluations_per_epoch=2, patience=9)
TRAINING, VALIDATION = random_examples(60, seed=1), random_examples(12, seed=2)


def noisy_metric(model: AdapterModel) -> float:
    """Draws from torch's random state, which a resumed run must therefore have."""
    return -sum(model.example_losses(VALIDATION)) / 1000 + 0.2 * torch.rand(()).item()


def run(model: Path, folder: Path, *, checkpoint_every_s: float = 60.0, **options: object) -> TrainingResult:
    base = BaseModel(model, "tiny", "0" * 64)
    # In the format whose results are compared with exact ones, whatever the processor multiplies in hardware.
    given: dict[str, object] = {
        "metric": noisy_metric,
        "checkpoint_every_s": checkpoint_every_s,
        "dtype": torch.float32,
    } | options
    training: list[EncodedExample] = given.pop("training", TRAINING)  # type: ignore[assignment]
    settings: TrainingSettings = given.pop("settings", SETTINGS)  # type: ignore[assignment]
    return train(base, training, VALIDATION, settings, folder, **given)  # type: ignore[arg-type]


def say(event: object) -> None:
    if isinstance(event, Stepped):
        sys.stdout.write(f"{event.step}\n")
        sys.stdout.flush()
        time.sleep(0.05)  # so that the run is not over before the signal arrives


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(5)
    run(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_every_s=float(sys.argv[3]), on_event=say)
