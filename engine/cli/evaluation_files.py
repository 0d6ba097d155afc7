"""Files of outcomes and of questions, read for a command: every bad line is printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from engine.errors import TrainingDataError
from engine.evaluation.outcome_lines import read_outcomes
from engine.evaluation.outcomes import Outcomes
from engine.evaluation.questions import Question, read_questions


def outcomes_of(files: Sequence[Path]) -> Outcomes:
    """The outcomes of all files. Raises: TrainingDataError, its problems printed."""
    with _printed():
        return read_outcomes(files)


def questions_of(files: Sequence[Path]) -> tuple[Question, ...]:
    """The questions of all files. Raises: TrainingDataError, its problems printed."""
    with _printed():
        return read_questions(files)


@contextmanager
def _printed() -> Iterator[None]:
    try:
        yield
    except TrainingDataError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise
