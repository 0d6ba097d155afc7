"""How good an answer is, from what is known to be right."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.evaluation.questions import Metric, Question
from engine.metrics.refusals import is_refusal
from engine.metrics.text import exact_match, rouge_l, token_f1

_JOINTS = re.compile(r"[\s_-]+")


@dataclass(frozen=True, slots=True)
class Grade:
    """`quality` in [0, 1] by `metric`. `exact`: 1 where the answer is a right one, word by word; None for long ones.

    `refused`: the answer says that it is none. A refusal is graded by its words like any other answer.
    """

    quality: float
    metric: Metric
    refused: bool
    exact: float | None = None


def grade(question: Question, text: str, *, refused: bool = False) -> Grade:
    """The grade of an answer; `refused` where the server itself said that it has none."""
    refused = refused or (question.label is None and is_refusal(text))
    metric = question.metric
    if question.label is not None:
        exact = float(is_label(text, question.label))
        return Grade(exact, metric, refused, exact)
    if metric == "refusal":
        return Grade(float(refused), metric, refused)
    if metric == "rouge_l":
        return Grade(rouge_l(text, question.answers), metric, refused)
    return Grade(token_f1(text, question.answers), metric, refused, exact_match(text, question.answers))


def is_label(text: str, label: str) -> bool:
    """Whether an answer is the label and nothing else; letters, joints and punctuation may differ.

    `card_arrival` and "Card arrival." are the same; a sentence that has the label in it is none.
    """
    return exact_match(_JOINTS.sub(" ", text), [_JOINTS.sub(" ", label)]) == 1.0
