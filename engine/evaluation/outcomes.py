"""What every arm made of every question: the values, how files of them are written, and how several become one.

A file is JSON lines: `{"_keys": {...}}` first, then one line for each question. Texts may be left out of it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.durable_files import write_file
from engine.errors import SwitchyardError, TrainingDataError
from engine.routing.keys import Keys


@dataclass(frozen=True, slots=True)
class ArmOutcome:
    """One answer. `quality` is in [0, 1] by `metric`, None where `error` says why there is no answer.

    `refused`: it said that it does not know. Latency is that of the whole answer; tokens are None where not counted.
    """

    quality: float | None
    metric: str
    latency_ms: float | None
    refused: bool = False
    tokens_in: int | None = None
    tokens_out: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class QuestionOutcome:
    """One question. `source` is the set that it comes from; questions of one `group` never lie on two sides of a split.

    `question` and `embedding` are None where the file has none; a signal is None where it could not be known.
    """

    id: str
    source: str
    signals: Mapping[str, float | None]
    arms: Mapping[str, ArmOutcome]
    group: str | None = None
    question: str | None = None
    embedding: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Questions that were answered under the same keys; `origin` names the files, for messages."""

    keys: Keys
    questions: tuple[QuestionOutcome, ...]
    origin: str

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms that answered any question, sorted."""
        return tuple(sorted({arm for each in self.questions for arm in each.arms}))


def write_outcomes(outcomes: Outcomes, file: Path, *, with_texts: bool = True) -> None:
    """Write a file that `read_outcomes` reads, compressed where its name ends in .gz.

    Args:
        with_texts: without, no question's text is written, and its words cannot be read out of its embedding either,
            since that is left out too.
    Raises: SwitchyardError.
    """
    lines = [json.dumps({"_keys": outcomes.keys.to_json()}, ensure_ascii=False)]
    lines += [
        json.dumps(_line(each, with_texts=with_texts), ensure_ascii=False, allow_nan=False)
        for each in outcomes.questions
    ]
    content = "".join(f"{line}\n" for line in lines).encode()
    try:
        write_file(file, gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)
    except OSError as error:
        raise SwitchyardError(f"{file}: cannot be written ({error.strerror}). Name a writable file.") from None


def merge_outcomes(parts: Sequence[Outcomes]) -> Outcomes:
    """Several files as one: more questions, or more arms of the same questions.

    Raises: TrainingDataError where keys differ, or a question has two outcomes of one arm or two values of a signal.
    """
    first, *others = parts
    if not others:
        return first
    adapters, further = dict(first.keys.adapters), dict(first.keys.others)
    for part in others:
        different = first.keys.differences(part.keys) + Keys("", adapters=adapters, others=further).differences(
            Keys("", adapters=part.keys.adapters, others=part.keys.others)
        )
        if different:
            raise TrainingDataError(
                f"{part.origin}: was not measured with what {first.origin} was: {different[0]}. "
                "Outcomes of different keys cannot be merged; collect one of them anew."
            )
        adapters |= part.keys.adapters
        further |= part.keys.others
    found: dict[str, QuestionOutcome] = {}
    for part in parts:
        for each in part.questions:
            known = found.get(each.id)
            found[each.id] = each if known is None else _joined(known, each, part.origin)
    keys = replace(first.keys, adapters=adapters, others=further)
    return Outcomes(keys, tuple(found.values()), _listed(part.origin for part in parts))


def _joined(one: QuestionOutcome, other: QuestionOutcome, origin: str) -> QuestionOutcome:
    """A question that two files hold."""
    fields: dict[str, Any] = {}
    for name in ("source", "group", "question", "embedding"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine is not None and theirs is not None and mine != theirs:
            raise TrainingDataError(
                f"{origin}: question {one.id!r} has another {name} than in a file before. Give the questions ids of "
                "their own, or leave one file out."
            )
        fields[name] = theirs if mine is None else mine
    for what, mine, theirs in (("signal", one.signals, other.signals), ("arm", one.arms, other.arms)):
        for name in sorted({*mine} & {*theirs}):
            if mine[name] != theirs[name]:
                raise TrainingDataError(
                    f"{origin}: question {one.id!r} has another outcome of {what} {name!r} than in a file before. "
                    "Leave one of the files out."
                )
    return replace(one, signals={**one.signals, **other.signals}, arms={**one.arms, **other.arms}, **fields)


def _line(each: QuestionOutcome, *, with_texts: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"id": each.id, "source": each.source}
    if each.group is not None:
        line["group"] = each.group
    if with_texts and each.question is not None:
        line["question"] = each.question
    if with_texts and each.embedding is not None:
        line["embedding"] = each.embedding
    line["signals"] = dict(each.signals)
    line["arms"] = {
        arm: {
            "quality": outcome.quality,
            "metric": outcome.metric,
            "refused": outcome.refused,
            "latency_ms": outcome.latency_ms,
            "tokens_in": outcome.tokens_in,
            "tokens_out": outcome.tokens_out,
            "error": outcome.error,
        }
        for arm, outcome in each.arms.items()
    }
    return line


def _listed(origins: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(origins))
