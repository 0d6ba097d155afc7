"""Do the signals of a search tell what a knowledge base cannot answer? On SQuAD 2.0, with its paragraphs as documents.

python -m loadtest.router.abstain
python -m loadtest.router.abstain --data shared/data --json abstain.json

Two cases (CC BY-SA 4.0; no text enters the figures):
- "near": the unanswerable questions that people wrote to look answerable by a paragraph that is in the knowledge base.
- "absent": answerable questions of articles of which every second one is left out of the knowledge base.
Every figure is of articles that the head was not fitted on. "False answers" is the share of the unanswerable questions
that are answered all the same, at a threshold that answers 90 % of the answerable ones; without abstaining it is 100 %.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from engine.config import AbstainSettings
from engine.evaluation.evidence import fit_evidence
from engine.metrics.ranking import auroc, auroc_gain_interval, auroc_interval
from engine.retrieval.encoding.protocol import EncoderLike
from engine.routing.signals.scores import Search, search_signals
from engine.routing.signals.table import SignalTable
from engine.values import DocumentWrite
from loadtest.public_data import MODEL, Measured, default_encoder, read_rows, run_measurement
from loadtest.router.search import filled, searched

FILE = "squad_v2_dev.jsonl.gz"
WHOLE, HALF = "whole", "half"
BEST = "search.z_best"
# In standard deviations; what ships as `router.abstain.min_z` is among them.
BOUNDS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


@dataclass(frozen=True, slots=True)
class Case:
    """What one comparison gave. AUROC: answerable against not, with 95 % intervals over questions.

    `signals` are AUROCs of each alone; below 0.5 a high value speaks against an answer. `gain` bounds that of the
    head less that of z_best alone, paired. `bounds`: coverage and false answers of bounds on z_best, without a head.
    """

    case: str
    num_questions: int
    num_answerable: int
    signals: Mapping[str, float]
    auroc: float | None
    interval: tuple[float, float] | None
    gain: tuple[float, float] | None
    ece: float
    coverage: float
    false_answers: float
    false_share: float
    false_share_before: float
    bounds: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a paragraph of an article."""

    text: str
    article: str
    is_answerable: bool


def read_squad_questions(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[DocumentWrite]], list[Question]]:
    """The paragraphs of each article as documents under its name, and all questions."""
    documents: dict[str, list[DocumentWrite]] = {}
    questions = []
    for row in rows:
        title = row["article"].replace("_", " ")
        written = DocumentWrite(row["id"].replace("#", "/"), row["context"].encode(), "text/plain", title=title)
        documents.setdefault(row["article"], []).append(written)
        for each in row["questions"]:
            questions.append(Question(each["question"], row["article"], not each.get("unanswerable")))
    return documents, questions


def kept_articles(articles: Sequence[str]) -> frozenset[str]:
    """Every second article, in an order by hash that is the same everywhere."""
    ordered = sorted(articles, key=lambda article: hashlib.sha256(article.encode()).hexdigest())
    return frozenset(ordered[::2])


def measure(rows: Sequence[Mapping[str, Any]], encoder: EncoderLike) -> list[Case]:
    """Both cases."""
    documents, questions = read_squad_questions(rows)
    kept = kept_articles([*documents])
    whole = [item for items in documents.values() for item in items]
    half = [item for article, items in documents.items() if article in kept for item in items]
    with filled(encoder, {WHOLE: whole, HALF: half}) as retriever:
        found = searched(retriever, [(each.text, name) for each in questions for name in (WHOLE, HALF)])
    of_whole, of_half = (
        search_signals([Search.of(each.text, one) for each, one in zip(questions, found[first::2], strict=True)])
        for first in (0, 1)
    )
    return judged(questions, of_whole, of_half, kept, encoder.identity.digest)


