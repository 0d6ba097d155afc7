"""A run that is killed while the adapter is judged asks it nothing twice, and finds the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import write_tiny_model
from tuning.tuning_files import labelled, questions, write_rows

from engine.models import resolve_model
from engine.tuning.data.examples import read_examples
from engine.tuning.outcome import Outcome
from engine.tuning.run.events import EvaluationDone, Event, Working
from engine.tuning.run.job import TuneJob
from engine.tuning.run.kept_scores import pack_scores, unpack_scores
from engine.tuning.run.options import TuneOptions
from engine.tuning.run.steps import run_tuning
from engine.tuning.tasks.classify import ClassifyTask
from engine.tuning.tasks.free_text import FreeTextTask

# Rows, task, the method that asks, and how many rows each call after the training asks: of the rows trained on, the
# validation rows and the evaluation rows, in parts of 20.
CLASSIFY = (labelled, ClassifyTask, "scores", [20, 20, 8, 12, 20, 5])
QA = (questions, FreeTextTask, "answers", [20, 20, 8, 12, 20, 5])


class Killed(BaseException):
    """Not an error that anybody handles."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.tuning.run.asking.PART_ROWS", 20)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize(("rows", "task", "method", "calls"), [CLASSIFY, QA], ids=["classify", "qa"])
def test_killed_evaluations_go_on_where_they_were_and_find_the_same(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: Callable[..., Any],
    task: type[Any],
    method: str,
    calls: list[int],
):
    data = read_examples(write_rows(tmp_path / "data.jsonl", rows(60)))
    held_out = read_examples(write_rows(tmp_path / "eval.jsonl", rows(25, seed=9)))
    asked: list[int] = []
    real = getattr(task, method)

    def counting(self: Any, model: Any, rows: Any, **options: Any) -> Any:
        asked.append(len(rows))
        return real(self, model, rows, **options)

    monkeypatch.setattr(task, method, counting)

    def run(folder: str, die: Callable[[Event], bool] = lambda _: False) -> Outcome:
        def listen(event: Event) -> None:
            if die(event):
                raise Killed

        asked.clear()
        job = TuneJob(
            "bot",
            tmp_path / folder,
            resolve_model(str(model), kind="generator"),
            data,
            TuneOptions(epochs=1, is_forced=True),
            evaluation=held_out,
        )
        return run_tuning(job, listen).outcome

    def at_part(number: int) -> Callable[[Event], bool]:
        """Before the adapter is asked the rows of a part, counted from 0 in this session."""
        said = iter(range(len(calls)))
        return lambda event: (
            isinstance(event, Working) and event.what.startswith("the adapter answers") and next(said) == number
        )

    def at_the_end(event: Event) -> bool:
        return isinstance(event, EvaluationDone) and event.evaluation.name == "evaluation"

    whole = run("whole")
    assert asked[2:] == calls  # the first two are of the base model
    for die, answered in ((at_part(1), calls[:1]), (at_part(4), calls[1:5]), (at_the_end, calls[5:])):
        with pytest.raises(Killed):
            run("killed", die)
        assert asked[-len(answered) :] == answered and len(asked) <= len(answered) + 2
    again = run("killed")
    assert asked == []
    assert (again.evaluations, again.calibration) == (whole.evaluations, whole.calibration)
    assert again.run.train_metrics == whole.run.train_metrics


def test_scores_are_kept_to_the_precision_they_are_computed_in():
    scores = np.random.default_rng(0).normal(-30, 20, (7, 5))
    packed = pack_scores(scores)
    np.testing.assert_array_equal(unpack_scores(packed), scores.astype(np.float32).astype(np.float64))
    assert len(packed["float32"]) < 6 * scores.size
