"""A report as lines for a terminal: a name and what was found."""

from __future__ import annotations

from collections.abc import Iterator

from engine.report.wording import counted, percent
from engine.tuning.guard.counts import Lengths
from engine.tuning.guard.diversity import DistinctWords
from engine.tuning.guard.report import GuardReport

Line = tuple[str, str]


def report_lines(report: GuardReport) -> list[Line]:
    """(name, text) of each line; a line that goes on has an empty name. The verdict comes last."""
    return [
        *_data(report),
        *_tokens(report),
        *_labels(report),
        *_alike(report),
        *_diversity(report),
        *_targets(report),
        *_split(report),
        *_findings(report),
        ("verdict", report.verdict),
    ]


def _data(report: GuardReport) -> Iterator[Line]:
    data = report.data
    yield "data", f"{data.source}: {data.description}; the task is {data.task}"
    yield "rows", f"{data.num_rows:,} used, {data.num_bad:,} bad; digest {data.digest[:16]}"
    for reason in data.bad_rows:
        yield "", reason
    if data.ignored_fields:
        yield "", f"fields not read: {', '.join(map(repr, data.ignored_fields))}"


def _tokens(report: GuardReport) -> Iterator[Line]:
    tokens = report.tokens
    if tokens is None:
        yield "tokens", "not counted"
        return
    yield "tokens", f"inputs {_lengths(tokens.inputs)}; targets {_lengths(tokens.targets)}"
    if tokens.max_tokens is not None:
        yield "", f"{tokens.num_too_long:,} rows have more than {tokens.max_tokens:,}"


def _labels(report: GuardReport) -> Iterator[Line]:
    balance = report.labels
    if balance is None:
        return
    yield "labels", f"{len(balance.counts)}, as hard to guess as {balance.effective_labels:.1f} equally frequent ones"
    for what, label in (("rarest", balance.rarest), ("most frequent", balance.most_frequent)):
        count = balance.counts[label]
        yield "", f"{what} {label!r}: {count:,} rows ({100 * count / report.data.num_rows:.2f} %)"


def _alike(report: GuardReport) -> Iterator[Line]:
    same, wrong, leaked = report.duplicates, report.contradictions, report.leakage
    yield (
        "duplicates",
        f"{same.num_exact:,} exact, {same.num_near:,} near; {counted(same.num_distinct, 'distinct row')}; "
        f"largest cluster {same.largest:,}",
    )
    yield "contradictions", f"{counted(wrong.num_rows, 'row')} in {counted(wrong.num_inputs, 'input')}"
    for each in wrong.first:
        pairs = ", ".join(f"{line} {target[:40]!r}" for line, target in zip(each.lines, each.targets, strict=True))
        yield "", f"lines {pairs}"
    if leaked is not None:
        yield (
            "leakage",
            f"{leaked.num_exact:,} exact, {leaked.num_near:,} near of {leaked.num_eval_rows:,} evaluation rows",
        )


def _diversity(report: GuardReport) -> Iterator[Line]:
    yield "input words", _words(report.input_words)
    if report.input_overlap is not None:
        yield "input overlap", f"{report.input_overlap:.3f} of the 5-character pieces of two inputs, on average"
    near = report.similarity
    if near is not None:
        yield (
            "similarity",
            f"cosine {near.mean:.2f} on average, {near.nearest:.2f} to the nearest, 0.95 or more for "
            f"{percent(near.share_near)}; {near.num_texts:,} inputs count as {near.vendi:.0f} different ones",
        )


def _targets(report: GuardReport) -> Iterator[Line]:
    targets, base = report.targets, report.base
    if targets is not None:
        yield "target words", _words(targets.words)
        yield "", f"most frequent {targets.most_frequent[:60]!r}: {percent(targets.most_frequent_share)} of the rows"
        if report.data.task == "qa":
            yield (
                "contexts",
                f"{targets.num_with_context:,} rows have one, which holds an answer word for word in "
                f"{targets.num_in_context:,}; {targets.num_unanswerable:,} are unanswerable",
            )
    if base is not None:
        yield "base model", f"gives {base.num_right:,} of {base.num_asked:,} targets untuned"


def _split(report: GuardReport) -> Iterator[Line]:
    split = report.split
    yield (
        "split",
        f"{split.num_train:,} train, {split.num_validation:,} validation; {counted(split.num_groups, 'group')} kept "
        f"whole (seed {split.seed})",
    )


def _findings(report: GuardReport) -> Iterator[Line]:
    for finding in report.findings:
        yield finding.level, finding.reason
        yield "", finding.fix


def _lengths(lengths: Lengths) -> str:
    return f"{lengths.total:,} (median {lengths.p50:,}, p95 {lengths.p95:,}, most {lengths.most:,})"


def _words(words: DistinctWords | None) -> str:
    if words is None:
        return "none"
    return f"{words.num_words:,}; distinct-1 {words.distinct_1:.2f}, distinct-2 {words.distinct_2:.2f}"
