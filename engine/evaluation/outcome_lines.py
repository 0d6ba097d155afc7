"""Files of outcomes to values, every line checked; a bad file is refused with its first bad lines and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field, ValidationError

from engine.errors import TrainingDataError
from engine.evaluation.json_lines import Checked, first_fault, json_object
from engine.evaluation.outcomes import ArmOutcome, Outcomes, QuestionOutcome, merge_outcomes
from engine.routing.arms import parse_arm
from engine.routing.keys import Keys, keys_from_json
from engine.tuning.data.limits import DataLimits
from engine.tuning.data.source import read_lines

MAX_PROBLEMS = 10
_COLLECT_AGAIN = "Write it as `router collect` does"
_SHAPE = '{"id", "source", "signals": {name: number or null}, "arms": {arm: {"quality", "metric", "latency_ms"}}}'

_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Count = Annotated[int, Field(ge=0)]


class _Arm(Checked):
    quality: float | None = Field(ge=0, le=1)
    metric: _Text
    latency_ms: float | None = Field(ge=0)
    refused: bool = False
    tokens_in: _Count | None = None
    tokens_out: _Count | None = None
    error: str | None = Field(None, max_length=10_000)


class _Question(Checked):
    id: _Text
    source: _Text
    group: _Text | None = None
    question: str | None = None
    embedding: tuple[float, ...] | None = Field(None, min_length=1, max_length=8_192)
    signals: dict[_Text, float | None] = Field(max_length=4_096)
    arms: dict[str, _Arm] = Field(min_length=1, max_length=64)


def read_outcomes(files: Sequence[Path], limits: DataLimits | None = None) -> Outcomes:
    """The outcomes of `files`, merged. Raises: TrainingDataError naming file, line and fix; see its `problems`."""
    return merge_outcomes([_read(file, limits or DataLimits()) for file in files])


def _read(file: Path, limits: DataLimits) -> Outcomes:
    keys: Keys | None = None
    questions: list[QuestionOutcome] = []
    problems: list[str] = []
    lines_of: dict[str, int] = {}
    for number, line in read_lines(file, limits):
        if not line.strip():
            continue
        try:
            content = json_object(line)
            if keys is None:
                keys = _keys(content)
                continue
            question = _question(line, keys)
            if question.id in lines_of:
                raise ValueError(f"id {question.id!r} is that of line {lines_of[question.id]}; give each its own")
            lines_of[question.id] = number
            questions.append(question)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            # Without keys nothing that follows can be judged.
            if keys is None or len(problems) == MAX_PROBLEMS:
                break
        if len(questions) > limits.max_rows:
            raise TrainingDataError(f"{file}: has more than {limits.max_rows:,} questions. Train on a sample of them.")
    if problems:
        _refuse(file, problems)
    if keys is None or not questions:
        raise TrainingDataError(
            f'{file}: holds no outcome. The first line is {{"_keys": ...}}, each other one a question: {_SHAPE}.'
        )
    _check_embeddings(file, questions)
    return Outcomes(keys, tuple(questions), str(file))


def _refuse(file: Path, problems: list[str]) -> NoReturn:
    more = f" ({len(problems) - 1} more bad lines follow)" if len(problems) > 1 else ""
    raise TrainingDataError(f"{file}: {problems[0]}{more}. {_COLLECT_AGAIN}: {_SHAPE}.", problems=problems)


def _keys(content: dict[str, Any]) -> Keys:
    if [*content] != ["_keys"]:
        raise ValueError('the first line must be {"_keys": {"model", "index", "encoder", "adapters"}}, digests of each')
    return keys_from_json(content["_keys"])


def _question(line: str, keys: Keys) -> QuestionOutcome:
    try:
        # By JSON, where a whole number may stand for a float but a text never for either.
        read = _Question.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None
    for name, arm in read.arms.items():
        _check_arm(name, arm, keys)
    return QuestionOutcome(
        id=read.id,
        source=read.source,
        signals=read.signals,
        arms={name: ArmOutcome(**arm.model_dump()) for name, arm in read.arms.items()},
        group=read.group,
        question=read.question,
        embedding=read.embedding,
    )


def _check_arm(name: str, arm: _Arm, keys: Keys) -> None:
    parsed = parse_arm(name)
    if parsed.adapter is not None and parsed.adapter not in keys.adapters:
        raise ValueError(f"arms.{name}: _keys has no digest of adapter {parsed.adapter!r}; name it under adapters")
    if parsed.has_context and keys.index is None:
        raise ValueError(f"arms.{name}: _keys has no digest of the index that its passages are from; name it as index")
    if (arm.quality is None or arm.latency_ms is None) and arm.error is None:
        raise ValueError(f"arms.{name}: has neither quality and latency_ms nor an error; an answer has both")


def _check_embeddings(file: Path, questions: Sequence[QuestionOutcome]) -> None:
    widths = {len(each.embedding) for each in questions if each.embedding is not None}
    if len(widths) > 1:
        raise TrainingDataError(
            f"{file}: has embeddings of {', '.join(map(str, sorted(widths)))} numbers. One encoder gives one width; "
            "leave the others out."
        )
