"""What one run of `switchyard tune` works on, and what it ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.models import ModelFiles
from engine.retrieval.encoding.protocol import EncoderLike
from engine.tuning.data.examples import Examples
from engine.tuning.guard.counts import CountTokens
from engine.tuning.guard.diversity import Embed
from engine.tuning.outcome import Outcome
from engine.tuning.run.making import Search, context_of, instruction_of
from engine.tuning.run.options import TuneOptions
from engine.tuning.training.result import TrainingResult
from engine.tuning.training.trainer import train

WORK = "tuning"


@dataclass(frozen=True, slots=True)
class TuneJob:
    """One run: what to learn from, what to adapt, and where the results go.

    `data` is the data folder; the run's own folder is tuning/NAME in it. `max_model_len` counts prompt and answer in
    tokens. `count_tokens` and `embed` are the guard's; `search` is the live index, for retrieved contexts.
    `encoder` is the one that questions are embedded by: for the inputs that the adapter carries, and for a model on
    embeddings that it is compared with; None goes without both. `train` is `trainer.train`, or what stands in for it.
    """

    name: str
    data: Path
    model: ModelFiles
    examples: Examples
    options: TuneOptions
    evaluation: Examples | None = None
    exceptions: Examples | None = None
    max_model_len: int = 4096
    count_tokens: CountTokens | None = None
    embed: Embed | None = None
    search: Search | None = None
    encoder: EncoderLike | None = None
    train: Callable[..., TrainingResult] = train
    device: str = "cpu"
    restart: bool = False

    @property
    def folder(self) -> Path:
        """Where the run keeps what it found."""
        return self.data / WORK / self.name


@dataclass(frozen=True, slots=True)
class Tuned:
    """The outcome, the adapter's folder among the data folder's adapters, and the report's page."""

    outcome: Outcome
    adapter: Path
    report: Path


def identity(job: TuneJob) -> dict[str, object]:
    """What a stopped run must be of to be gone on with."""
    return {
        "data": job.examples.digest,
        "evaluation rows": None if job.evaluation is None else job.evaluation.digest,
        "exceptions": None if job.exceptions is None else job.exceptions.digest,
        "base model": job.model.digest,
        "longest prompt": job.max_model_len,
        **job.options.identity(),
        "instruction": instruction_of(job.examples, job.options),
        "context": context_of(job.examples, job.options),
    }
