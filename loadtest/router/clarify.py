"""Is an underspecified question told apart from one that can be answered? On the conversations of MTRAG-UN.

python -m loadtest.router.clarify
python -m loadtest.router.clarify --data shared/data --json clarify.json

MTRAG-UN (Apache-2.0) is an evaluation set: what is fitted to it here, on other conversations each time, is thrown away.
Each domain is a knowledge base of the reference passages of all its conversations, searched as the server does. That
has no passage for 14 of the 38 underspecified questions, where a real one would have many: the search tells these apart
too easily, so the figures are also given without them.
"Precision" is of the tenth of the questions that are most likely underspecified; at random it is the base rate.
The head of AmbigNQ was fitted on its training questions (CC BY-SA 3.0), and never saw a conversation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from engine.evaluation.ambiguity import NUM_FOLDS, AmbiguityExamples, AmbiguitySettings, fit_scores
from engine.evaluation.evidence import fit_evidence
from engine.evaluation.regression import group_folds
from engine.metrics.ranking import auroc, auroc_interval
from engine.retrieval.encoding.protocol import EncoderLike
from engine.retrieval.followups import standalone_query
from engine.routing.ambiguity import AmbiguityHead
from engine.routing.signals.lexical import lexical_signals
from engine.routing.signals.scores import Search, search_signals
from engine.routing.signals.table import Floats, SignalTable, joined
from engine.values import DocumentWrite, Message, Role
from loadtest.public_data import MODEL, Measured, default_encoder, read_rows, run_measurement
from loadtest.router.ambiguity import TRAIN, near_groups, share_of
from loadtest.router.search import filled, searched

FILE = "mtrag_un.jsonl.gz"
KINDS = {"ANSWERABLE": False, "UNDERSPECIFIED": True}
BUDGET = 0.1
ALL, WITH_PASSAGES = "all", "with passages"
_ROLES: dict[str, Role] = {"user": "user", "agent": "assistant"}
_RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table. Positive: underspecified; intervals of 95 %, over questions."""

    questions: str
    system: str
    num_questions: int
    num_underspecified: int
    auroc: float | None
    interval: tuple[float, float] | None
    precision: float
    precision_interval: tuple[float, float]

    @property
    def base_rate(self) -> float:
        """Precision of asking back at random."""
        return self.num_underspecified / self.num_questions


@dataclass(frozen=True, slots=True)
class Conversations:
    """Last questions of N conversations: as written, as searched, what they are, and what their search says.

    `embeddings` [N, E] are of the questions as written.
    """

    questions: Sequence[str]
    searched: Sequence[str]
    is_underspecified: NDArray[np.bool_]
    has_passages: NDArray[np.bool_]
    search: SignalTable
    embeddings: NDArray[np.float32]


def read_conversations(rows: Sequence[Mapping[str, Any]], encoder: EncoderLike) -> Conversations:
    """Those of KINDS, each searched in its own domain."""
    domains: dict[str, dict[str, DocumentWrite]] = {}
    for row in rows:
        for passage in row["contexts"]:
            name = f"{row['collection']}/{passage['document_id']}"
            written = DocumentWrite(name, passage["text"].encode(), "text/plain")
            domains.setdefault(row["collection"], {}).setdefault(name, written)
    kept = [row for row in rows if row["answerability"] in KINDS and row["collection"] in domains]
    texts, asked = [], []
    for row in kept:
        messages = [Message(_ROLES[turn["speaker"]], turn["text"]) for turn in row["turns"]]
        texts.append(messages[-1].content)
        asked.append((standalone_query(messages), str(row["collection"])))
    with filled(encoder, {name: [*written.values()] for name, written in domains.items()}) as retriever:
        found = searched(retriever, asked)
    searches = [Search.of(text, evidence) for (text, _), evidence in zip(asked, found, strict=True)]
    return Conversations(
        texts,
        [text for text, _ in asked],
        np.array([KINDS[row["answerability"]] for row in kept]),
        np.array([bool(row["contexts"]) for row in kept]),
        search_signals(searches),
        encoder.encode(texts, is_query=True),
    )


def ambignq_head(rows: Sequence[Mapping[str, Any]], encoder: EncoderLike) -> AmbiguityHead:
    """The head of AmbigNQ's training questions, without calibration: only its order is used."""
    questions = [row["question"] for row in rows]
    examples = AmbiguityExamples(
        questions,
        np.array([share_of(dict(row)) for row in rows]),
        questions,
        encoder.encode(questions, is_query=True),
        encoder.identity.digest,
        lexical_signals(questions),
    )
    return fit_scores(examples, AmbiguitySettings())


