"""Can questions with several readings be told from the others? AUROC of the ambiguity head on AmbigNQ and CLAMBER.

python -m loadtest.router.ambiguity
python -m loadtest.router.ambiguity --data shared/data --json ambiguity.json

AmbigNQ (CC BY-SA 3.0): fitted on the training questions, judged on the development questions.
A question is ambiguous where any annotator gave several readings; "unanimous" leaves out those they disagreed on.
CLAMBER (evaluation only): cross-validated by groups of near-duplicates, without the questions that AmbigNQ has too. Of
its types, those that wording alone does not give away: missing context (MC), unfamiliar names (NK), co-reference.
Every figure stands beside naive Bayes on words and pairs of words, fitted on the same rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from engine.evaluation.ambiguity import AmbiguityExamples, fit_ambiguity
from engine.evaluation.ambiguity_report import AmbiguityReport, judged, naive_bayes
from engine.retrieval.encoding.protocol import EncoderLike
from engine.routing.ambiguity import platt
from engine.routing.signals.lexical import lexical_signals
from engine.tuning.guard.groups import Groups
from loadtest.public_data import MODEL, Measured, default_encoder, normalised, read_rows, run_measurement

TRAIN, DEV, CLAMBER = "ambignq_train.jsonl.gz", "ambignq_dev.jsonl.gz", "clamber.jsonl.gz"
# Questions nearer than this are paraphrases of one another more often than not.
NEAR = 0.9
_BLOCK = 1_000
# By category and, where one category has several, the start of its subclass.
TYPES = {"MC": ("MC", ""), "NK": ("FD", "NK"), "co-reference": ("LA", "co-reference")}


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table."""

    case: str
    report: AmbiguityReport


def share_of(row: dict[str, Any]) -> float:
    """The share of an AmbigNQ question's annotators who gave several readings."""
    return float(np.mean([each["type"] == "multipleQAs" for each in row["annotations"]]))


def near_groups(embeddings: NDArray[np.float32]) -> list[str]:
    """The group of each of [N, E] unit rows: those at a cosine of NEAR or more are together."""
    groups = Groups(len(embeddings))
    for first in range(0, len(embeddings), _BLOCK):
        for row, other in np.argwhere(embeddings[first : first + _BLOCK] @ embeddings.T >= NEAR):
            if first + row < other:
                groups.join(int(first + row), int(other))
    return [str(root) for root in groups.roots()]


def measure_ambignq(
    train: Sequence[dict[str, Any]], dev: Sequence[dict[str, Any]], encoder: EncoderLike
) -> list[Figure]:
    """Held-out training questions, then all development questions and those that annotators agreed on."""
    known = {normalised(row["question"]) for row in dev}
    kept = [row for row in train if normalised(row["question"]) not in known]
    embeddings = encoder.encode([row["question"] for row in kept], is_query=True)
    shares = np.array([share_of(row) for row in kept])
    examples = _examples([row["question"] for row in kept], shares, near_groups(embeddings), embeddings, encoder)
    head, report = fit_ambiguity(examples)
    questions = [row["question"] for row in dev]
    scores = head.scores(questions, encoder.encode(questions, is_query=True), lexical_signals(questions))
    baseline = naive_bayes(examples.questions, shares >= 0.5, questions)
    truth = np.array([bool(row["ambiguous_any"]) for row in dev])
    agreed = np.array([row["ambiguous_any"] == row["ambiguous_all"] for row in dev])
    calibrated = platt(scores, head.slope, head.offset)
    figures = [Figure("AmbigNQ train, held out", report)]
    for case, rows in (("AmbigNQ dev", np.ones(len(dev), dtype=bool)), ("AmbigNQ dev, unanimous", agreed)):
        before = platt(scores, 1.0, 0.0)
        figures.append(Figure(case, judged(truth[rows], scores[rows], before[rows], calibrated[rows], baseline[rows])))
    return figures


def measure_clamber(
    rows: Sequence[dict[str, Any]], elsewhere: Sequence[dict[str, Any]], encoder: EncoderLike
) -> list[Figure]:
    """Each type of TYPES by questions of its own folds; `elsewhere` are rows whose questions are left out."""
    known = {normalised(row["question"]) for row in elsewhere}
    figures = []
    for name, (category, subclass) in TYPES.items():
        kept = [
            row
            for row in rows
            if row["category"] == category
            and row["subclass"].startswith(subclass)
            and normalised(row["question"]) not in known
        ]
        questions = [row["question"] for row in kept]
        embeddings = encoder.encode(questions, is_query=True)
        shares = np.array([float(row["require_clarification"]) for row in kept])
        _, report = fit_ambiguity(_examples(questions, shares, near_groups(embeddings), embeddings, encoder))
        figures.append(Figure(f"CLAMBER {name}", report))
    return figures


def macro(figures: Sequence[Figure]) -> tuple[float, float]:
    """Mean AUROC over cases, of the head and of the baseline. Raises: ValueError where one has none."""
    pairs = [(one.report.auroc, one.report.baseline) for one in figures]
    known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    if len(known) < len(pairs) or not pairs:
        raise ValueError("a case without both kinds of questions has no AUROC, so there is no mean over cases")
    return float(np.mean([ours for ours, _ in known])), float(np.mean([theirs for _, theirs in known]))


def _examples(
    questions: Sequence[str],
    shares: NDArray[np.float64],
    groups: Sequence[str],
    embeddings: NDArray[np.float32],
    encoder: EncoderLike,
) -> AmbiguityExamples:
    signals = lexical_signals(questions)
    return AmbiguityExamples(questions, shares, groups, embeddings, encoder.identity.digest, signals)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    return run_measurement("router_ambiguity", __doc__, (TRAIN, DEV, CLAMBER), _measured, argv)


def _measured(data: Path) -> Measured:
    encoder = default_encoder()
    train, dev, clamber = (read_rows(data / name) for name in (TRAIN, DEV, CLAMBER))
    figures = measure_ambignq(train, dev, encoder)
    types = measure_clamber(clamber, [*train, *dev], encoder)
    ours, theirs = macro(types)
    mean = f"CLAMBER, mean over {', '.join(TYPES)}: AUROC {ours:.3f}, naive Bayes {theirs:.3f}"
    return (_table([*figures, *types]), mean), {
        "macro": {"cases": [one.case for one in types], "ours": ours, "baseline": theirs},
        "figures": [asdict(one) for one in (*figures, *types)],
    }


def _table(figures: Sequence[Figure]) -> Table:
    table = Table(title=f"the ambiguity head with {MODEL}", title_justify="left")
    table.add_column("case")
    columns = ("questions", "ambiguous", "AUROC", "95 % interval", "naive Bayes", "gain, paired", "ECE", "calibrated")
    for column in columns:
        table.add_column(column, justify="right")
    for one in figures:
        report = one.report
        table.add_row(
            one.case,
            f"{report.num_questions:,}",
            f"{report.num_ambiguous:,}",
            "" if report.auroc is None else f"{report.auroc:.3f}",
            "" if report.interval is None else "{:.3f} to {:.3f}".format(*report.interval),
            "" if report.baseline is None else f"{report.baseline:.3f}",
            "" if report.gain is None else "{:+.3f} to {:+.3f}".format(*report.gain),
            f"{report.ece_before:.3f}",
            f"{report.ece_after:.3f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
