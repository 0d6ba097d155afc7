"""From figures to findings: what is wrong with the data, how bad it is, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.report.wording import counted, listed, percent
from engine.tuning.guard import alike_findings as alike
from engine.tuning.guard import thresholds as at
from engine.tuning.guard.report import Finding, GuardReport, Level
from engine.tuning.guard.wording import level_of

_WORST_FIRST: tuple[Level, ...] = ("refuse", "risky", "note")
_RETRIEVAL = "Where answers stand in documents, ingest those and let retrieval answer instead."


def find(report: GuardReport) -> tuple[Finding, ...]:
    """Every finding of a report that has none yet, worst first."""
    found = [finding for look in _LOOKS for finding in look(report)]
    return tuple(sorted(found, key=lambda finding: _WORST_FIRST.index(finding.level)))


def _amount(report: GuardReport) -> Iterator[Finding]:
    num = report.duplicates.num_distinct
    if num < at.REFUSE_BELOW_DISTINCT:
        reason = f"The data hold {counted(num, 'distinct example')}; at least {at.REFUSE_BELOW_DISTINCT} are needed."
        yield Finding("refuse", "too_few", reason, f"Add examples, to {at.FEW_DISTINCT} or more. {_RETRIEVAL}")
    elif num < at.FEW_DISTINCT:
        reason = f"The data hold {num} distinct examples; improvements show from {at.FEW_DISTINCT} on."
        yield Finding("risky", "few", reason, f"Add examples, or show a few of them in the prompt. {_RETRIEVAL}")


def _validation(report: GuardReport) -> Iterator[Finding]:
    num = report.split.num_validation
    if num < at.FEW_VALIDATION:
        yield Finding(
            "risky",
            "small_validation",
            f"{counted(num, 'row')} can be held out to choose the best adapter by; below {at.FEW_VALIDATION} a share "
            "of right answers is known to 14 points at best.",
            "Add examples, and of more documents and groups; judge by an evaluation file of your own (--eval).",
        )


def _labels(report: GuardReport) -> Iterator[Finding]:
    balance = report.labels
    if balance is None:
        return
    few = {label: num for label, num in balance.distinct.items() if num < at.FEW_OF_A_LABEL}
    if few:
        ranked = sorted(few, key=lambda label: (few[label], label))
        yield Finding(
            "risky",
            "rare_labels",
            f"{len(few)} of {counted(len(balance.counts), 'label')} have fewer than {at.FEW_OF_A_LABEL} distinct "
            f"examples: {listed([f'{label!r} ({few[label]})' for label in ranked])}.",
            "Add examples of these labels, or merge them into others.",
        )
    if balance.most_frequent_share >= at.MOST_FREQUENT_LABEL:
        share = percent(balance.most_frequent_share)
        yield Finding(
            "risky",
            "one_sided_labels",
            f"{share} of the rows are {balance.most_frequent!r}: always saying so is right that often.",
            "Add examples of the other labels, or leave some of this one out; judge by macro-F1.",
        )


def _targets(report: GuardReport) -> Iterator[Finding]:
    targets, num_rows = report.targets, report.data.num_rows
    if targets is None:
        return
    share = targets.most_frequent_share
    if share >= at.MOST_FREQUENT_TARGET_RISKY:
        yield Finding(
            level_of(share, at.MOST_FREQUENT_TARGET_RISKY, at.MOST_FREQUENT_TARGET_REFUSE),
            "one_answer",
            f"{percent(share)} of the rows are answered by {targets.most_frequent[:60]!r}: the model would learn to "
            "say it always.",
            "Add examples with other answers, or use 'text' and 'label' where there are only a few answers.",
        )
    unanswerable = targets.num_unanswerable / num_rows
    if unanswerable > at.UNANSWERABLE_RISKY:
        yield Finding(
            "risky",
            "mostly_unanswerable",
            f"{percent(unanswerable)} of the questions have no answer: the model would learn to give none.",
            "Add questions with answers until they are the larger part.",
        )
    if report.data.task == "qa" and not targets.num_with_context:
        yield Finding(
            "note",
            "no_contexts",
            "No question brings its context: the answers would be learned by heart.",
            "Facts that are many, or that change, belong in the knowledge base: ingest the documents.",
        )


def _base(report: GuardReport) -> Iterator[Finding]:
    base, targets = report.base, report.targets
    if base is None:
        return
    asked = f"{percent(base.share)} of {counted(base.num_asked, 'row')} that it was asked"
    if base.share >= at.KNOWN_RISKY:
        yield Finding(
            "risky",
            "known_already",
            f"The base model gives the target of {asked} without being tuned.",
            "Add what it gets wrong, or leave it as it is.",
        )
    is_by_heart = report.data.task == "qa" and targets is not None and not targets.num_with_context
    if is_by_heart and base.share < at.UNKNOWN_FACTS_RISKY:
        yield Finding(
            "risky",
            "unknown_facts",
            f"The base model knows {asked}: new facts are learned slowly, and at the cost of known ones.",
            "Ingest documents that hold them and let retrieval answer, or train on questions with their contexts.",
        )


def _lengths(report: GuardReport) -> Iterator[Finding]:
    tokens = report.tokens
    if tokens is not None and tokens.num_too_long:
        share = tokens.num_too_long / report.data.num_rows
        yield Finding(
            "risky" if share >= at.TOO_LONG_RISKY else "note",
            "too_long",
            f"{counted(tokens.num_too_long, 'row')} ({percent(share)}) have more than {tokens.max_tokens:,} tokens, "
            f"such as lines {listed(tokens.too_long_lines[:5])}.",
            "Shorten them, or split their contexts; they do not fit into the model.",
        )


def _bad_rows(report: GuardReport) -> Iterator[Finding]:
    data = report.data
    if data.num_bad:
        share = data.num_bad / (data.num_bad + data.num_rows)
        yield Finding(
            "risky" if share >= at.BAD_ROWS_RISKY else "note",
            "bad_rows",
            f"{counted(data.num_bad, 'bad row')} ({percent(share)}) left out; the first: {data.bad_rows[0]}.",
            "Correct them.",
        )


_LOOKS: tuple[Callable[[GuardReport], Iterator[Finding]], ...] = (
    *(alike.near_duplicates, _amount, alike.diversity, alike.contradictions, _labels, _targets, alike.leakage),
    *(_validation, _base, _lengths, _bad_rows, alike.exact_duplicates),
)
