"""Answers of the base model and of the adapter, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from engine.tuning.data.rows import Row
from engine.tuning.outcome import Answer, Evaluation, Metrics, Prediction, SliceMetrics, SliceName
from engine.tuning.tasks.task import TuningTask


def make_evaluation(
    task: TuningTask[Any],
    name: Literal["validation", "evaluation"],
    source: str,
    num_rows: int,
    asked: Sequence[Row],
    after: Sequence[Answer],
    before: Mapping[int, Answer],
    exceptions: frozenset[int],
) -> Evaluation:
    """Args:
    asked: the rows that were asked, of `num_rows`; `after` are the adapter's answers to them.
    before: the base model's answers by line, as far as it was asked.
    exceptions: lines of exceptions; their slice is there where any was asked.
    """
    pairs = list(zip(asked, after, strict=True))
    slices: list[tuple[SliceName, list[tuple[Row, Answer]]]] = [("all", pairs)]
    marked = [pair for pair in pairs if pair[0].line in exceptions]
    if marked:
        slices.append(("exceptions", marked))
        slices.append(("others", [pair for pair in pairs if pair[0].line not in exceptions]))
    return Evaluation(
        name=name,
        source=source,
        num_rows=num_rows,
        slices=tuple(_slice(task, each, members, before) for each, members in slices if members),
        predictions=tuple(
            Prediction(
                line=row.line,
                input=row.input_text,
                targets=task.targets(row),
                after=answer,
                before=before.get(row.line),
                is_exception=row.line in exceptions,
            )
            for row, answer in pairs
        ),
    )


def _slice(
    task: TuningTask[Any], name: SliceName, members: Sequence[tuple[Row, Answer]], before: Mapping[int, Answer]
) -> SliceMetrics:
    untuned = [(row, before[row.line]) for row, _ in members if row.line in before]
    return SliceMetrics(name, len(members), _metrics(task, members), _metrics(task, untuned) if untuned else None)


def _metrics(task: TuningTask[Any], pairs: Sequence[tuple[Row, Answer]]) -> Metrics:
    return task.metrics([row for row, _ in pairs], [answer for _, answer in pairs])
