"""The update test: a document changes. An arm that reads it answers otherwise, one that knows it by heart does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from engine.errors import SwitchyardError, TrainingDataError
from engine.evaluation.asking import Answer, Server
from engine.evaluation.compare.asking import ContenderAsk, Listener
from engine.evaluation.compare.contenders import Contender
from engine.evaluation.compare.documents import changed, read_document, restorable
from engine.evaluation.json_lines import Checked, first_fault, json_object
from engine.evaluation.questions import Question
from engine.http_errors import ServerError
from engine.metrics.text import plain_answer
from engine.tuning.data.limits import DataLimits
from engine.tuning.data.source import read_lines

_SHAPE = '{"id": document id, "text": its new text, "question", "answer_before", "answer_after"}'
_Text = Annotated[str, Field(min_length=1, max_length=5_000_000)]


class Update(Checked):
    """A document's new text, and what the right answer to a question is before and after."""

    id: _Text
    text: _Text
    question: _Text
    answer_before: _Text
    answer_after: _Text


@dataclass(frozen=True, slots=True)
class Followed:
    """An arm and one update: what it said before and after the change.

    `was_right`: the old answer was in the first; `followed`: the new answer is in the second and was not in the first;
    `is_stale`: the old answer still is in the second.
    """

    arm: str
    document: str
    question: str
    said_before: str
    said_after: str
    was_right: bool
    followed: bool
    is_stale: bool


@dataclass(frozen=True, slots=True)
class UpdateFigures:
    """Of `num` changes: how often an arm was right before, followed the change, or still said the old answer."""

    arm: str
    num: int
    right_before: int
    followed: int
    stale: int


def read_updates(file: Path) -> tuple[Update, ...]:
    """The rows of --updated-kb. Raises: TrainingDataError naming line and fix."""
    found: list[Update] = []
    for number, line in read_lines(file, DataLimits()):
        if not line.strip():
            continue
        try:
            json_object(line)
            row = Update.model_validate_json(line)
            if plain_answer(row.answer_before) == plain_answer(row.answer_after) or not plain_answer(row.answer_after):
                raise ValueError("answer_before and answer_after are the same, or blank; nothing could be followed")
        except ValidationError as error:
            raise TrainingDataError(f"{file}:{number}: {first_fault(error)}. A line is {_SHAPE}.") from None
        except ValueError as error:
            raise TrainingDataError(f"{file}:{number}: {error}. A line is {_SHAPE}.") from None
        found.append(row)
    if not found:
        raise TrainingDataError(f"{file}: holds no update. Each line is one: {_SHAPE}.")
    return tuple(found)


async def follow_updates(
    server: Server,
    ask: ContenderAsk,
    contenders: Sequence[Contender],
    updates: Sequence[Update],
    *,
    collection: str,
    folder: Path,
    listener: Listener,
) -> tuple[list[Followed], list[str]]:
    """What each contender made of each update, and in words which updates were not tried and why.

    One document is changed at a time, and put back before the next.
    """
    found: list[Followed] = []
    skipped: list[str] = []
    for number, update in enumerate(updates, start=1):
        listener.working(f"update {number} of {len(updates)}: {update.id}")
        try:
            stored = await restorable(server, await read_document(server, collection, update.id))
        except ServerError as error:
            skipped.append(f"{update.id}: {error}")
            continue
        except SwitchyardError as error:
            if type(error) is not SwitchyardError:
                raise
            skipped.append(str(error))
            continue
        question = Question(f"update-{number}", update.question, (update.answer_before,))
        before = [await ask(each.arm, question) for each in contenders]
        async with changed(server, stored, update.text, folder):
            after = [await ask(each.arm, question) for each in contenders]
        found += [
            _followed(each, update, first, second)
            for each, first, second in zip(contenders, before, after, strict=True)
        ]
    return found, skipped


def update_figures(contenders: Sequence[Contender], followed: Sequence[Followed]) -> tuple[UpdateFigures, ...]:
    """Counts for each arm."""
    found = []
    for contender in contenders:
        mine = [each for each in followed if each.arm == contender.name]
        if mine:
            found.append(
                UpdateFigures(
                    arm=contender.name,
                    num=len(mine),
                    right_before=sum(each.was_right for each in mine),
                    followed=sum(each.followed for each in mine),
                    stale=sum(each.is_stale for each in mine),
                )
            )
    return tuple(found)


def _followed(contender: Contender, update: Update, before: Answer, after: Answer) -> Followed:
    return Followed(
        arm=contender.name,
        document=update.id,
        question=update.question,
        said_before=before.text,
        said_after=after.text,
        was_right=_says(before.text, update.answer_before),
        followed=_says(after.text, update.answer_after) and not _says(before.text, update.answer_after),
        is_stale=_says(after.text, update.answer_before),
    )


def _says(text: str, answer: str) -> bool:
    return f" {plain_answer(answer)} " in f" {plain_answer(text)} "