def judged(
    questions: Sequence[Question], of_whole: SignalTable, of_half: SignalTable, kept: Collection[str], encoder: str
) -> list[Case]:
    """Both cases, of [N, F] signals of all questions in the whole knowledge base and in that of the articles `kept`."""
    truth = np.array([each.is_answerable for each in questions])
    articles = [each.article for each in questions if each.is_answerable]
    half = SignalTable(of_half.names, of_half.values[truth])
    return [
        judge("near", of_whole, truth, [each.article for each in questions], encoder),
        judge("absent", half, np.array([article in kept for article in articles]), articles, encoder),
    ]


def judge(case: str, table: SignalTable, truth: NDArray[np.bool_], articles: Sequence[str], encoder: str) -> Case:
    """Each signal alone, the head by articles that are held out, and bounds on z_best."""
    _, report = fit_evidence(table, truth, articles, encoder=encoder)
    best = filled_in(table.column(BEST))
    strong = {str(bound): best >= bound for bound in BOUNDS}
    return Case(
        case=case,
        num_questions=len(truth),
        num_answerable=int(truth.sum()),
        signals=alone(table, truth),
        auroc=report.auroc,
        interval=auroc_interval(report.scores, truth),
        gain=auroc_gain_interval(report.scores, best, truth),
        ece=report.ece,
        coverage=report.coverage,
        false_answers=report.false_answers,
        false_share=report.false_share,
        false_share_before=float((~truth).mean()),
        bounds={name: (float(kept[truth].mean()), float(kept[~truth].mean())) for name, kept in strong.items()},
    )


def alone(table: SignalTable, truth: NDArray[np.bool_]) -> dict[str, float]:
    """AUROC of each signal that is ever known, by name."""
    found = {}
    for name, column in zip(table.names, table.values.T, strict=True):
        value = None if np.isnan(column).all() else auroc(filled_in(column), truth)
        if value is not None:
            found[name] = value
    return found


def filled_in(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is not known counts as the mean."""
    return np.where(np.isnan(column), np.nanmean(column), column)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    return run_measurement("router_abstain", __doc__, (FILE,), _measured, argv)


def _measured(data: Path) -> Measured:
    cases = measure(read_rows(data / FILE), default_encoder())
    figures = {"min_z": AbstainSettings().min_z, "cases": [asdict(one) for one in cases]}
    return (_summary(cases), _bounds(cases), _signals(cases)), figures


def _summary(cases: Sequence[Case]) -> Table:
    table = Table(title=f"answerable or not, by the search alone; {MODEL}", title_justify="left")
    table.add_column("case")
    for column in ("questions", "answerable", "AUROC of head", "95 %", "over z_best", "ECE", "kept", "false answers"):
        table.add_column(column, justify="right")
    table.add_column("of all answers", justify="right")
    for one in cases:
        table.add_row(
            one.case,
            f"{one.num_questions:,}",
            f"{one.num_answerable:,}",
            "" if one.auroc is None else f"{one.auroc:.3f}",
            "" if one.interval is None else "{:.3f} to {:.3f}".format(*one.interval),
            "" if one.gain is None else "{:+.3f} to {:+.3f}".format(*one.gain),
            f"{one.ece:.3f}",
            f"{one.coverage:.3f}",
            f"{one.false_answers:.3f}",
            f"{one.false_share_before:.3f} to {one.false_share:.3f}",
        )
    return table


def _bounds(cases: Sequence[Case]) -> Table:
    table = Table(title="bounds on z_best: answered of the answerable, and of the others", title_justify="left")
    table.add_column("bound")
    for one in cases:
        table.add_column(one.case, justify="right")
    for bound in cases[0].bounds:
        table.add_row(bound, *("{:.3f}, {:.3f}".format(*one.bounds[bound]) for one in cases))
    return table


def _signals(cases: Sequence[Case]) -> Table:
    table = Table(title="AUROC of each signal alone", title_justify="left")
    table.add_column("signal")
    for one in cases:
        table.add_column(one.case, justify="right")
    for name in dict.fromkeys(name for one in cases for name in one.signals):
        table.add_row(name, *(f"{one.signals[name]:.3f}" if name in one.signals else "" for one in cases))
    return table


if __name__ == "__main__":
    sys.exit(main())
