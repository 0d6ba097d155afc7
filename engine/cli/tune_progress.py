"""A run of `switchyard tune` on the terminal: the guard's table, a bar for each training, evaluations as lines."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from engine.tuning.guard.report import GuardReport
from engine.tuning.guard.show import report_lines
from engine.tuning.outcome import Evaluation, SliceMetrics
from engine.tuning.run.events import EvaluationDone, Event, Judged, TrainingStarted, Working
from engine.tuning.training.events import Evaluated, Resumed, Stepped

_STYLES = {"ok": "bold green", "risky": "bold yellow", "refuse": "bold red"}


def print_report(report: GuardReport, console: Console) -> None:
    """The guard's report as a table of two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in report_lines(report):
        table.add_row(Text(name, _STYLES.get(name, "")), Text(text, _STYLES.get(text, "") if name == "verdict" else ""))
    console.print(table)


class TuneProgress:
    """A listener of `run_tuning`, and the context in which its bar is drawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s  {task.fields[eta]} left"),
            console=console,
        )
        self._task: TaskID | None = None
        self._metric = "metric"

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_bar()
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Judged(report):
                print_report(report, self._console)
            case Working(what):
                self._end_bar()
                self._say(f"{what} ...", "dim")
            case TrainingStarted():
                self._start(event)
            case Resumed(step, num_steps):
                self._say(f"going on after step {step:,} of {num_steps:,}")
            case Stepped():
                self._step(event)
            case Evaluated():
                self._say(_evaluated(event, self._metric))
            case EvaluationDone(evaluation):
                for line in evaluation_lines(evaluation):
                    self._say(line)

    def _start(self, event: TrainingStarted) -> None:
        self._end_bar()
        self._metric = event.metric
        self._say(
            f"training on {event.num_examples:,} examples, {event.num_validation:,} held out: rank {event.rank}, "
            f"{event.epochs} epochs at most, learning rate {event.learning_rate:g}",
            "bold" if event.is_main else "",
        )

    def _step(self, event: Stepped) -> None:
        fields: dict[str, Any] = {"loss": event.loss, "rate": event.tokens_per_s, "eta": _duration(event.eta_s)}
        if self._task is None:
            self._task = self._progress.add_task("step", total=event.num_steps, **fields)
        self._progress.update(self._task, completed=event.step, **fields)

    def _end_bar(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _say(self, line: str, style: str = "") -> None:
        self._console.print(Text(line, style), soft_wrap=True)


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """One line for each slice: what was measured, the base model's figure before the adapter's."""
    asked = f"{evaluation.num_predicted:,} of {evaluation.num_rows:,} {evaluation.name} rows"
    lines = []
    for each in evaluation.slices:
        name = asked if each.name == "all" else f"  {each.num_rows:,} {each.name}"
        lines.append(f"{name}: {', '.join(_figures(each))}")
    return lines


def _figures(each: SliceMetrics) -> list[str]:
    before = each.before or {}
    return [
        f"{metric.replace('_', ' ')} {value:.3f}" + (f" (base model {before[metric]:.3f})" if metric in before else "")
        for metric, value in each.after.items()
    ]


def _evaluated(event: Evaluated, metric: str) -> str:
    point = event.point
    value = "" if point.metric is None else f"  {metric} {point.metric:.3f}"
    return (
        f"step {point.step:>6,}  epoch {point.epoch:5.2f}  loss {point.train_loss:.3f}  "
        f"validation loss {point.valid_loss:.3f}{value}{'  best so far' if event.is_best else ''}"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