def scores_of(asked: Conversations, elsewhere: AmbiguityHead | None, encoder: EncoderLike) -> dict[str, Floats]:
    """[N] scores by system; what is fitted to these conversations was fitted to others than it judges."""
    words = lexical_signals(asked.questions)
    groups = near_groups(asked.embeddings)
    shares = asked.is_underspecified.astype(np.float64)
    examples = AmbiguityExamples(asked.questions, shares, groups, asked.embeddings, encoder.identity.digest, words)
    systems = {
        "words, embedding": _held_out(examples),
        "words, embedding, search": _held_out(replace(examples, signals=joined(words, asked.search))),
        "search": _small(asked.search, asked.is_underspecified, groups),
    }
    if elsewhere is not None:
        trained = elsewhere.scores(asked.questions, asked.embeddings, words)
        both = joined(SignalTable(("ambiguity.score",), trained[:, None]), asked.search)
        systems |= {
            "AmbigNQ head": trained,
            "AmbigNQ head, as searched": elsewhere.scores(
                asked.searched, encoder.encode(asked.searched, is_query=True), lexical_signals(asked.searched)
            ),
            "AmbigNQ head, search": _small(both, asked.is_underspecified, groups),
        }
    return systems


def measure(asked: Conversations, elsewhere: AmbiguityHead | None, encoder: EncoderLike) -> list[Figure]:
    """Every system, on all questions and on those whose passages are there."""
    systems = scores_of(asked, elsewhere, encoder)
    subsets = {ALL: np.ones(len(asked.questions), dtype=bool), WITH_PASSAGES: asked.has_passages}
    return [
        judged(name, system, scores[rows], asked.is_underspecified[rows])
        for name, rows in subsets.items()
        for system, scores in systems.items()
    ]


def judged(questions: str, system: str, scores: Floats, truth: NDArray[np.bool_]) -> Figure:
    """The figure of [N] scores."""
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(_RESAMPLES):
        rows = draw.integers(len(truth), size=len(truth))
        drawn.append(precision_at(scores[rows], truth[rows]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Figure(
        questions,
        system,
        len(truth),
        int(truth.sum()),
        auroc(scores, truth),
        auroc_interval(scores, truth),
        precision_at(scores, truth),
        (float(low), float(high)),
    )


def precision_at(scores: Floats, truth: NDArray[np.bool_], budget: float = BUDGET) -> float:
    """Share that is underspecified of the `budget` of questions with the highest scores, the first of equal ones."""
    num = max(1, ceil(budget * len(truth)))
    return float(truth[np.argsort(-scores, kind="stable")[:num]].mean())


def _held_out(examples: AmbiguityExamples) -> Floats:
    folds = group_folds(examples.groups, NUM_FOLDS, seed=0)
    scores = np.empty(len(folds))
    for fold in range(NUM_FOLDS):
        test, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        head, asked = fit_scores(examples.rows(rest), AmbiguitySettings()), examples.rows(test)
        scores[test] = head.scores(asked.questions, asked.embeddings, asked.signals)
    return scores


def _small(signals: SignalTable, truth: NDArray[np.bool_], groups: Sequence[str]) -> Floats:
    """Logistic regression on a few signals: underspecified is what is not answerable."""
    _, report = fit_evidence(signals, ~truth, groups)
    return -report.scores


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    return run_measurement("router_clarify", __doc__, (FILE, TRAIN), _measured, argv)


def _measured(data: Path) -> Measured:
    encoder = default_encoder()
    asked = read_conversations(read_rows(data / FILE), encoder)
    figures = measure(asked, ambignq_head(read_rows(data / TRAIN), encoder), encoder)
    return (_table(figures),), {"budget": BUDGET, "figures": [asdict(one) for one in figures]}


def _table(figures: Sequence[Figure]) -> Table:
    table = Table(title=f"underspecified or answerable, MTRAG-UN; {MODEL}", title_justify="left")
    for column in ("questions", "judged by"):
        table.add_column(column)
    for column in ("number", "underspecified", "AUROC", "95 %", "precision at 10 %", "95 %", "base rate"):
        table.add_column(column, justify="right")
    for one in figures:
        table.add_row(
            one.questions,
            one.system,
            str(one.num_questions),
            str(one.num_underspecified),
            "" if one.auroc is None else f"{one.auroc:.3f}",
            "" if one.interval is None else "{:.3f} to {:.3f}".format(*one.interval),
            f"{one.precision:.2f}",
            "{:.2f} to {:.2f}".format(*one.precision_interval),
            f"{one.base_rate:.2f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
