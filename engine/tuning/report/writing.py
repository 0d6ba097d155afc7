"""`write_report`: report.html and report.json in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.report.document import write_document
from engine.report.plots import check_plotter
from engine.tuning.outcome import Outcome
from engine.tuning.report.confusion import confusion_of
from engine.tuning.report.judgement import Judgement, judge
from engine.tuning.report.learning import learning_of
from engine.tuning.report.page import page
from engine.tuning.report.reliability import reliability_of


def write_report(outcome: Outcome, folder: Path) -> Path:
    """Write report.html, one file that needs no network, and report.json with the same figures, over older ones.

    The same outcome gives the same files. Returns: the path of report.html.
    Raises: ConfigError without matplotlib; SwitchyardError when the folder cannot be written.
    """
    check_plotter()
    judgement = judge(outcome)
    return write_document(folder, page(outcome, judgement), report_json(outcome, judgement))


def report_json(outcome: Outcome, judgement: Judgement) -> dict[str, Any]:
    """The outcome without its rows, and what the report makes of it."""
    content = outcome.to_json()
    for evaluation in content["evaluations"]:
        evaluation["num_predicted"] = len(evaluation.pop("predictions"))
    for baseline in content["baselines"]:
        del baseline["answers"]
    del content["train_lines"]
    verdict = {"code": judgement.code, "headline": judgement.headline, "reasons": list(judgement.reasons)}
    comparisons = [
        asdict(each) | {"difference": each.difference, "is_better": each.is_better, "is_worse": each.is_worse}
        for each in judgement.comparisons
    ]
    found: dict[str, Any] = {"verdict": verdict, "judged_by": None, "comparisons": comparisons, "learning": None}
    learning = learning_of(outcome.run)
    if learning is not None:
        found["learning"] = {
            "kept_step": learning.kept.step,
            "kept_gap": learning.kept_gap,
            "last_gap": learning.last_gap,
            "is_overfit": learning.is_overfit,
        }
    if judgement.evaluation is not None:
        found["judged_by"] = judgement.evaluation.name
        for name, is_calibrated in (("reliability_before", False), ("reliability_after", True)):
            reliability = reliability_of(judgement.evaluation, is_calibrated=is_calibrated)
            found[name] = None if reliability is None else asdict(reliability)
        if outcome.task == "classify":
            confusion = confusion_of(judgement.evaluation)
            found["confused"] = [
                {"label": true, "said": said, "rows": rows} for (true, said), rows in confusion.confused
            ]
            found["labels"] = [
                asdict(each) | {"f1": each.f1, "precision": each.precision, "recall": each.recall}
                for each in confusion.scores()
            ]
    return found | {"outcome": content}
