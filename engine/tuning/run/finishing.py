"""What a run leaves behind: the manifest that serving reads, and the outcome that the report is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from engine.generation.adapters.manifest import AdapterManifest, InputsFile, Label
from engine.tuning.data.examples import Examples
from engine.tuning.data.rows import Row
from engine.tuning.guard.report import GuardReport
from engine.tuning.outcome import MAIN_METRIC, Baseline, Calibration, CurvePoint, Evaluation, Outcome
from engine.tuning.run.job import TuneJob
from engine.tuning.run.training import Trained
from engine.tuning.tasks.classify import ClassifyTask
from engine.tuning.tasks.task import TuningTask


@dataclass(frozen=True, slots=True)
class Findings:
    """What the steps of a run found. `examples` are the data with the exceptions, of which `exceptions` are the lines;
    `train` are the rows that were trained on. The first of `evaluations` is that of the validation rows.
    """

    task: TuningTask[Any]
    examples: Examples
    exceptions: frozenset[int]
    report: GuardReport
    train: Sequence[Row]
    num_validation: int
    is_split_by_row: bool
    trained: Trained
    evaluations: Sequence[Evaluation]
    calibration: Calibration | None
    curve: Sequence[CurvePoint]
    baselines: Sequence[Baseline]
    inputs: InputsFile | None


def make_manifest(job: TuneJob, found: Findings) -> AdapterManifest:
    """The adapter's switchyard.json."""
    task = found.task
    labels: tuple[Label, ...] = ()
    if isinstance(task, ClassifyTask):
        labels = tuple(Label(name=name, text=text) for name, text in zip(task.labels, task.texts, strict=True))
    return AdapterManifest(
        task=task.name,
        base_model=job.model.name,
        base_digest=job.model.digest,
        instruction=task.encoder.instruction,
        labels=labels,
        temperature=1.0 if found.calibration is None else found.calibration.temperature,
        context=task.context,
        data_digest=found.examples.digest,
        num_examples=len(found.train),
        verdict=found.report.verdict,
        metrics=found.evaluations[0].whole.after,
        inputs=found.inputs,
    )


def make_outcome(job: TuneJob, found: Findings, *, minutes: float) -> Outcome:
    """Everything for the report; `minutes` are those of the session."""
    task = found.task
    labels = task if isinstance(task, ClassifyTask) else None
    return Outcome(
        name=job.name,
        task=task.name,
        metric=MAIN_METRIC[task.name],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=job.model.name,
        base_digest=job.model.digest,
        adapter_digest=found.trained.digest,
        data_source=job.examples.source,
        data_digest=found.examples.digest,
        instruction=task.encoder.instruction,
        guard=found.report.to_json(),
        run=found.trained.run,
        evaluations=tuple(found.evaluations),
        num_train=len(found.train),
        num_validation=found.num_validation,
        num_train_tokens=found.trained.num_tokens,
        is_split_by_row=found.is_split_by_row,
        is_forced=found.report.verdict == "refuse",
        context=task.context,
        labels=labels.labels if labels else (),
        label_texts=labels.texts if labels else (),
        train_lines=tuple(row.line for row in found.train),
        exceptions_source=None if job.exceptions is None else job.exceptions.source,
        num_exceptions=sum(row.line in found.exceptions for row in found.train),
        exceptions_factor=job.options.exceptions_factor if found.exceptions else 1,
        calibration=found.calibration,
        curve=tuple(found.curve),
        baselines=tuple(found.baselines),
        minutes_in_all=minutes,
    )
