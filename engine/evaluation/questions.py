"""Questions whose right answers are known, from a file: JSON lines, plain or .gz, every line checked.

    {"id", "source", "group", "question", "answers": [..] or "label", "documents": [..], "context", "paraphrases": [..]}

Only the question and one of answers and label are needed. Rows that an adapter is tuned on can be read too: `text` is
then the question and `document` the only one. A first line {"_provenance": ...} is passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from engine.errors import TrainingDataError
from engine.evaluation.json_lines import Checked, first_fault, json_object
from engine.tuning.data.limits import DataLimits
from engine.tuning.data.source import read_lines

Metric = Literal["accuracy", "f1", "rouge_l", "refusal"]

MAX_PROBLEMS = 10
DEFAULT_SOURCE = "questions"
_MAX_SHORT_WORDS = 5
_SHAPE = '{"id", "question", "answers": [..] or "label", "source", "group", "documents": [..], "context"}'

_Text = Annotated[str, Field(min_length=1, max_length=200_000)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and what is right. `label` is set, or else `answers`, which are empty where nothing is known of it.

    `documents` are ids of those that hold the answer. Questions of one `group` lie on one side of every split.
    `paraphrases` ask the same in other words; only the robustness of a router reads them.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    label: str | None = None
    source: str = DEFAULT_SOURCE
    group: str | None = None
    documents: tuple[str, ...] = ()
    context: str | None = None
    paraphrases: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """What its answers are graded by.

        accuracy of a label; f1 of the words of short answers (at most 5 on average); rouge_l of longer ones; refusal
        where there is no answer, and saying so is right.
        """
        if self.label is not None:
            return "accuracy"
        if not self.answers:
            return "refusal"
        num_words = sum(len(answer.split()) for answer in self.answers)
        return "f1" if num_words <= _MAX_SHORT_WORDS * len(self.answers) else "rouge_l"


class _Row(Checked):
    id: _Name | None = None
    source: _Name = DEFAULT_SOURCE
    group: _Name | None = None
    question: _Text | None = None
    text: _Text | None = None
    answers: Annotated[list[_Text], Field(max_length=64)] | None = None
    unanswerable: bool = False
    label: _Name | None = None
    documents: Annotated[list[_Name], Field(max_length=1_000)] | None = None
    document: _Name | None = None
    context: _Text | None = None
    paraphrases: Annotated[list[_Text], Field(max_length=16)] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> _Row:
        if (self.question is None) == (self.text is None):
            raise ValueError("has no question" if self.text is None else "has question and text, which are the same")
        if (self.answers is None and not self.unanswerable) == (self.label is None):
            raise ValueError(
                'has neither "answers" nor "label"; add what is right ("answers": [] where nothing is)'
                if self.label is None
                else "has answers and a label; leave out one of them"
            )
        if self.unanswerable and self.answers:
            raise ValueError("is unanswerable and has answers; leave out one of them")
        if self.document is not None and self.documents is not None:
            raise ValueError("has document and documents; leave out one of them")
        if not (self.question or self.text or "").strip() or any(not each.strip() for each in self.answers or ()):
            raise ValueError("has a blank question or answer; write it or leave the line out")
        asked = (self.question or self.text or "").strip()
        for each in self.paraphrases or ():
            if each.strip() in ("", asked):
                raise ValueError("has a paraphrase that is blank or the question itself; leave it out")
        return self


def read_questions(files: Iterable[Path], limits: DataLimits | None = None) -> tuple[Question, ...]:
    """The questions of all files, in their order. One without an id gets a digest of its text as id.

    Raises: TrainingDataError naming file, line and fix; see its `problems`.
    """
    limits = limits or DataLimits()
    found: dict[str, tuple[Question, str]] = {}
    for file in files:
        _read(file, limits, found)
    return tuple(question for question, _ in found.values())


def _read(file: Path, limits: DataLimits, found: dict[str, tuple[Question, str]]) -> None:
    problems: list[str] = []
    num_before = len(found)
    for number, line in read_lines(file, limits):
        if not line.strip():
            continue
        try:
            content = json_object(line)
            if [*content] == ["_provenance"]:
                continue
            question = _question(line)
            if question.id in found:
                other = found[question.id][1]
                raise ValueError(f"id {question.id!r} is that of {other}; give each question an id of its own")
            found[question.id] = (question, f"{file}, line {number}")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            if len(problems) == MAX_PROBLEMS:
                break
        if len(found) > limits.max_rows:
            raise TrainingDataError(f"{file}: makes more than {limits.max_rows:,} questions. Ask a sample of them.")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TrainingDataError(f"{file}: {problems[0]}{more}. A line is {_SHAPE}.", problems=problems)
    if len(found) == num_before:
        raise TrainingDataError(f"{file}: holds no question. Each line is one: {_SHAPE}.")


def _question(line: str) -> Question:
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(first_fault(error).removeprefix(": value error, ")) from None
    text = row.question or row.text or ""
    return Question(
        id=row.id or hashlib.sha256(text.encode()).hexdigest()[:16],
        question=text,
        answers=tuple(row.answers or ()),
        label=row.label,
        source=row.source,
        group=row.group,
        documents=tuple(row.documents or ([row.document] if row.document else ())),
        context=row.context,
        paraphrases=tuple(row.paraphrases or ()),
    )
