"""Outcomes as they are collected: a bar with the time left and each arm's quality so far, and the table at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from engine.evaluation.collecting import Answered, Began, Event, SignalsRead
from engine.evaluation.outcomes import ArmOutcome, Outcomes

# Where nobody looks at a bar, a line is written so often.
_LINE_S = 30.0


class CollectProgress:
    """A listener of `collect`, and the context in which its bar is drawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[arms]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._signals: TaskID | None = None
        self._answers: TaskID | None = None
        self._found: dict[str, list[float]] = {}
        self._num_kept = self._num_done = self._num_answers = 0
        self._began_at = self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Began():
                self._begin(event)
            case SignalsRead(num):
                assert self._signals is not None
                self._progress.update(self._signals, completed=num)
                # The time left is that of answers.
                self._began_at = time.monotonic()
            case Answered(arm, outcome):
                self._answer(arm, outcome)

    def _begin(self, event: Began) -> None:
        self._found = {
            arm: [each.quality for each in kept if each.quality is not None] for arm, kept in event.kept.items()
        }
        self._num_kept = self._num_done = sum(map(len, event.kept.values()))
        self._num_answers = event.num_answers
        self._console.print(
            f"{event.num_questions:,} questions, {len(event.arms)} arms: {escape(', '.join(event.arms))}"
            + (f"; {self._num_kept:,} of {event.num_answers:,} answers are there" if self._num_kept else "")
        )
        self._signals = self._progress.add_task("signals", total=event.num_questions, arms="")
        self._answers = self._progress.add_task(
            "answers", total=event.num_answers, completed=self._num_kept, arms=escape(self._qualities())
        )

    def _answer(self, arm: str, outcome: ArmOutcome) -> None:
        assert self._answers is not None and self._signals is not None
        if outcome.quality is not None:
            self._found[arm].append(outcome.quality)
        self._num_done += 1
        self._progress.update(self._answers, advance=1, arms=escape(self._qualities()))
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said_at >= _LINE_S:
            self._said_at = now
            rate = (self._num_done - self._num_kept) / (now - self._began_at)
            left_min = (self._num_answers - self._num_done) / rate / 60
            self._console.print(
                f"{self._num_done:,} of {self._num_answers:,} answers, {left_min:.0f} minutes left: "
                f"{escape(self._qualities())}"
            )

    def _qualities(self) -> str:
        return "  ".join(f"{arm} {np.mean(found):.3f}" for arm, found in self._found.items() if found)


def arms_table(outcomes: Outcomes) -> Table:
    """Every arm's answers: how many, how good, how many refused, how slow, how long."""
    table = Table(box=None, header_style="bold")
    table.add_column("arm", no_wrap=True)
    for name in ("answers", "failed", "quality", "refused", "p50 ms", "p95 ms", "tokens in", "tokens out"):
        table.add_column(name, justify="right")
    for arm in outcomes.arms:
        every = [each.arms[arm] for each in outcomes.questions if arm in each.arms]
        found = [each for each in every if each.error is None]
        latencies = [each.latency_ms for each in found if each.latency_ms is not None]
        table.add_row(
            escape(arm),
            f"{len(found):,}",
            f"{len(every) - len(found):,}",
            _mean([each.quality for each in found], ".3f"),
            _mean([float(each.refused) for each in found], ".0%"),
            f"{np.percentile(latencies, 50):,.0f}" if latencies else "",
            f"{np.percentile(latencies, 95):,.0f}" if latencies else "",
            _mean([each.tokens_in for each in found], ",.0f"),
            _mean([each.tokens_out for each in found], ",.0f"),
        )
    return table


def _mean(values: list[float | None] | list[int | None] | list[float], form: str) -> str:
    known = [value for value in values if value is not None]
    return format(float(np.mean(known)), form) if known else ""
