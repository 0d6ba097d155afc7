"""`inspect`: the guard's figures for a file of examples, and the split that a training would use."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.errors import TrainingDataError
from engine.tuning.data.examples import Examples
from engine.tuning.data.rows import QuestionRow, Row
from engine.tuning.guard.alike import Alike
from engine.tuning.guard.counts import CountTokens, label_balance, token_counts
from engine.tuning.guard.diversity import Embed, distinct_words, mean_overlap, self_similarity
from engine.tuning.guard.findings import find
from engine.tuning.guard.report import BaseKnowledge, DataSummary, GuardReport, SplitSizes, TargetStats
from engine.tuning.guard.text import normalise
from engine.tuning.splits import Split, split_rows

# Of lines, clusters and rows that are listed one by one.
MAX_LISTED = 20
# A share of 200 is known to 7 points (95 %), and asking a model is what takes time here.
NUM_ASKED = 200

AnswersRight = Callable[[Sequence[Row]], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Inspection:
    """The report, and the rows to train on and to validate with."""

    report: GuardReport
    split: Split


def inspect(
    examples: Examples,
    *,
    evaluation: Examples | None = None,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
    embed: Embed | None = None,
    base_answers: AnswersRight | None = None,
    seed: int = 0,
) -> Inspection:
    """Measure what the examples are worth; what has no callable is not measured. Trains nothing and changes nothing.

    Args:
        evaluation: rows that the tuned model will be judged by.
        count_tokens: the generator's tokenizer: [N] texts to [N] numbers of tokens.
        max_tokens: the most that a row and its target may have.
        embed: an encoder: [N] texts to [N, E] float32.
        base_answers: whether the base model gives the target of each row; asked of a sample of NUM_ASKED rows.
        seed: draws samples and the split.
    Raises: TrainingDataError where the evaluation file is of another kind.
    """
    if evaluation is not None and evaluation.kind != examples.kind:
        raise TrainingDataError(
            f"{evaluation.source}: holds {evaluation.description}, but {examples.source} {examples.description}. "
            "Evaluate with rows of the kind that is trained on."
        )
    rows = examples.rows
    alike = Alike(rows)
    split = split_rows(rows, alike.clusters, seed=seed)
    report = GuardReport(
        data=_summary(examples),
        tokens=None if count_tokens is None else token_counts(rows, count_tokens, max_tokens, MAX_LISTED),
        labels=label_balance(rows, alike.clusters),
        duplicates=alike.duplicates(MAX_LISTED),
        contradictions=alike.contradictions(MAX_LISTED),
        leakage=None if evaluation is None else alike.leakage(evaluation.rows, evaluation.digest, MAX_LISTED),
        input_words=distinct_words(alike.inputs, seed),
        input_overlap=mean_overlap(alike.inputs, seed),
        similarity=None if embed is None else self_similarity(alike.inputs, embed, seed),
        targets=_targets(rows, seed) if examples.task != "classify" else None,
        base=None if base_answers is None else _base(rows, base_answers, seed),
        split=SplitSizes(len(split.train), len(split.validation), split.num_groups, seed),
    )
    return Inspection(replace(report, findings=find(report)), split)


def _summary(examples: Examples) -> DataSummary:
    return DataSummary(
        source=examples.source,
        description=examples.description,
        task=examples.task,
        digest=examples.digest,
        num_rows=len(examples.rows),
        num_bad=examples.num_bad,
        bad_rows=tuple(map(str, examples.bad_rows)),
        ignored_fields=examples.ignored_fields,
    )


def _targets(rows: Sequence[Row], seed: int) -> TargetStats:
    questions = [row for row in rows if isinstance(row, QuestionRow)]
    answered = [row for row in rows if row.target]
    spelled = Counter(row.target.strip() for row in answered)
    target, num = spelled.most_common(1)[0] if spelled else ("", 0)
    with_context = [row for row in questions if row.context is not None]
    return TargetStats(
        words=distinct_words([row.target for row in answered], seed),
        most_frequent=target,
        most_frequent_share=num / len(rows),
        num_with_context=len(with_context),
        num_in_context=sum(map(_is_in_context, with_context)),
        num_unanswerable=sum(not row.answers for row in questions),
    )


def _is_in_context(row: QuestionRow) -> bool:
    context = normalise(row.context or "")
    return any(normalise(answer) in context for answer in row.answers)


def _base(rows: Sequence[Row], base_answers: AnswersRight, seed: int) -> BaseKnowledge:
    asked = random.Random(seed).sample(list(rows), min(NUM_ASKED, len(rows)))
    return BaseKnowledge(len(asked), sum(map(bool, base_answers(asked))))
