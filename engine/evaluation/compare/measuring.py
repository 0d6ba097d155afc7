"""Answers to figures of each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.asking import Answer
from engine.evaluation.compare.contenders import Contender
from engine.evaluation.compare.figures import ArmFigures, Hits, SearchFigures, SourceFigures
from engine.evaluation.compare.searching import DEPTH, Found, holds_answer
from engine.evaluation.figures import Estimate
from engine.evaluation.grading import Grade, grade, is_label
from engine.evaluation.intervals import grouped_interval
from engine.evaluation.questions import Question
from engine.generation.citations import supported_share
from engine.metrics.fluency import distinct_2, repetition
from engine.metrics.retrieval import hit, ndcg, recall, reciprocal_rank
from engine.routing.heads import Floats

_NO_GRADE = 0.0


@dataclass(frozen=True, slots=True)
class Sheet:
    """Every answer of every contender, graded. quality: [N, A]; groups: [N], questions that depend on each other."""

    questions: tuple[Question, ...]
    contenders: tuple[Contender, ...]
    answers: Mapping[tuple[str, str], Answer]
    grades: Mapping[tuple[str, str], Grade]
    quality: Floats
    groups: NDArray[np.int64]

    def answer(self, contender: Contender, question: Question) -> Answer:
        """The answer of one to one."""
        return self.answers[contender.name, question.id]

    @property
    def is_binary(self) -> bool:
        """Whether every answer is right or wrong and nothing between."""
        return all(each.metric in ("accuracy", "refusal") for each in self.questions)


def make_sheet(
    questions: Sequence[Question], contenders: Sequence[Contender], answers: Mapping[tuple[str, str], Answer]
) -> Sheet:
    """Grade all answers."""
    grades = {
        (each.name, question.id): grade(question, answer.text, refused=answer.refused)
        for each in contenders
        for question in questions
        if (answer := answers[each.name, question.id]).error is None
    }
    quality = np.array(
        [
            [grades[each.name, q.id].quality if (each.name, q.id) in grades else _NO_GRADE for each in contenders]
            for q in questions
        ],
        dtype=np.float64,
    )
    names: dict[str, int] = {}
    groups = [
        names.setdefault(f"group {q.group}" if q.group is not None else f"row {place}", len(names))
        for place, q in enumerate(questions)
    ]
    return Sheet(tuple(questions), tuple(contenders), answers, grades, quality, np.array(groups, dtype=np.int64))


def arm_figures(
    sheet: Sheet, place: int, *, labels: frozenset[str], minutes: float | None, untrusted: str | None
) -> ArmFigures:
    """The figures of the contender at `place`. `labels`: all that an answer to a question with a label may be."""
    contender = sheet.contenders[place]
    quality = sheet.quality[:, place]
    pairs = [(q, sheet.answer(contender, q)) for q in sheet.questions]
    given = [(q, answer) for q, answer in pairs if answer.error is None]
    grades = [sheet.grades[contender.name, q.id] for q, _ in given]
    failures = [answer.error for _, answer in pairs if answer.error is not None]
    grounded = [
        share
        for (_, answer), graded in zip(given, grades, strict=True)
        if answer.passages
        and not graded.refused
        and (share := supported_share(answer.text, [each.text for each in answer.passages])) is not None
    ]
    labelled = [answer.text for q, answer in given if q.label is not None]
    texts = [answer.text for _, answer in given]
    return ArmFigures(
        name=contender.name,
        kind=contender.kind,
        quality=Estimate(float(quality.mean()), grouped_interval(quality, sheet.groups)),
        metrics=_metrics(sheet, contender),
        num_failed=len(failures),
        first_failure=failures[0] if failures else None,
        refused=_share([each.refused for each in grades]),
        cut_off=_share([answer.finish_reason == "length" for _, answer in given]),
        passages=_share([bool(answer.passages) for _, answer in given]),
        grounded=_mean(grounded),
        valid=_mean([any(is_label(text, label) for label in labels) for text in labelled]),
        repetition=_mean([repetition(text) for text in texts]),
        distinct_2=distinct_2(texts),
        ttft_ms=_middle([answer.ttft_ms for _, answer in given], 50),
        p50_ms=_middle([answer.latency_ms for _, answer in given], 50),
        p95_ms=_middle([answer.latency_ms for _, answer in given], 95),
        tokens_in=_mean([answer.tokens_in for _, answer in given if answer.tokens_in is not None]),
        tokens_out=_mean([answer.tokens_out for _, answer in given if answer.tokens_out is not None]),
        tuning_minutes=minutes,
        hits=_hits(sheet, place) if contender.may_show_passages else None,
        untrusted=untrusted,
    )


def search_figures(questions: Sequence[Question], found: Mapping[str, Found]) -> SearchFigures | None:
    """Means over the questions that name documents; None where none does."""
    rows = [(q, found[q.id]) for q in questions if q.id in found]
    if not rows:
        return None

    def mean(measure: object, k: int) -> float:
        assert callable(measure)
        return float(np.mean([measure(each.documents, q.documents, k) for q, each in rows]))

    answered = [each.has_answer for q, each in rows if q.metric == "f1"]
    return SearchFigures(
        num_rows=len(rows),
        hit_1=mean(hit, 1),
        hit_5=mean(hit, 5),
        recall_5=mean(recall, 5),
        recall_10=mean(recall, DEPTH),
        mrr_10=mean(reciprocal_rank, DEPTH),
        ndcg_10=mean(ndcg, DEPTH),
        answer_rate=_mean(answered),
    )


def source_figures(sheet: Sheet) -> tuple[SourceFigures, ...]:
    """Each source by itself; none where there is only one."""
    sources = sorted({q.source for q in sheet.questions})
    if len(sources) < 2:
        return ()
    found = []
    for source in sources:
        rows = np.array([q.source == source for q in sheet.questions])
        means = sheet.quality[rows].mean(axis=0)
        quality = {each.name: float(mean) for each, mean in zip(sheet.contenders, means, strict=True)}
        found.append(SourceFigures(source, int(rows.sum()), quality))
    return tuple(found)


def is_hit(question: Question, answer: Answer) -> bool | None:
    """Whether the shown passages are the right ones; None where that is not known."""
    if question.documents:
        return any(each.document in question.documents for each in answer.passages)
    return holds_answer(question, [each.text for each in answer.passages]) if question.metric == "f1" else None


def _hits(sheet: Sheet, place: int) -> Hits | None:
    contender = sheet.contenders[place]
    known = []
    for row, question in enumerate(sheet.questions):
        answer = sheet.answer(contender, question)
        # Of the router's arm only what it answered with passages.
        if answer.error is None and (answer.passages or contender.arm.has_context):
            found = is_hit(question, answer)
            if found is not None:
                known.append((row, found, holds_answer(question, [each.text for each in answer.passages])))
    if not known:
        return None
    rows, hits = np.array([row for row, *_ in known]), np.array([found for _, found, _ in known])
    answered = [held for row, _, held in known if sheet.questions[row].metric == "f1"]
    return Hits(
        num_rows=len(rows),
        rate=float(hits.mean()),
        by_documents=all(bool(sheet.questions[row].documents) for row in rows),
        answer_rate=_mean(answered),
        num_hit=int(hits.sum()),
        quality_hit=_estimate(sheet, place, rows[hits]),
        quality_miss=_estimate(sheet, place, rows[~hits]),
    )


def _estimate(sheet: Sheet, place: int, rows: NDArray[np.int64]) -> Estimate | None:
    if not len(rows):
        return None
    quality = sheet.quality[rows, place]
    return Estimate(float(quality.mean()), grouped_interval(quality, sheet.groups[rows]))


def _metrics(sheet: Sheet, contender: Contender) -> dict[str, float]:
    """Means of the metrics; a failed answer counts as 0."""
    values: dict[str, list[float]] = {}
    for question in sheet.questions:
        graded = sheet.grades.get((contender.name, question.id))
        values.setdefault(question.metric, []).append(graded.quality if graded else _NO_GRADE)
        if question.metric == "f1":
            values.setdefault("exact_match", []).append((graded.exact or 0.0) if graded else _NO_GRADE)
    found = {name: float(np.mean(each)) for name, each in values.items()}
    labelled = [q for q in sheet.questions if q.label is not None]
    if labelled:
        found["macro_f1"] = _macro_f1(
            [q.label or "" for q in labelled], [sheet.answer(contender, q).text for q in labelled]
        )
    return found


def _macro_f1(labels: Sequence[str], texts: Sequence[str]) -> float:
    """The mean over the labels that occur of F1; an answer that is no label is of none."""
    known = sorted({*labels})
    said = [next((label for label in known if is_label(text, label)), None) for text in texts]
    scores = []
    for label in known:
        right = sum(a == b == label for a, b in zip(labels, said, strict=True))
        scores.append(2 * right / (labels.count(label) + said.count(label)))
    return float(np.mean(scores))


def _mean(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else 0.0


def _middle(values: Sequence[float | None], percentile: float) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.percentile(known, percentile)) if known else None
