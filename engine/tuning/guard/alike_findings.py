"""Findings about rows that say the same, say the opposite, or are too much like each other."""

from __future__ import annotations

from collections.abc import Iterator

from engine.report.wording import counted, listed, percent
from engine.tuning.guard import thresholds as at
from engine.tuning.guard.report import Finding, GuardReport
from engine.tuning.guard.wording import level_of

_MORE = "Add examples in other words and about other cases: copies with one word changed teach nothing but the pattern."


def near_duplicates(report: GuardReport) -> Iterator[Finding]:
    """Rows beyond the first of each cluster."""
    same, num_rows = report.duplicates, report.data.num_rows
    if not same.num_near:
        return
    share = same.num_near / num_rows
    level = level_of(share, at.NEAR_SHARE_RISKY, at.NEAR_SHARE_REFUSE)
    where = f", such as lines {listed(same.clusters[0][:5])}" if same.clusters else ""
    yield Finding(
        level,
        "near_duplicates",
        f"{counted(same.num_near, 'row')} of {num_rows:,} ({percent(share)}) nearly repeat another one, "
        f"{same.num_distinct:,} differ. The largest cluster has {counted(same.largest, 'row')}{where}.",
        "Clusters stay whole in the split; delete what is a slip."
        if level == "note"
        else "Keep one row of each cluster, and add examples that differ in what they ask.",
    )


def exact_duplicates(report: GuardReport) -> Iterator[Finding]:
    """Rows that repeat input and target."""
    num = report.duplicates.num_exact
    if num:
        reason = f"{counted(num, 'row')} repeat input and target of another one."
        yield Finding("note", "exact_duplicates", reason, "Delete the copies, unless they are to weigh more.")


def contradictions(report: GuardReport) -> Iterator[Finding]:
    """Inputs with several targets, and clusters with several labels."""
    found = report.contradictions
    what = "labels" if report.labels else "answers"
    if found.num_inputs:
        share = found.num_rows / report.data.num_rows
        first = found.first[0]
        pairs = zip(first.lines, first.targets, strict=True)
        example = listed([f"line {line} {target[:40]!r}" for line, target in pairs])
        yield Finding(
            level_of(share, at.CONTRADICTING_RISKY, at.CONTRADICTING_REFUSE),
            "contradictions",
            f"{counted(found.num_rows, 'row')} ({percent(share)}) in {counted(found.num_inputs, 'input')} bear "
            f"different {what}, such as {first.text[:60]!r}: {example}.",
            "Relabel these lines, or put into the text what tells the cases apart.",
        )
    if found.num_near_clusters:
        reason = f"{counted(found.num_near_clusters, 'cluster')} of near-duplicates with more than one label."
        yield Finding("note", "near_contradictions", reason, "Read them: one word may decide, or a label slipped.")


def leakage(report: GuardReport) -> Iterator[Finding]:
    """Evaluation rows that are trained on, and contexts."""
    leaked = report.leakage
    if leaked is None:
        return
    num = leaked.num_exact + leaked.num_near
    if num:
        share = num / leaked.num_eval_rows
        first = leaked.first[0]
        yield Finding(
            level_of(share, at.LEAKED_RISKY, at.LEAKED_REFUSE),
            "leakage",
            f"{num:,} of {counted(leaked.num_eval_rows, 'evaluation row')} ({percent(share)}) are trained on: "
            f"{leaked.num_exact:,} in the same words, {leaked.num_near:,} nearly, such as line {first.eval_line} "
            f"(line {first.train_line} of the data).",
            "Leave them out of one of the files, or read the result as too good by up to that share.",
        )
    if leaked.num_same_context:
        yield Finding(
            "note",
            "same_contexts",
            f"{counted(leaked.num_same_context, 'evaluation row')} ask something new about contexts trained on.",
            "Evaluate with other documents if new documents are what comes in service.",
        )


def diversity(report: GuardReport) -> Iterator[Finding]:
    """Inputs that share too many words, or meanings."""
    words, similarity, overlap = report.input_words, report.similarity, report.input_overlap
    if overlap is not None and overlap >= at.OVERLAP_RISKY:
        yield Finding(
            "risky",
            "alike_inputs",
            f"Two inputs have {percent(overlap)} of their 5-character pieces in common on average; 1 to 8 % are usual.",
            _MORE,
        )
    if words is not None and words.distinct_2 < at.DISTINCT_PAIRS_RISKY:
        yield Finding(
            "risky",
            "few_words",
            f"{percent(words.distinct_2)} of the inputs' word pairs are distinct; {percent(at.DISTINCT_PAIRS_RISKY)} "
            "or more are usual.",
            _MORE,
        )
    if similarity is not None and similarity.share_near >= at.NEAR_COSINE_SHARE_RISKY:
        share = percent(similarity.share_near)
        reason = f"{share} of the inputs have a paraphrase among the others (cosine of 0.95 or more)."
        yield Finding("risky", "paraphrases", reason, _MORE)
