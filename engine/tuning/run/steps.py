"""`run_tuning`: every step from rows to a registered adapter and the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from time import monotonic
from typing import Any

from engine.errors import SwitchyardError, TrainingError
from engine.report.plots import check_plotter
from engine.tuning.baselines import check_learner, fit_baselines
from engine.tuning.data.rows import LabelRow, Row
from engine.tuning.guard.inspect import inspect
from engine.tuning.guard.report import GuardReport
from engine.tuning.outcome import Baseline, CurvePoint, Evaluation
from engine.tuning.report.writing import write_report
from engine.tuning.run.asking import Asking, EvaluationName
from engine.tuning.run.events import Judged, Listener, Working
from engine.tuning.run.finishing import Findings, make_manifest, make_outcome
from engine.tuning.run.inputs import EncodedInputs, encode_inputs, write_inputs
from engine.tuning.run.job import Tuned, TuneJob, identity
from engine.tuning.run.judging import make_evaluation
from engine.tuning.run.making import check_contexts, context_of, find_passages, make_task
from engine.tuning.run.registering import register, write_manifest
from engine.tuning.run.rows import join_exceptions, subset_rows
from engine.tuning.run.training import Trainer
from engine.tuning.run.work_folder import GUARD_FILE, RESULT_FILE, TRAINING, WorkFolder, open_work_folder
from engine.tuning.splits import Split, split_rows
from engine.tuning.tasks.classify import ClassifyTask
from engine.tuning.tasks.free_text import FreeTextTask
from engine.tuning.tasks.task import TuningTask
from engine.tuning.training.model import AdapterModel
from engine.tuning.training.settings import TrainingSettings


def run_tuning(job: TuneJob, on_event: Listener = lambda _: None) -> Tuned:
    """Judge the data, train, judge the adapter, and register it.

    A run that was stopped goes on where it was when it is called with the same job. Its folder is left with guard.json,
    result.json, report.html and report.json.
    Raises: SwitchyardError when the guard's verdict is refuse and the options do not force it; TrainingError,
    ConfigError, TrainingDataError, ModelSourceError.
    """
    # Before hours of training, not after.
    check_plotter()
    if job.examples.task == "classify":
        check_learner()
    for examples in (job.examples, job.exceptions, job.evaluation):
        if examples is not None:
            check_contexts(examples, context_of(job.examples, job.options))
    with open_work_folder(job.folder, identity(job), restart=job.restart) as work:
        return _Run(job, work, on_event).go()


class _Run:
    def __init__(self, job: TuneJob, work: WorkFolder, on_event: Listener) -> None:
        self._job, self._work, self._on_event = job, work, on_event
        self._options = job.options
        self._started = monotonic()
        self._examples, self._exceptions = join_exceptions(job.examples, job.exceptions)
        self._eval_rows: tuple[Row, ...] = () if job.evaluation is None else job.evaluation.rows
        rows = (*self._examples.rows, *self._eval_rows)
        found = {}
        if context_of(job.examples, job.options) == "retrieved":
            on_event(Working(f"searching passages for {len(rows):,} questions"))
            found = find_passages(work, rows, job.options, job.search)
        self._task: TuningTask[Any] = make_task(job.model.path, job.max_model_len, job.examples, job.options, found)
        if isinstance(self._task, FreeTextTask):
            self._task.limit_answers(rows)
        self._asking = Asking(job, work, self._task, self._exceptions, on_event)

    def go(self) -> Tuned:
        base = AdapterModel(self._job.model.path, TrainingSettings(rank=1), device=self._job.device)
        report, split = self._judge_data(base)
        rows = self._examples.rows
        train, validation = [rows[place] for place in split.train], [rows[place] for place in split.validation]
        self._check_sizes(train, validation)
        trainer = Trainer(self._job, self._work, self._task, self._exceptions, base.num_base_parameters, self._on_event)
        # Before anything is trained, so that a row that does not fit is known at once.
        trainer.encode(train, validation)
        for row in self._eval_rows:
            self._task.held_out_example(row)
        before = {
            "validation": self._asking.untuned(base, "validation", validation),
            "evaluation": self._asking.untuned(base, "evaluation", self._eval_rows),
        }
        del base
        trained = trainer.train(TRAINING, train, validation, is_main=True)
        model = cache(trained.model)
        train_metrics = self._asking.train_metrics(model, train)
        trained = replace(trained, run=replace(trained.run, train_metrics=train_metrics))
        calibration, checked = self._asking.evaluate(model, "validation", validation, before["validation"])
        evaluations = [checked]
        if self._eval_rows:
            temperature = None if calibration is None else calibration.temperature
            evaluations.append(
                self._asking.evaluate(model, "evaluation", self._eval_rows, before["evaluation"], temperature)[1]
            )
        del model
        inputs = self._inputs(train)
        found = Findings(
            task=self._task,
            examples=self._examples,
            exceptions=self._exceptions,
            report=report,
            train=train,
            num_validation=len(validation),
            is_split_by_row=split.num_groups == len(rows) > report.split.num_groups,
            trained=trained,
            evaluations=evaluations,
            calibration=calibration,
            curve=(),
            baselines=self._baselines(train, validation, inputs),
            inputs=write_inputs(trained.adapter, inputs),
        )
        write_manifest(trained.adapter, make_manifest(self._job, found))
        adapter = register(self._job.data, self._job.name, trained.adapter)
        if self._options.curve:
            # Only now: these trainings may take as long again, and the adapter is there to be used meanwhile.
            self._on_event(Working(f"the adapter is in {adapter}; trainings on fewer rows follow"))
            whole = self._point(len(train), checked, trained.run.minutes, train)
            found = replace(found, curve=(*self._curve(trainer, train, validation), whole))
        outcome = make_outcome(self._job, found, minutes=(monotonic() - self._started) / 60)
        self._work.write(RESULT_FILE, outcome.to_json())
        return Tuned(outcome, adapter, write_report(outcome, self._job.folder))

    def _judge_data(self, base: AdapterModel) -> tuple[GuardReport, Split]:
        job = self._job

        def base_answers(rows: Sequence[Row]) -> list[bool]:
            return list(self._work.once("known.json", lambda: self._known(base, rows)))

        inspection = inspect(
            self._examples,
            evaluation=job.evaluation,
            count_tokens=job.count_tokens,
            max_tokens=job.max_model_len,
            embed=job.embed,
            # Free text is not given word for word by a model that was not trained on it, and takes minutes to ask.
            base_answers=None if self._examples.task == "chat" else base_answers,
            seed=self._options.seed,
        )
        report = inspection.report
        self._work.write(GUARD_FILE, report.to_json())
        self._on_event(Judged(report))
        if report.verdict == "refuse" and not self._options.is_forced:
            worst = report.findings[0]
            raise SwitchyardError(
                f"{self._examples.source}: not fit to be trained on. {worst.reason} {worst.fix} "
                "To train on it all the same, add --force."
            )
        split = inspection.split
        if report.verdict == "refuse" and not split.validation:
            # Forced: rows that repeat each other still show which adapter learns them by heart least.
            split = split_rows(self._examples.rows, None, seed=self._options.seed)
        return report, split

    def _known(self, base: AdapterModel, rows: Sequence[Row]) -> list[bool]:
        self._on_event(Working(f"the base model is asked {len(rows):,} rows"))
        return self._task.known(base, rows)

    def _check_sizes(self, train: Sequence[Row], validation: Sequence[Row]) -> None:
        if not validation:
            raise TrainingError(
                f"{self._examples.source}: no group of rows can be held out, and the adapter that does best on "
                "held-out rows is kept. Add rows of other documents, groups or wordings."
            )
        for size in self._options.curve:
            if size > len(train):
                raise TrainingError(
                    f"--curve {size} is more than the {len(train):,} rows that are trained on; name smaller sizes."
                )

    def _inputs(self, train: Sequence[Row]) -> EncodedInputs | None:
        if self._job.encoder is None:
            return None
        self._on_event(Working("the encoder embeds what the adapter was trained on"))
        return encode_inputs(train, self._job.encoder, seed=self._options.seed)

    def _baselines(
        self, train: Sequence[Row], validation: Sequence[Row], inputs: EncodedInputs | None
    ) -> tuple[Baseline, ...]:
        """Models that train in seconds, asked what the adapter is asked."""
        if not isinstance(self._task, ClassifyTask):
            return ()
        self._on_event(Working("models that train in seconds are fitted to the same rows"))
        asked: dict[EvaluationName, list[Row]] = {"validation": self._asking.asked("validation", validation)}
        if self._eval_rows:
            asked["evaluation"] = self._asking.asked("evaluation", self._eval_rows)
        return fit_baselines(
            [row for row in train if isinstance(row, LabelRow)],
            {name: [row for row in rows if isinstance(row, LabelRow)] for name, rows in asked.items()},
            encode=None if inputs is None else inputs.encode,
        )

    def _curve(self, trainer: Trainer, train: Sequence[Row], validation: Sequence[Row]) -> list[CurvePoint]:
        points = []
        for size in sorted(size for size in self._options.curve if size < len(train)):
            subset = subset_rows(train, size, seed=self._options.seed)

            def point(subset: list[Row] = subset) -> dict[str, object]:
                trained = trainer.train(f"curve/{len(subset)}", subset, validation, is_main=False)
                asked = self._asking.asked("validation", validation)
                after = self._task.answers(trained.model(), asked)
                made = make_evaluation(self._task, "validation", "", len(validation), asked, after, {}, frozenset())
                return asdict(self._point(len(subset), made, trained.run.minutes, subset))

            points.append(CurvePoint(**self._work.once(f"curve/{size}.json", point)))
        return points

    @staticmethod
    def _point(size: int, made: Evaluation, minutes: float, rows: Sequence[Row]) -> CurvePoint:
        num_labels = len({row.label for row in rows if isinstance(row, LabelRow)})
        return CurvePoint(size, made.whole.after, minutes, size / num_labels if num_labels else None)
